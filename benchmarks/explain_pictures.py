"""The pictures of an explanation: responses of the score, terms and constants, and duels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter

from llmroute_gym.ground.arrays import FloatArray

FACTORS = [2.0**power for power in range(-10, 11)]
BANDS = 3
"""Lines of a panel up to which their bands can be told apart."""
PROMPTS = (100, 300, 1000, 3000)
"""Ticks of axes of prompt tokens."""
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5")


class Line(NamedTuple):
    """How the score goes with a signal."""

    label: str
    x: FloatArray
    middle: FloatArray
    """Median over typical rows, a logarithm."""
    low: FloatArray
    """Their 10th percentile."""
    high: FloatArray
    """Their 90th percentile."""


class Panel(NamedTuple):
    """Lines against one signal."""

    title: str
    x_label: str
    lines: Sequence[Line]
    ticks: Sequence[float] = ()
    """Of a logarithmic axis."""


class Duel(NamedTuple):
    """Who wins between a fast busy replica and a slow one."""

    title: str
    in_flight: FloatArray
    """(n,) more of the fast one."""
    prompts: FloatArray
    """(n_prompts,)"""
    leads: Mapping[str, FloatArray]
    """How much higher the fast one scores by `frontier` and by other rules, (n_prompts, n)."""


def draw_responses(panels: Sequence[Panel], path: Path) -> None:
    """Draws every panel, all with the same range of scores."""
    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(15, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
        _response(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel("Score as a factor; lower is preferred")
    axes[0].set_ylim(1 / 40, 40)
    figure.savefig(path, dpi=90)


def _response(axis: Axes, panel: Panel) -> None:
    axis.axhline(1, color="grey", linewidth=0.8)
    for colour, line in zip(COLOURS, panel.lines, strict=False):
        axis.plot(line.x, np.exp(line.middle), color=colour, label=line.label)
        if len(panel.lines) <= BANDS:
            low, high = np.exp(line.low), np.exp(line.high)
            axis.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)
    _factors(axis)
    if len(panel.ticks):
        axis.set_xscale("log")
        axis.set_xticks(panel.ticks, labels=[f"{tick:g}" for tick in panel.ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel(panel.x_label)
    axis.legend(frameon=False, fontsize="x-small", ncols=1 if len(panel.lines) <= BANDS else 2)
    axis.grid(alpha=0.3)


def _factors(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(FixedLocator(FACTORS))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(
        lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
    )


def draw_terms(
    shares: Mapping[str, Mapping[str, float]],
    sizes: Sequence[tuple[int, Mapping[str, float]]],
    chosen: tuple[int, Mapping[str, float]],
    path: Path,
) -> None:
    """Draws how often each term decides, and what formulas of few constants lose.

    Args:
        shares: of decisions that change without a term, by fleet, by term.
        sizes: numbers of constants, each with the mean ratio of P99 by fleet.
        chosen: the same of the formula that is printed.
        path: a PNG file.
    """
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    fleets = list(next(iter(shares.values())))
    order = sorted(shares, key=lambda term: max(shares[term].values()))
    places, height = np.arange(len(order)), 0.8 / len(fleets)
    for number, fleet in enumerate(fleets):
        values = [shares[term][fleet] for term in order]
        left.barh(places - number * height, values, height, label=f"{fleet} fleets")
    left.set_yticks(places - 0.2, order, fontsize="small")
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_xlabel("Decisions that change when the term is removed")
    left.legend(frameon=False, loc="lower right")
    right.axhline(0, color="grey", linewidth=0.8)
    for number, fleet in enumerate(sizes[0][1]):
        colour = f"C{number}"
        values = [means[fleet] - 1 for _, means in sizes]
        right.plot([size for size, _ in sizes], values, "o-", color=colour, label=f"{fleet} fleets")
        right.plot(chosen[0], chosen[1][fleet] - 1, "*", color=colour, markersize=15)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="Constants of the formula (star: the one printed)", ylabel="P99 lost")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def draw_duels(duels: Sequence[Duel], path: Path) -> None:
    """Draws who wins, by requests more in flight and prompt length."""
    figure = Figure(figsize=(5 * len(duels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(duels), sharey=True, squeeze=False)[0]
    mesh = None
    for axis, duel in zip(axes, duels, strict=True):
        own, *others = duel.leads
        mesh = axis.pcolormesh(
            duel.in_flight,
            duel.prompts,
            duel.leads[own] / np.log(2),
            cmap="RdBu_r",
            vmin=-3,
            vmax=3,
        )
        styles = ("solid", "dashed", "dotted")
        for style, title in zip(styles, (own, *others), strict=False):
            axis.contour(
                *(duel.in_flight, duel.prompts, duel.leads[title]),
                levels=[0.0],
                colors="black",
                linestyles=style,
            )
            axis.plot([], [], color="black", linestyle=style, label=title)
        axis.set_yscale("log")
        axis.set_yticks(PROMPTS, labels=[f"{tick:g}" for tick in PROMPTS])
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(duel.title, fontsize=10, loc="left")
        axis.set_xlabel("Requests in flight: fast one less slow one")
        axis.legend(fontsize="small", loc="lower right")
    axes[0].set_ylabel("Prompt tokens")
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=axes, label="Fast one's score over the slow one's")
        bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    figure.savefig(path, dpi=90)
