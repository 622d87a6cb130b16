"""A comparison as a table of text."""

import math
from collections.abc import Iterable, Sequence

from llmroute_gym.compare.statistics import COLUMNS, Estimate, RouterResult
from llmroute_gym.config import EvaluationConfig
from llmroute_gym.ground.metrics import METRICS, short_titles

CHANGES = ("e2e_p95_s", "e2e_p99_s")
"""Metrics whose changes the table shows."""
ENOUGH_RUNS = 10
"""A bootstrap of fewer runs understates how much they differ."""


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lays lines of cells out, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [first.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        ).rstrip()
        for first, *others in lines
    )


def table(results: Sequence[RouterResult], baseline: str, config: EvaluationConfig) -> str:
    """Lays the comparison out as text, the intervals below the numbers.

    Where a router rejected requests, a further line is over those that it served.

    Args:
        results: from `compare`.
        baseline: the router that differences refer to.
        config: what the results were made with.
    """
    changes = [f"{title} change" for title in short_titles(CHANGES)]
    lines = [["router", *short_titles(COLUMNS), *changes]]
    for result in results:
        lines += _lines(result)
    rejected = any(_rejected(result) for result in results)
    return (
        f"{aligned(lines)}\n"
        f"Seconds, over all {config.runs * config.requests:,} requests of {config.runs} runs "
        f"common to all routers; change: against {baseline}.\n"
        + ("Rejected requests count as infinitely slow, but in lines of those served.\n" * rejected)
        + f"Second lines: {config.confidence:.0%} bootstrap intervals, whole runs resampled"
        f"{'.' if config.runs >= ENOUGH_RUNS else '; so few runs make them too narrow.'}"
    )


def _rejected(result: RouterResult) -> bool:
    return result.metrics["served_share"].value < 1


def _lines(result: RouterResult) -> list[list[str]]:
    """Returns a router's lines: its numbers, their intervals, and those of the served requests."""
    shown = [result.metrics[key] for key in COLUMNS]
    changes = [result.differences.get(key) for key in CHANGES]
    lines = [
        [result.router, *_values(shown), *(_change(one) for one in changes)],
        ["", *_intervals(shown), *(_change_interval(one) for one in changes)],
    ]
    if _rejected(result):
        served = [result.served[key] for key in COLUMNS if METRICS[key].latency]
        share = f"  {result.metrics['served_share'].value:.2%} served"
        rest = [""] * (len(lines[0]) - 1 - len(served))
        lines += [[share, *_values(served), *rest], ["", *_intervals(served), *rest]]
    return lines


def _values(estimates: Iterable[Estimate]) -> list[str]:
    return [f"{one.value:.2f}" for one in estimates]


def _intervals(estimates: Iterable[Estimate]) -> list[str]:
    return [f"{one.low:.2f}..{one.high:.2f}" for one in estimates]


def _change(one: Estimate | None) -> str:
    if one is None:
        return ""
    # Where both are infinite, neither is more than the other.
    return "n/a" if math.isnan(one.value) else f"{one.value:+.1%}"


def _change_interval(one: Estimate | None) -> str:
    return "" if one is None or math.isnan(one.value) else f"{one.low:+.1%}..{one.high:+.1%}"
