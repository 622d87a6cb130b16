"""What routers achieved on common requests, with intervals.

Every router serves the same workloads, each from an empty cluster until all its requests are
finished. Percentiles are taken over all requests of all runs together, none left out. Requests
of one run are dependent (they share queues), so the bootstrap resamples whole runs, the same
runs for every router: differences between routers are paired. Where a policy was trained several
times, it resamples its training seeds too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from llmroute_gym.config import SLO, EvaluationConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.metrics import (
    LATENCIES,
    METRICS,
    PERCENTILES,
    SCALARS,
    STATISTICS,
    latency_key,
)
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import between, latency_s, percentile, quotient, stacked, totals

COLUMNS = (
    *("e2e_mean_s", "e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "ttft_p95_s", "ttft_p99_s"),
    "throughput_rps",
)
"""Metrics that a comparison shows first."""
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
        metrics: each of `llmroute_gym.ground.metrics.METRICS` that is known, by its key.
        served: those of latencies again, over finished requests alone.
        differences: each of `PAIRED`, relative to the baseline: -0.1 is 10% less.
    """

    router: str
    metrics: Mapping[str, Estimate]
    served: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


class Resampling(NamedTuple):
    """How often each run and each training seed is counted.

    The first row counts each once and gives the estimate; the others are the bootstrap's. One
    resampling is used for all that is compared, so that differences are paired.
    """

    seeds: IntArray
    """(1 + n_resamples, n_seeds)"""
    runs: IntArray
    """(1 + n_resamples, n_runs)"""

    @classmethod
    def of_runs(cls, n_runs: int, config: EvaluationConfig) -> "Resampling":
        """Draws runs with replacement, as many as there are; the policies are as they are."""
        rng = np.random.default_rng([config.seed, config.runs, 2])
        runs = _draw(rng, n_runs, config.resamples)
        return cls(np.ones_like(runs[:, :1]), runs)

    @classmethod
    def draw(cls, n_seeds: int, config: EvaluationConfig) -> "Resampling":
        """Draws seeds and runs with replacement, each as many as there are."""
        rng = np.random.default_rng([config.seed, config.runs, 3])
        seeds = _draw(rng, n_seeds, config.resamples)
        return cls(seeds, _draw(rng, config.runs, config.resamples))

    def once(self) -> "Resampling":
        """Returns the first row alone: estimates without a bootstrap."""
        return Resampling(self.seeds[:1], self.runs[:1])

    def percentiles(self, latency: FloatArray, percents: Sequence[float]) -> FloatArray:
        """Returns percentiles over all requests for each row of counts.

        Args:
            latency: (n_seeds, n_cells, n_runs, n_requests), seconds; one seed stands for a rule,
                which needs no training.
            percents: 0 to 100 each.

        Returns:
            (1 + n_resamples, n_percents), as if counted requests stood there as often.
        """
        n_seeds, _, n_runs, _ = latency.shape
        seeds = self.seeds if n_seeds == self.seeds.shape[1] else np.ones_like(self.seeds[:, :1])
        assert (n_seeds, n_runs) == (seeds.shape[1], self.runs.shape[1])
        groups = np.arange(n_seeds * n_runs).reshape(n_seeds, 1, n_runs, 1)
        weights = (seeds[:, :, None] * self.runs[:, None, :]).reshape(len(seeds), -1)
        return Pooled.of(latency, np.broadcast_to(groups, latency.shape)).percentiles(
            weights, percents
        )

    def means(self, per_seed: FloatArray) -> FloatArray:
        """Returns the mean over trainings for each row of counts, (1 + n_resamples,)."""
        means: FloatArray = (self.seeds @ per_seed) / self.seeds.sum(axis=1)
        return means


def _draw(rng: np.random.Generator, n: int, resamples: int) -> IntArray:
    draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.vstack([np.ones((1, n), dtype=np.int64), draws])


