"""What routers achieved on common requests, with intervals.

Every router serves the same workloads, each from an empty cluster until all its requests are
finished. Percentiles are taken over all requests of all runs together, none left out. Requests
of one run are dependent (they share queues), so the bootstrap resamples whole runs, the same
runs for every router: differences between routers are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmroute_gym.config import EvaluationConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import percentile

LATENCIES = {
    "e2e_mean_s": ("e2e", None),
    "e2e_p50_s": ("e2e", 50.0),
    "e2e_p95_s": ("e2e", 95.0),
    "e2e_p99_s": ("e2e", 99.0),
    "ttft_p95_s": ("ttft", 95.0),
    "ttft_p99_s": ("ttft", 99.0),
}
"""Metric to latency and percentile; None is the mean."""


METRICS = (*LATENCIES, "throughput_rps")


PAIRED = ("e2e_mean_s", "e2e_p95_s", "e2e_p99_s", "ttft_p99_s")
"""Metrics whose relative difference to the baseline is reported."""


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RouterResult:
    """What a router achieved.

    Attributes:
        router: its name.
        metrics: each of `METRICS`.
        differences: each of `PAIRED`, relative to the baseline: -0.1 is 10% less.
    """

    router: str
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


def compare(
    outcomes: Mapping[str, Sequence[Outcome]], baseline: str, config: EvaluationConfig
) -> list[RouterResult]:
    """Estimates every metric of every router.

    Args:
        outcomes: router to its outcomes on the common workloads, in their order.
        baseline: the router that differences refer to.
        config: the confidence, and the bootstrap's resamples and seed.

    Returns:
        One result per router, in the given order; the baseline has no differences.
    """
    rng = np.random.default_rng([config.seed, config.runs, 2])
    n_runs = len(next(iter(outcomes.values())))
    draws = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=config.resamples)
    counts = np.vstack([np.ones((1, n_runs), dtype=np.int64), draws])
    numbers = {router: _metrics(runs, counts) for router, runs in outcomes.items()}
    results = []
    for router, metrics in numbers.items():
        differences = {
            name: _estimate(_relative(metrics[name], numbers[baseline][name]), config.confidence)
            for name in PAIRED
            if router != baseline
        }
        estimates = {name: _estimate(metrics[name], config.confidence) for name in METRICS}
        results.append(RouterResult(router, estimates, differences))
    return results


def _metrics(outcomes: Sequence[Outcome], counts: IntArray) -> dict[str, FloatArray]:
    """Returns each metric for each row of counts, how often a run is counted: (n_rows,)."""
    metrics = {name: np.empty(len(counts)) for name in METRICS}
    for latency in ("e2e", "ttft"):
        runs = [getattr(outcome, f"{latency}_s") for outcome in outcomes]
        values = np.concatenate(runs)
        order = np.argsort(values, kind="stable")
        values = values[order]
        run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])[order]
        for row, count in enumerate(counts):
            resampled = np.repeat(values, count[run_of])
            for name, (kind, q) in LATENCIES.items():
                if kind == latency:
                    metrics[name][row] = resampled.mean() if q is None else percentile(resampled, q)
    served = np.array([int((~outcome.rejected).sum()) for outcome in outcomes])
    makespans = np.array([outcome.summary()["makespan_s"] for outcome in outcomes])
    metrics["throughput_rps"] = (counts @ served) / np.maximum(counts @ makespans, 1e-12)
    return metrics


def _relative(metric: FloatArray, baseline: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return metric / baseline - 1


def _estimate(values: FloatArray, confidence: float) -> Estimate:
    """Takes the first value as the estimate and the rest as its bootstrap distribution."""
    tail = 50 * (1 - confidence)
    resampled = np.where(np.isnan(values[1:]), np.inf, values[1:])
    return Estimate(
        float(values[0]), percentile(resampled, tail), percentile(resampled, 100 - tail)
    )
