"""The picture of a cloning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llmroute_gym.sb3.cloning import Cloning, EpochRecord


def plot_learning_curve(cloning: Cloning, known: float, mixed: float, path: Path) -> None:
    """Draws loss and accuracy of the actor, and the loss of the critic, epoch by epoch.

    Args:
        cloning: the learning.
        known: the accuracy that is attainable over all routers.
        mixed: the same where the rows do not tell whose decision it is.
        path: a PNG file.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, value = figure.subplots(1, 3)
    _draw(loss, cloning.actor, "loss", cloning.actor_epoch)
    _draw(accuracy, cloning.actor, "accuracy", cloning.actor_epoch)
    _draw(value, cloning.critic, "loss", cloning.critic_epoch)
    accuracy.axhline(known, color="tab:green", label="the rules themselves")
    if mixed < known:
        accuracy.axhline(
            mixed,
            color="tab:green",
            linestyle="--",
            label="if the rows do not tell\nwhose decision it is",
        )
    loss.set(ylabel="Cross-entropy (nats)", title="Actor: loss")
    accuracy.set(ylabel="Share of decisions foretold", ylim=(None, 1.01), title="Actor: accuracy")
    value.set(ylabel="Squared error / variance", ylim=(0, None), title="Value head")
    for panel in (loss, accuracy, value):
        panel.set_xlabel("Epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend(framealpha=0.9, edgecolor="none")
    figure.savefig(path, dpi=120)


def _draw(panel: Any, records: Sequence[EpochRecord], name: str, kept: int) -> None:
    epochs = np.arange(1, len(records) + 1)
    for part, label in (("training", "learned from"), ("validation", "held out")):
        panel.plot(epochs, [getattr(record, f"{part}_{name}") for record in records], label=label)
    panel.axvline(kept + 1, color="gray", linestyle=":", label="kept")
