"""Scenarios that stand under one heading, and what they differ in."""

from collections.abc import Sequence
from typing import NamedTuple

from llmroute_gym.compare.suites.result import ScenarioResult


class Group(NamedTuple):
    """Scenarios to be drawn along one axis.

    Attributes:
        title: the heading.
        axis: what the axis says, with its unit.
        positions: of each scenario along it; None where they stand side by side.
        scenarios: in the order of their positions.
    """

    title: str
    axis: str
    positions: tuple[float, ...] | None
    scenarios: tuple[ScenarioResult, ...]


def grouped(scenarios: Sequence[ScenarioResult]) -> list[Group]:
    """Puts scenarios under their headings, in the order in which those come first.

    They are drawn against their load where they differ in it, against their rate where no load is
    known, and side by side otherwise.
    """
    titles = dict.fromkeys(one.group for one in scenarios)
    return [_group(title, [one for one in scenarios if one.group == title]) for title in titles]


def _group(title: str, scenarios: list[ScenarioResult]) -> Group:
    loads = [one.load for one in scenarios if one.load is not None]
    if len(scenarios) > 1 and len(set(loads)) == len(scenarios):
        ordered = sorted(scenarios, key=lambda one: one.load or 0.0)
        shares = tuple(100 * (one.load or 0.0) for one in ordered)
        return Group(title, "Load (% of capacity)", shares, tuple(ordered))
    rates = {one.qps for one in scenarios}
    same_cluster = len({one.n_replicas for one in scenarios}) == 1
    if not loads and same_cluster and len(scenarios) > 1 and len(rates) == len(scenarios):
        ordered = sorted(scenarios, key=lambda one: one.qps)
        return Group(title, "Arrivals (requests/s)", tuple(one.qps for one in ordered), (*ordered,))
    return Group(title, "Scenario", None, tuple(scenarios))
