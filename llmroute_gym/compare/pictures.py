"""The pictures of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.metrics import LATENCIES
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import latency_s

SHOWN = ("e2e", "ttft")
"""Latencies that are drawn."""
TAIL = 1e-3
"""Smallest share of requests that the latency plots show."""


def plot_latencies(outcomes: Mapping[str, Sequence[Outcome]], path: Path, title: str) -> None:
    """Draws how the end-to-end latency and the time to first token are distributed.

    The axis of shares is logarithmic towards 1, so that P50, P90, P99 are equally far apart. A
    curve ends at the share of requests that were served; where some were not, its label says so.

    Args:
        outcomes: router to its outcomes.
        path: a PNG file.
        title: of the picture.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (router, runs) in enumerate(outcomes.items()):
        # The first one is the policy, if there is one: on top, and broken to show what is below.
        style = {"linewidth": 2.2, "linestyle": (0, (4, 1.5)), "zorder": 3} if number == 0 else {}
        rejected = np.concatenate([run.rejected for run in runs]).mean()
        label = f"{router} ({1 - rejected:.2%} served)" if rejected else router
        for panel, latency in zip(panels, SHOWN, strict=True):
            seconds = np.concatenate([latency_s(run, latency) for run in runs])
            plot_shares(panel, seconds, label=label, **style)
    panels[0].set_xlim(left=0)
    panels[1].set_xscale("log")
    finish_shares(figure, panels, SHOWN, path, title)


def plot_shares(panel: Axes, seconds: FloatArray, **style: Any) -> None:
    """Draws which share of values, of shape (n,), is above each of them."""
    above = 1 - np.arange(len(seconds)) / max(len(seconds), 1)
    panel.step(np.sort(seconds), above, where="post", **style)


def finish_shares(
    figure: Figure, panels: Sequence[Axes], latencies: Sequence[str], path: Path, title: str
) -> None:
    """Labels panels of `plot_shares`, their shares stretched towards 1, and writes the picture.

    Args:
        figure: of the panels.
        panels: side by side, with a common axis of shares.
        latencies: of each panel, keys of `LATENCIES`.
        path: a PNG file.
        title: of the picture.
    """
    for panel, latency in zip(panels, latencies, strict=True):
        panel.set(xlabel=f"{LATENCIES[latency].title} (s)", yscale="log", ylim=(1, TAIL))
        panel.grid(alpha=0.3)
        if panel.get_xscale() == "log":
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("Share of requests below, tail stretched")
    panels[0].set_yticks([0.5, 0.1, 0.05, 0.01, 0.001], ["50%", "90%", "95%", "99%", "99.9%"])
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
