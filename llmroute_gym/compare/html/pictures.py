"""The pictures of a suite, for papers and read-me files."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from llmroute_gym.compare.html.groups import grouped
from llmroute_gym.compare.html.palette import (
    BAND,
    DRAWN_LINES,
    DRAWN_MARKS,
    UPPER_BOUND,
    Style,
    drawn_at_first,
    shade,
    styles,
    surely_not_one,
    upper_bounds,
)
from llmroute_gym.compare.html.tables import ratio_text
from llmroute_gym.compare.html.ticks import log_ticks, stretched
from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.compare.suites.result import MORE_IS_BETTER, SuiteResult
from llmroute_gym.compare.suites.text import compared_with
from llmroute_gym.ground.metrics import METRICS

MAPPED = "e2e_p99_s"
"""The metric of the heat map, on the page the first of several."""
ACROSS = 4
"""Panels in a row."""


def heat_map(result: SuiteResult) -> Figure | None:
    """Draws the ratio to the baseline in P99 end-to-end latency, bold where significant.

    To the best router, marked by a star, where the baseline is unstable.
    """
    bounds = upper_bounds(result)
    routers = sorted(result.routers, key=lambda router: router in bounds)
    scenarios = result.scenarios
    if not scenarios:
        return None
    size = (max(8.0, 3.2 + 0.72 * len(scenarios)), 1.8 + 0.34 * len(routers))
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    colours = np.ones((len(routers), len(scenarios), 3))
    more_is_better = MAPPED in MORE_IS_BETTER
    ratios = [compared_with(scenario)[1].get(MAPPED, {}) for scenario in scenarios]
    for (row, router), (column, scenario) in product(enumerate(routers), enumerate(scenarios)):
        one = ratios[column].get(router)
        colours[row, column] = to_rgb(shade(one, more_is_better=more_is_better) or "white")
        unstable = router in scenario.unstable
        panel.text(
            column,
            row,
            "unstable" if unstable else ratio_text(one.value) if one else "–",
            ha="center",
            va="center",
            fontsize=6.5 if unstable else 8,
            fontweight="bold" if surely_not_one(one) else "normal",
        )
    panel.imshow(colours, aspect="auto")
    names = [f"{router} (upper bound)" if router in bounds else router for router in routers]
    panel.set_yticks(range(len(routers)), map(_literal, names), fontsize=8)
    panel.set_xticks(
        range(len(scenarios)),
        [_literal(one.name) + "*" * (not one.ratio_to_baseline) for one in scenarios],
        rotation=40,
        ha="right",
        fontsize=8,
    )
    if bounds:
        panel.axhline(len(routers) - len(bounds) - 0.5, color="black", linewidth=1)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    baselines = ", ".join(dict.fromkeys(one.baseline for one in scenarios))
    title = f"{METRICS[MAPPED].title} over that of {baselines}: blue is better, orange worse"
    if not all(one.ratio_to_baseline for one in scenarios):
        title += "; *: over the best, as that is unstable"
    below = f"white: the {result.confidence:.0%} interval holds 1"
    panel.set_title(_literal(f"{title};\n{below}"), fontsize=10, loc="left")
    return figure


def load(result: SuiteResult) -> Figure | None:
    """Draws P99 against load with intervals, for the groups of scenarios that differ in it."""
    groups = [group for group in grouped(result.scenarios) if group.positions]
    if not groups:
        return None
    keys = ("e2e_p99_s", "ttft_p99_s")
    figure = Figure(figsize=(5 * len(keys), 0.9 + 3.3 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(keys), squeeze=False)
    drawn = _drawn(result)
    for group, row in zip(groups, panels, strict=True):
        assert group.positions is not None
        for key, panel in zip(keys, row, strict=True):
            for router, style in drawn.items():
                found = [one.metric(router, key) for one in group.scenarios]
                _line(panel, group.positions, found, style)
            panel.set(xlabel=group.axis, ylabel=f"{METRICS[key].title} (s)", yscale="log")
            panel.set_title(_literal(group.title), fontsize=10, loc="left")
            _plain_seconds(panel)
    _legend(figure, drawn)
    return figure


def tails(result: SuiteResult) -> Figure | None:
    """Draws the percentiles of the end-to-end latency in every scenario, the tail stretched."""
    scenarios = [one for one in result.scenarios if one.results]
    if not scenarios:
        return None
    across = min(ACROSS, len(scenarios))
    down = math.ceil(len(scenarios) / across)
    figure = Figure(figsize=(1 + 3.2 * across, 1 + 2.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    drawn = _drawn(result)
    tail = stretched("e2e")
    for scenario, panel in zip(scenarios, panels, strict=False):
        for one in scenario.results:
            if one.router in drawn:
                found = [one.metrics[key] for key in tail.keys]
                _line(panel, tail.places, found, drawn[one.router], marked=False)
        panel.set_yscale("log")
        panel.set_xticks(tail.places, tail.labels, fontsize=7)
        panel.set_title(_literal(scenario.name), fontsize=9, loc="left")
        _plain_seconds(panel)
    for panel in panels[len(scenarios) :]:
        panel.set_visible(False)
    figure.supylabel("End-to-end latency (s)", fontsize=10)
    _legend(figure, drawn)
    return figure


PICTURES: dict[str, Callable[[SuiteResult], Figure | None]] = {
    "heat_map.png": heat_map,
    "load.png": load,
    "tails.png": tails,
}
"""File to what draws it; None where the suite has nothing to draw there."""


def _drawn(result: SuiteResult) -> dict[str, Style]:
    known = styles(result)
    bounds = upper_bounds(result)
    first = [*drawn_at_first(result), *(router for router in result.routers if router in bounds)]
    return {router: known[router] for router in first}


def _line(
    panel: Axes,
    places: Sequence[float],
    found: Sequence[Estimate | None],
    style: Style,
    *,
    marked: bool = True,
) -> None:
    known = [
        (place, one)
        for place, one in zip(places, found, strict=True)
        if one is not None and math.isfinite(one.value)
    ]
    x = [place for place, _ in known]
    panel.plot(
        x,
        [one.value for _, one in known],
        color=style.colour,
        linestyle=DRAWN_LINES[style.line],
        marker=DRAWN_MARKS[style.mark] if marked else None,
        markersize=4,
        linewidth=1.5,
    )
    low, high = ([getattr(one, end) for _, one in known] for end in ("low", "high"))
    if all(map(math.isfinite, high)):
        panel.fill_between(x, low, high, color=style.colour, alpha=BAND, linewidth=0)


def _plain_seconds(panel: Axes) -> None:
    ticks = log_ticks(*panel.get_ylim())
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.3)


def _legend(figure: Figure, drawn: Mapping[str, Style]) -> None:
    handles = [
        Line2D(
            *([], []),
            color=style.colour,
            linestyle=DRAWN_LINES[style.line],
            marker=DRAWN_MARKS[style.mark],
            markersize=4,
            label=_literal(f"{router} (upper bound)" if style == UPPER_BOUND else router),
        )
        for router, style in drawn.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _literal(text: str) -> str:
    """Returns a text in which Matplotlib finds no formula."""
    return text.replace("$", r"\$")
