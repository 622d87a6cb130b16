"""How routers and ratios look, the same in every chart, table and picture of a suite."""

from collections.abc import Mapping
from typing import NamedTuple

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.compare.suites.result import SuiteResult

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
"""Okabe and Ito's, which colour-blind people tell apart, but for black and yellow."""
LINES = ("solid", "dash", "dot", "dashdot", "longdash")
"""As the charts name them; once the colours are used up, the next line begins with the first."""
MARKS = ("circle", "square", "triangle-up", "diamond", "x")
"""Goes with the line."""
DRAWN_LINES: dict[str, tuple[float, tuple[float, ...]]] = {
    "solid": (0, ()),
    "dash": (0, (4, 1.5)),
    "dot": (0, (1, 1.2)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (8, 2)),
}
"""The same lines as Matplotlib names them."""
DRAWN_MARKS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "x": "x"}
"""The same marks as Matplotlib names them."""
BAND = 0.09
"""Opacity of a band; many of them lie on each other."""
BETTER = ("#e1edf8", "#bcd7ee", "#8fbce2", "#62a0d4")
"""Backgrounds of ratios that are surely better, from little to much; dark text stays readable."""
WORSE = ("#fdecd9", "#fad4a9", "#f3b271", "#e6913c")
"""The same of those that are surely worse."""
STEPS = (1.02, 1.1, 1.3, 1.8)
"""Factors from which the background is one darker; nearer to 1 it is still the first."""
AT_FIRST = 8
"""So many routers are drawn until the reader chooses others."""


def shade(one: Estimate | None, *, more_is_better: bool) -> str | None:
    """Returns the background of a ratio, None where its interval holds 1 or there is none."""
    if one is None or not surely_not_one(one) or one.value <= 0:
        return None
    factor = max(one.value, 1 / one.value)
    step = max(0, sum(factor >= least for least in STEPS) - 1)
    return (BETTER if (one.value > 1.0) == more_is_better else WORSE)[step]


def surely_not_one(one: Estimate | None) -> bool:
    """Returns whether the interval of a ratio leaves out 1."""
    return one is not None and (one.low > 1.0 or one.high < 1.0)


class Style(NamedTuple):
    """How a router is drawn."""

    colour: str
    """#RRGGBB"""
    line: str
    mark: str

    def translucent(self, opacity: float) -> str:
        """Returns the colour as CSS, with an opacity from 0 to 1."""
        red, green, blue = (int(self.colour[place : place + 2], 16) for place in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity:g})"


UPPER_BOUND = Style("#000000", "dot", "x")
"""Upper bounds are no entrants and look like none."""


def upper_bounds(result: SuiteResult) -> frozenset[str]:
    """Returns the routers that know what no router can know."""
    return frozenset(name for one in result.scenarios for name in one.upper_bounds)


def styles(result: SuiteResult) -> dict[str, Style]:
    """Returns how each router is drawn, in the suite's order, upper bounds last."""
    bounds = upper_bounds(result)
    entrants = [router for router in result.routers if router not in bounds]
    drawn = {}
    for number, router in enumerate(entrants):
        turn = number // len(COLOURS) % len(LINES)
        drawn[router] = Style(COLOURS[number % len(COLOURS)], LINES[turn], MARKS[turn])
    return drawn | {router: UPPER_BOUND for router in result.routers if router in bounds}


def drawn_at_first(result: SuiteResult) -> list[str]:
    """Chooses the routers to begin with, at most `AT_FIRST`, in the suite's order.

    The baselines, then those that are most often the best in mean end-to-end latency.
    """
    bounds = upper_bounds(result)
    entrants = [router for router in result.routers if router not in bounds]
    baselines = {one.baseline for one in result.scenarios}
    won: Mapping[str, int] = {
        router: sum(
            one.ratio_to_best["e2e_mean_s"][router].value <= 1.0
            for one in result.scenarios
            if router in one.ratio_to_best.get("e2e_mean_s", {})
        )
        for router in entrants
    }
    ranked = sorted(entrants, key=lambda router: (router not in baselines, -won[router]))
    chosen = set(ranked[:AT_FIRST])
    return [router for router in entrants if router in chosen]
