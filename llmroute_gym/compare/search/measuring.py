"""What a rule achieves on drawn workloads, as logarithms of the metrics that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from llmroute_gym.compare.search.pools import Pool
from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.statistics import Pooled, Resampling
from llmroute_gym.config import EvaluationConfig, SearchingConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.metrics import METRICS, PERCENTILES
from llmroute_gym.routers import Router
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.outcome import latency_s

LIMITED = "ttft_p99_s"
"""The metric that may be limited."""
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
        self._drawn: tuple[Batch, list[list[tuple[Workload, Cluster, int]]]] | None = None

    def measured(self, router: Router, batch: Batch) -> FloatArray:
        """Returns the logarithms of the metrics, (n_rows, n_pools, n_metrics).

        Each pool's requests of all runs are taken together. The first row is the estimate; but when
        candidates are bred, those of the bootstrap over runs follow, the same runs for every rule.
        """
        if self._drawn is None or self._drawn[0] != batch:
            self._drawn = batch, [self._runs(number, batch) for number in range(len(self.pools))]
        logs = []
        for pool, runs in zip(self.pools, self._drawn[1], strict=True):
            outcomes: list[Outcome] = []
            for workload, cluster, seed in runs:
                config = EvaluationConfig(seed=seed)
                outcomes += serve(router, [workload], cluster, config, pool.observation)
            rows = [_metric(name, outcomes, self._counts(batch)) for name in self.metrics]
            logs.append(np.log(np.stack(rows, axis=1) + FLOOR_S))
        return np.stack(logs, axis=1)

    def n_runs(self, batch: Batch) -> int:
        """Returns how many workloads a batch has of each pool."""
        breeding = batch.stage is Stage.BREEDING
        return self.settings.runs if breeding else self.settings.final_runs

    def _runs(self, pool: int, batch: Batch) -> list[tuple[Workload, Cluster, int]]:
        runs = []
        for run in range(self.n_runs(batch)):
            rng = np.random.default_rng(
                [self.settings.seed, STREAM, batch.stage, batch.generation, pool, run]
            )
            drawn = self.pools[pool].draw(self.settings.requests, rng)
            runs.append((*drawn, int(rng.integers(2**31))))
        return runs

    def _counts(self, batch: Batch) -> IntArray:
        n_runs = self.n_runs(batch)
        if batch.stage is Stage.BREEDING:
            return np.ones((1, n_runs), dtype=np.int64)
        config = EvaluationConfig(runs=n_runs, seed=self.settings.seed)
        return Resampling.of_runs(n_runs, config).runs


def _metric(key: str, outcomes: Sequence[Outcome], counts: IntArray) -> FloatArray:
    """Returns a metric over the requests of all runs for each row of counts, (n_rows,)."""
    latency, statistic = key.removesuffix("_s").rsplit("_", 1)
    run_of = np.repeat(np.arange(len(outcomes)), [len(outcome) for outcome in outcomes])
    pooled = Pooled.of(np.concatenate([latency_s(one, latency) for one in outcomes]), run_of)
    if key in METRICS and statistic not in PERCENTILES:
        mean, deviation = pooled.moments(counts)
        return mean if statistic == "mean" else deviation
    digits = statistic.removeprefix("p")
    percent = PERCENTILES.get(statistic) or float(f"{digits[:2]}.{digits[2:]}")
    found: FloatArray = pooled.percentiles(counts, [percent])[:, 0]
    return found


def relative(logs: FloatArray, reference: FloatArray) -> FloatArray:
    """Returns logarithms of ratios; where both are infinite, neither is more than the other."""
    with np.errstate(invalid="ignore"):
        ratios: FloatArray = logs - reference
    return np.where(np.isposinf(logs) & np.isposinf(reference), 0.0, ratios)
