"""The pictures of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

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
            seconds = np.sort(np.concatenate([latency_s(run, latency) for run in runs]))
            slower = 1 - np.arange(len(seconds)) / len(seconds)
            panel.step(seconds, slower, where="post", label=label, **style)
    for panel, latency in zip(panels, SHOWN, strict=True):
        panel.set(xlabel=f"{LATENCIES[latency].title} (s)", yscale="log", ylim=(1, TAIL))
        panel.grid(alpha=0.3)
    panels[0].set_xlim(left=0)
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("Share of requests below, tail stretched")
    panels[0].set_yticks([0.5, 0.1, 0.05, 0.01, 0.001], ["50%", "90%", "95%", "99%", "99.9%"])
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
