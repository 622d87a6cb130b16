"""Routers compared on common requests, with intervals.

Every router serves the same workloads, each from an empty cluster until all its requests are
finished. Percentiles are taken over all requests of all runs together, none left out. Requests
of one run are dependent (they share queues), so the bootstrap resamples whole runs, the same
runs for every router: differences between routers are paired.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.envs.llmroute_env import predicted_output_tokens
from llmroute_gym.errors import unknown_name
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.routers import Router
from llmroute_gym.routers.simulation import route_all
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.outcome import percentile
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource
from llmroute_gym.sim.submission import fitting

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
ENOUGH_RUNS = 10
"""A bootstrap of fewer runs understates how much they differ."""
PAIRED = ("e2e_mean_s", "e2e_p95_s", "e2e_p99_s", "ttft_p99_s")
"""Metrics whose relative difference to the baseline is reported."""


class RoutesMany(Protocol):
    """A router without a memory of its own, which can decide in several clusters at once."""

    def route_many(self, rows: FloatArray, masks: BoolArray) -> IntArray:
        """Returns replicas (n,) for rows (n, n_replicas, n_columns), masks (n, n_replicas)."""
        ...


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


def common_workloads(
    source: WorkloadSource, cluster: Cluster, config: EvaluationConfig
) -> list[Workload]:
    """Draws the workloads that all routers serve.

    The windows of a trace are spread evenly over it, so that all its parts count.

    Args:
        source: what the requests are drawn from.
        cluster: what they must fit on.
        config: how many runs of how many requests, the seed and the engine.

    Returns:
        One workload per run.

    Raises:
        InputError: the engine is unknown, the trace is shorter than a run, or a request can run
            on no replica.
    """
    if config.engine not in ENGINES:
        raise unknown_name("evaluation engine", config.engine, ENGINES)
    workloads = []
    for run in range(config.runs):
        rng = np.random.default_rng([config.seed, run])
        part = source
        if isinstance(source, TraceWorkload) and config.requests <= len(source.workload):
            part = _window(source, run / max(config.runs - 1, 1), config.requests)
        workloads.append(part.sample(config.requests, rng))
        fitting(workloads[-1], cluster)
    return workloads


def _window(source: TraceWorkload, position: float, n_requests: int) -> TraceWorkload:
    """Cuts a window out of a trace; position 0 is its beginning, 1 its end."""
    start = round(position * (len(source.workload) - n_requests))
    if source.arrivals is not None:
        window = source.workload.slice(start, start + n_requests)
        return TraceWorkload(window, source.qps, source.arrivals)
    return TraceWorkload(source.workload.with_qps(source.qps).slice(start, start + n_requests))


def serve(
    router: Router,
    workloads: Sequence[Workload],
    cluster: Cluster,
    config: EvaluationConfig,
    observation: ObservationConfig,
    on_run: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Serves every workload with one router.

    Args:
        router: reset before each run.
        workloads: from `common_workloads`.
        cluster: the replicas.
        config: the seed of a router's own randomness, and the engine.
        observation: what the router is told.
        on_run: called after each run.

    Returns:
        One outcome per workload.
    """
    runs: list[Run] = []
    randomness = []
    for index, workload in enumerate(workloads):
        guesses, choices = np.random.default_rng([config.seed, index, 1]).spawn(2)
        predicted = predicted_output_tokens(workload, observation.predicted_output_sigma, guesses)
        start = ENGINES[config.engine]
        runs.append(
            start(workload, cluster, observation=observation, predicted_output_tokens=predicted)
        )
        randomness.append(choices)
    if hasattr(router, "route_many"):
        _route_together(runs, cast(RoutesMany, router), on_run)
    else:
        for run, rng in zip(runs, randomness, strict=True):
            route_all(run, router, rng)
            on_run()
    return [run.outcome() for run in runs]


def _route_together(runs: Sequence[Run], router: RoutesMany, on_run: Callable[[], object]) -> None:
    """Takes the runs one decision further at a time: a network decides many as fast as one."""
    while going := [run for run in runs if not run.done]:
        rows = np.stack([run.rows() for run in going])
        masks = np.stack([run.mask() for run in going])
        for run, replica in zip(going, router.route_many(rows, masks).tolist(), strict=True):
            run.place(replica)
            if run.done:
                on_run()


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


def write_comparison(results: Sequence[RouterResult], path: Path) -> None:
    """Writes one line per router: each metric, each difference, and the ends of its interval."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["router"]
        for name in [*METRICS, *(f"{name}_vs_baseline" for name in PAIRED)]:
            header += [name, f"{name}_low", f"{name}_high"]
        writer.writerow(header)
        for result in results:
            line = [result.router]
            for name in METRICS:
                line += _cells(result.metrics[name])
            for name in PAIRED:
                line += _cells(result.differences.get(name))
            writer.writerow(line)


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["", "", ""]
    return [f"{number:.6g}" for number in (estimate.value, estimate.low, estimate.high)]


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
