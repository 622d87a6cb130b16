"""Every metric of what was served: its key, title, unit and definition, in one table.

Definitions are those of `vllm bench serve` where it has one. A request that is rejected, or not
finished, counts as infinitely slow. `Outcome.summary` gives the metrics of one run, a comparison
those of several runs together: latencies are pooled, and a scalar is the sum of its numerator over
the runs divided by that of its denominator.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Latency(NamedTuple):
    """A time that every request has, in seconds; its statistics are metrics."""

    key: str
    """`Outcome` has it under this name with the suffix ``_s``."""
    title: str
    short: str
    definition: str
    least_output_tokens: int = 1
    """Requests with fewer have no such time."""


LATENCIES = {
    latency.key: latency
    for latency in (
        Latency("e2e", "End-to-end latency", "E2E", "the time from arrival to the last token"),
        Latency("ttft", "Time to first token", "TTFT", "the time from arrival to the first token"),
        Latency(
            "tpot",
            "Time per output token",
            "TPOT",
            "(E2E - TTFT) / (output tokens - 1), of requests with more than one output token",
            least_output_tokens=2,
        ),
        Latency("ntpot", "Normalised time per output token", "NTPOT", "E2E / output tokens"),
        Latency("queue", "Queueing time", "Queue", "the time from arrival to the first batch"),
    )
}
"""Key to latency."""

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
"""Key to percent, linearly interpolated over all requests together."""

STATISTICS = {
    "mean": "mean",
    "std": "standard deviation",
    "p50": "P50",
    "p90": "P90",
    "p95": "P95",
    "p99": "P99",
    "p999": "P99.9",
    "max": "maximum",
}
"""Key to title of what is taken of each latency."""


@dataclass(frozen=True)
class Metric:
    """A line of the table.

    Attributes:
        key: its name in files and summaries.
        title: for people.
        unit: as written behind a number; empty for counts and shares.
        definition: what it is, in words.
        kind: ``mean``, ``std`` or ``percentile`` of a latency, or ``scalar``.
        latency: key of the latency, empty for a scalar.
        numerator: of a scalar: a total of one run, see `llmroute_gym.sim.outcome.totals`.
        denominator: likewise; empty where the numerator is the metric.
    """

    key: str
    title: str
    unit: str
    definition: str
    kind: str = "scalar"
    latency: str = ""
    numerator: str = ""
    denominator: str = ""


def latency_key(latency: str, statistic: str) -> str:
    """Returns the key of a statistic of a latency."""
    return f"{latency}_{statistic}_s"


def _of(latency: Latency, statistic: str) -> Metric:
    words = STATISTICS[statistic]
    return Metric(
        key=latency_key(latency.key, statistic),
        title=f"{latency.short} {words}",
        unit="s",
        definition=f"{words} of {latency.definition}",
        kind="percentile" if statistic in PERCENTILES else statistic,
        latency=latency.key,
    )


def _scalar(
    key: str, title: str, unit: str, numerator: str, denominator: str, definition: str
) -> Metric:
    return Metric(key, title, unit, definition, numerator=numerator, denominator=denominator)


def _per_second(key: str, title: str, unit: str, numerator: str, definition: str) -> Metric:
    return _scalar(key, title, unit, numerator, "makespan_s", f"{definition} / makespan")


def _per_run(key: str, title: str, unit: str, definition: str) -> Metric:
    return _scalar(key, title, unit, key, "runs", f"{definition}; the mean over runs")


_FINISHED = "finished requests"
_GOOD = "finished requests that meet all objectives"
_JAIN = "Jain's index over replicas (1 is even, 1/n is all on one of n) of"

SCALARS = (
    _scalar("requests", "Requests", "", "requests", "", "all, rejected ones included"),
    _scalar("rejected", "Rejected", "", "rejected", "", "requests that no replica took"),
    _scalar("served_share", "Served", "", "served", "requests", f"{_FINISHED} / requests"),
    _per_second("throughput_rps", "Throughput", "req/s", "served", _FINISHED),
    _per_second(
        *("output_throughput_tps", "Output throughput", "tok/s", "output_tokens"),
        f"output tokens of {_FINISHED}",
    ),
    _per_second(
        *("total_throughput_tps", "Total throughput", "tok/s", "tokens"),
        f"prompt and output tokens of {_FINISHED}",
    ),
    _per_second("goodput_rps", "Goodput", "req/s", "good", _GOOD),
    _scalar("goodput_share", "Goodput share", "", "good", "requests", f"{_GOOD} / requests"),
    _per_run("makespan_s", "Makespan", "s", "from the first arrival to the last completion"),
    _per_run(
        *("time_to_90_s", "Time to 90%", "s"),
        "from the first arrival until 90% of the requests are finished",
    ),
    _scalar("preemptions", "Preemptions", "", "preemptions", "", "restarts of requests"),
    _scalar(
        *("cached_token_share", "Cached tokens", "", "cached_tokens", "prompt_tokens"),
        f"prompt tokens found in the prefix cache / prompt tokens, of {_FINISHED}",
    ),
    _per_run("fairness_requests", "Fairness of requests", "", f"{_JAIN} {_FINISHED}"),
    _per_run("fairness_tokens", "Fairness of tokens", "", f"{_JAIN} prompt and output tokens"),
)
"""Metrics that are no statistic of a latency.

Goodput needs objectives, fairness the number of replicas; without them they are left out.
"""

METRICS = {
    metric.key: metric
    for metric in (
        *(_of(latency, statistic) for latency in LATENCIES.values() for statistic in STATISTICS),
        *SCALARS,
    )
}
"""Key to metric, in the order in which they are listed."""


def short_titles(keys: Iterable[str]) -> list[str]:
    """Returns headings of neighbouring columns: a latency is named once, a rate by its unit."""
    metrics = [METRICS[key] for key in keys]
    titles = [metric.title if metric.latency else metric.unit or metric.title for metric in metrics]
    for place, (before, metric) in enumerate(pairwise(metrics), start=1):
        if metric.latency and metric.latency == before.latency:
            titles[place] = titles[place].removeprefix(f"{LATENCIES[metric.latency].short} ")
    return titles
