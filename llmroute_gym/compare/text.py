"""A comparison as a table of text."""

from collections.abc import Sequence

from llmroute_gym.compare.statistics import METRICS, RouterResult
from llmroute_gym.config import EvaluationConfig

ENOUGH_RUNS = 10
"""A bootstrap of fewer runs understates how much they differ."""


def table(results: Sequence[RouterResult], baseline: str, config: EvaluationConfig) -> str:
    """Lays the comparison out as text, the intervals below the numbers.

    Args:
        results: from `compare`.
        baseline: the router that differences refer to.
        config: what the results were made with.
    """
    titles = ["E2E mean", "P50", "P95", "P99", "TTFT P95", "P99", "req/s"]
    lines = [["router", *titles, "E2E P95 change", "P99 change"]]
    for result in results:
        estimates = [result.metrics[name] for name in METRICS]
        changes = [result.differences.get(name) for name in ("e2e_p95_s", "e2e_p99_s")]
        lines.append(
            [
                result.router,
                *(f"{estimate.value:.2f}" for estimate in estimates),
                *("" if one is None else f"{one.value:+.1%}" for one in changes),
            ]
        )
        lines.append(
            [
                "",
                *(f"{estimate.low:.2f}..{estimate.high:.2f}" for estimate in estimates),
                *("" if one is None else f"{one.low:+.1%}..{one.high:+.1%}" for one in changes),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )
    return (
        f"{text}\n"
        f"Seconds, over all {config.runs * config.requests:,} requests of {config.runs} runs "
        f"common to all routers; change: against {baseline}.\n"
        f"Second lines: {config.confidence:.0%} bootstrap intervals, whole runs resampled"
        f"{'.' if config.runs >= ENOUGH_RUNS else '; so few runs make them too narrow.'}"
    )
