"""What a rule achieves on drawn workloads, as logarithms of the metrics that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np

from llmroute_gym.compare.search.bench import Bench
from llmroute_gym.compare.search.pools import Pool
from llmroute_gym.compare.statistics import Pooled, Resampling
from llmroute_gym.config import EvaluationConfig, SearchingConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.metrics import PERCENTILES
from llmroute_gym.routers import Router
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import latency_s, percentiles_of_sorted

LIMITED = "ttft_p99_s"
"""The metric that may be limited."""
MOMENTS = ("mean", "std")
"""The statistics that are no percentiles."""
FLOOR_S = 1e-6
"""Added to every latency: a queueing time may be 0, of which there is no logarithm."""
STREAM = 14
"""Sets a search's seeds apart from those of other commands."""


class Stage(IntEnum):
    """What workloads are for; each stage has its own."""

    BREEDING = 1
    CHOICE = 2
    PROOF = 3


@dataclass(frozen=True)
class Batch:
    """Workloads that are drawn together.

    Attributes:
        stage: what they are for.
        generation: that they are of, 0 where all have the same.
    """

    stage: Stage
    generation: int = 0


class Measuring:
    """Measures rules; a process keeps the workloads that it used last.

    Args:
        pools: the scenarios.
        settings: the metric, and how much is measured.
    """

    def __init__(self, pools: Sequence[Pool], settings: SearchingConfig) -> None:
        self.pools = pools
        self.settings = settings
        weights = settings.weights()
        limited = [] if settings.ttft_p99_at_most is None else [LIMITED]
        self.metrics = list(dict.fromkeys([*weights, *limited]))
        self.weights = np.array([weights.get(name, 0.0) for name in self.metrics])
        self._drawn: tuple[Batch, list[list[Bench]]] | None = None

    def measured(self, router: Router, batch: Batch) -> FloatArray:
        """Returns the logarithms of the metrics, (n_rows, n_pools, n_metrics).

        Each pool's requests of all runs are taken together. The first row is the estimate; for the
        proof those of the bootstrap over runs follow, the same runs for every rule.
        """
        if self._drawn is None or self._drawn[0] != batch:
            self._drawn = batch, [self._benches(number, batch) for number in range(len(self.pools))]
        counts = self._counts(batch)
        found = [
            statistics_of(self.metrics, [bench.serve(router) for bench in benches], counts)
            for benches in self._drawn[1]
        ]
        logs: FloatArray = np.log(np.stack(found, axis=1) + FLOOR_S)
        return logs

    def n_runs(self, batch: Batch) -> int:
        """Returns how many workloads a batch has of each pool."""
        breeding = batch.stage is Stage.BREEDING
        return self.settings.runs if breeding else self.settings.final_runs

    def _benches(self, number: int, batch: Batch) -> list[Bench]:
        pool, keeps = self.pools[number], batch.stage is Stage.BREEDING
        benches = []
        for run in range(self.n_runs(batch)):
            rng = np.random.default_rng(
                [self.settings.seed, STREAM, batch.stage, batch.generation, number, run]
            )
            workload, cluster = pool.draw(self.settings.requests, rng)
            seed, view = int(rng.integers(2**31)), pool.scenario.view
            benches.append(Bench(workload, cluster, seed, pool.observation, view, keeps=keeps))
        return benches

    def _counts(self, batch: Batch) -> IntArray | None:
        if batch.stage is not Stage.PROOF:
            return None
        n_runs = self.n_runs(batch)
        config = EvaluationConfig(runs=n_runs, seed=self.settings.seed)
        return Resampling.of_runs(n_runs, config).runs


def statistics_of(
    metrics: Sequence[str], outcomes: Sequence[Outcome], counts: IntArray | None
) -> FloatArray:
    """Returns metrics over the requests of all runs together, (n_rows, n_metrics).

    Args:
        metrics: keys of latencies.
        outcomes: of the runs.
        counts: (n_rows, n_runs) how often each run counts; None for one row that counts each once,
            which takes a tenth of the time.
    """
    wanted: dict[str, dict[str, int]] = {}
    for column, key in enumerate(metrics):
        latency, statistic = key.removesuffix("_s").rsplit("_", 1)
        wanted.setdefault(latency, {})[statistic] = column
    found = np.empty((1 if counts is None else len(counts), len(metrics)))
    for latency, columns in wanted.items():
        seconds = [latency_s(one, latency) for one in outcomes]
        take = _once if counts is None else partial(_resampled, counts)
        percents = {name: _percent(name) for name in columns if name not in MOMENTS}
        mean, deviation, percentiles = take(seconds, list(percents.values()))
        known = {"mean": mean, "std": deviation, **dict(zip(percents, percentiles.T, strict=True))}
        for statistic, column in columns.items():
            found[:, column] = known[statistic]
    return found


def _once(
    seconds: Sequence[FloatArray], percents: Sequence[float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns mean, standard deviation and percentiles, (1,), (1,) and (1, n_percents)."""
    ordered = np.sort(np.concatenate(seconds))
    known = ordered[: len(ordered) - int(np.isnan(ordered).sum())]
    if not len(known):
        return np.full(1, np.nan), np.full(1, np.nan), np.full((1, len(percents)), np.nan)
    finite = np.isfinite(known[-1])
    mean, deviation = (known.mean(), known.std()) if finite else (np.inf, np.inf)
    return np.array([mean]), np.array([deviation]), percentiles_of_sorted(known[None], percents)


def _resampled(
    counts: IntArray, seconds: Sequence[FloatArray], percents: Sequence[float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns the same for each row of counts."""
    run_of = np.repeat(np.arange(len(seconds)), [len(one) for one in seconds])
    pooled = Pooled.of(np.concatenate(seconds), run_of)
    mean, deviation = pooled.moments(counts)
    return mean, deviation, pooled.percentiles(counts, percents)


def _percent(statistic: str) -> float:
    digits = statistic.removeprefix("p")
    return PERCENTILES.get(statistic) or float(f"{digits[:2]}.{digits[2:]}")


def relative(logs: FloatArray, reference: FloatArray) -> FloatArray:
    """Returns logarithms of ratios; where both are infinite, neither is more than the other."""
    with np.errstate(invalid="ignore"):
        ratios: FloatArray = logs - reference
    return np.where(np.isposinf(logs) & np.isposinf(reference), 0.0, ratios)