class Pooled(NamedTuple):
    """Values of several groups in one ascending order, each with the group that it is of."""

    values: FloatArray
    """(n,), infinity last"""
    group: IntArray
    """(n,), each 0 to n_groups - 1"""

    @classmethod
    def of(cls, values: FloatArray, group: IntArray) -> "Pooled":
        """Sorts values of any shape, with their groups; NaN is left out."""
        order = np.argsort(values, axis=None, kind="stable")
        known = order[: values.size - int(np.isnan(values).sum())]
        return cls(values.ravel()[known], group.ravel()[known])

    def statistics(self, weights: IntArray) -> dict[str, FloatArray]:
        """Returns each of `STATISTICS` for each row of weights, shape (n_rows,).

        Args:
            weights: (n_rows, n_groups), how often the values of a group count.
        """
        mean, std = self.moments(weights)
        found = self.percentiles(weights, tuple(PERCENTILES.values()))
        return {"mean": mean, "std": std, **dict(zip(PERCENTILES, found.T, strict=True))}

    def moments(self, weights: IntArray) -> tuple[FloatArray, FloatArray]:
        """Returns means and standard deviations for each row of weights, NaN where none counts."""
        finite = np.isfinite(self.values)
        centre = float(self.values[finite].mean()) if finite.any() else 0.0
        # From the centre, so that squares of large numbers do not cancel.
        apart = np.where(finite, self.values, centre) - centre

        def summed(amounts: FloatArray) -> FloatArray:
            each = np.bincount(self.group, weights=amounts, minlength=weights.shape[1])
            return np.asarray(weights @ each, dtype=np.float64)

        count, infinite = summed(np.ones_like(apart)), summed(1.0 - finite) > 0
        with np.errstate(invalid="ignore"):
            shift = summed(apart) / count
            spread = np.sqrt(np.maximum(summed(apart**2) / count - shift**2, 0.0))
        return np.where(infinite, np.inf, centre + shift), np.where(infinite, np.inf, spread)

    def percentiles(self, weights: IntArray, percents: Sequence[float]) -> FloatArray:
        """Returns percentiles (linear interpolation) as if values stood there as often as counted.

        Args:
            weights: (n_rows, n_groups), how often the values of a group count.
            percents: 0 to 100 each.

        Returns:
            (n_rows, n_percents); infinite where infinity takes part, NaN where nothing counts.
        """
        if not len(self.values):
            return np.full((len(weights), len(percents)), np.nan)
        n_groups, size = weights.shape[1], int(np.sqrt(len(self.values))) + 1
        # Values are looked up in two steps, among blocks of neighbours and within one of them; what
        # the last block lacks is filled up with a group that never counts.
        blocks: IntArray = np.full((-(-len(self.values) // size), size), n_groups)
        blocks.ravel()[: len(self.group)] = self.group
        counted = np.pad(weights, ((0, 0), (0, 1)))
        counts = np.stack([np.bincount(block, minlength=n_groups + 1) for block in blocks])
        # As floats, which are exact here: whole numbers are not multiplied by BLAS.
        upto = np.cumsum(counted.astype(np.float64) @ counts.T.astype(np.float64), axis=1)

        def value_at(rank: FloatArray) -> FloatArray:
            block = (upto[:, None] <= rank[..., None]).sum(axis=2)
            block = np.minimum(block, len(blocks) - 1)
            before = np.take_along_axis(np.pad(upto, ((0, 0), (1, 0))), block, axis=1)
            inside = counted[np.arange(len(counted))[:, None, None], blocks[block]]
            past = before[..., None] + np.cumsum(inside, axis=2) <= rank[..., None]
            place = block * size + past.sum(axis=2)
            value: FloatArray = self.values[np.minimum(place, len(self.values) - 1)]
            return value

        position = np.maximum(upto[:, -1:] - 1, 0) * np.asarray(percents) / 100
        low = np.floor(position)
        below, above = value_at(low), value_at(np.ceil(position))
        found = between(below, above, position - low)
        return np.where(upto[:, -1:] > 0, found, np.nan)


def change(resampled: FloatArray, baseline: FloatArray) -> FloatArray:
    """Returns relative differences: -0.1 is 10% less."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return resampled / baseline - 1


def estimate(resampled: FloatArray, confidence: float = EvaluationConfig.confidence) -> Estimate:
    """Takes the first value as the estimate and the rest as its bootstrap distribution."""
    tail = 50 * (1 - confidence)
    rest = np.where(np.isnan(resampled[1:]), np.inf, resampled[1:])
    return Estimate(float(resampled[0]), percentile(rest, tail), percentile(rest, 100 - tail))


def compare(
    outcomes: Mapping[str, Sequence[Outcome]],
    baseline: str,
    config: EvaluationConfig,
    n_replicas: int | None = None,
) -> list[RouterResult]:
    """Estimates every metric of every router.

    Args:
        outcomes: router to its outcomes on the common workloads, in their order.
        baseline: the router that differences refer to.
        config: the confidence, the objectives, and the bootstrap's resamples and seed.
        n_replicas: of the cluster; without it there is no fairness.

    Returns:
        One result per router, in the given order; the baseline has no differences.
    """
    n_runs = len(next(iter(outcomes.values())))
    counts = Resampling.of_runs(n_runs, config).runs
    numbers = {
        router: resampled(runs, counts, config.slo, n_replicas) for router, runs in outcomes.items()
    }
    results = []
    for router, metrics in numbers.items():
        one = result_of(router, metrics, outcomes[router], counts, config)
        differences = {
            key: estimate(change(metrics[key], numbers[baseline][key]), config.confidence)
            for key in PAIRED
            if router != baseline
        }
        results.append(replace(one, differences=differences))
    return results


def resampled(
    outcomes: Sequence[Outcome], counts: IntArray, slo: SLO, n_replicas: int | None
) -> dict[str, FloatArray]:
    """Returns each metric for each row of counts: the estimate, then the bootstrap's, (n_rows,).

    Args:
        outcomes: of a router's runs.
        counts: (n_rows, n_runs), how often a run is counted.
        slo: the objectives of goodput.
        n_replicas: of the cluster; without it there is no fairness.
    """
    return _latencies(outcomes, counts) | _scalars(outcomes, counts, slo, n_replicas)


def result_of(
    router: str,
    metrics: Mapping[str, FloatArray],
    outcomes: Sequence[Outcome],
    counts: IntArray,
    config: EvaluationConfig,
) -> RouterResult:
    """Estimates the metrics of one router, without differences.

    Args:
        router: its name.
        metrics: from `resampled`.
        outcomes: what they were taken of, and the next also.
        counts: (n_rows, n_runs), how often a run is counted.
        config: the confidence.
    """

    def estimates(found: Mapping[str, FloatArray]) -> dict[str, Estimate]:
        return {key: estimate(found[key], config.confidence) for key in METRICS if key in found}

    whole = estimates(metrics)
    served = {key: one for key, one in whole.items() if METRICS[key].latency}
    if whole["served_share"].value < 1:
        served = estimates(_latencies(outcomes, counts, served_only=True))
    return RouterResult(router, whole, served, {})


def _latencies(
    outcomes: Sequence[Outcome], counts: IntArray, *, served_only: bool = False
) -> dict[str, FloatArray]:
    """Returns each statistic of each latency for each row of counts: (n_rows,).

    Args:
        outcomes: of the runs.
        counts: (n_rows, n_runs), how often a run is counted.
        served_only: whether requests that are not finished are left out.
    """
    run_of = np.repeat(np.arange(len(outcomes)), [len(outcome) for outcome in outcomes])
    metrics: dict[str, FloatArray] = {}
    for latency in LATENCIES:
        runs = [latency_s(outcome, latency, served_only=served_only) for outcome in outcomes]
        found = Pooled.of(np.concatenate(runs), run_of).statistics(counts)
        metrics |= {latency_key(latency, statistic): found[statistic] for statistic in STATISTICS}
    return metrics


def _scalars(
    outcomes: Sequence[Outcome], counts: IntArray, slo: SLO, n_replicas: int | None
) -> dict[str, FloatArray]:
    """Returns each scalar for each row of counts: (n_rows,)."""
    each = [totals(stacked([outcome]), slo, n_replicas) for outcome in outcomes]
    summed = {
        name: _summed(np.concatenate([one[name] for one in each]), counts) for name in each[0]
    }
    return {
        metric.key: quotient(summed[metric.numerator], summed[metric.denominator])
        if metric.denominator
        else summed[metric.numerator]
        for metric in SCALARS
        if metric.numerator in summed
    }


def _summed(amounts: FloatArray, counts: IntArray) -> FloatArray:
    """Returns the sum over runs for each row of counts, where infinity that counts 0 is nothing."""
    total = counts @ np.where(np.isinf(amounts), 0, amounts)
    return np.where(counts @ np.isinf(amounts) > 0, np.inf, total)
