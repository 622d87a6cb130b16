"""What the outcomes of one scenario say: metrics, ratios with intervals, and who is unstable."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llmroute_gym.compare.report import title_of
from llmroute_gym.compare.statistics import (
    Estimate,
    Resampling,
    RouterResult,
    estimate,
    resampled,
    result_of,
)
from llmroute_gym.compare.suites.result import MORE_IS_BETTER, RATIOS, ScenarioResult
from llmroute_gym.compare.suites.scenarios import Rate
from llmroute_gym.compare.suites.stability import growth
from llmroute_gym.config import EvaluationConfig, ScenarioConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim import Outcome

Numbers = Mapping[str, FloatArray]
"""Metric to the estimate and the bootstrap's, (1 + n_resamples,)."""


def summed_up(
    given: ScenarioConfig,
    scenario: ScenarioConfig,
    rate: Rate,
    evaluation: EvaluationConfig,
    outcomes: Mapping[str, Callable[[], Sequence[Outcome]]],
    upper_bounds: Sequence[str] = (),
) -> ScenarioResult:
    """Sums a scenario up.

    Args:
        given: the scenario as it was read.
        scenario: settled.
        rate: of the requests.
        evaluation: the baseline and the statistics.
        outcomes: router to what reads its outcomes on the common runs; one is read at a time.
        upper_bounds: routers that know what no router can know.
    """
    n_replicas = scenario.cluster.n_replicas
    results, numbers, unstable = _measured(outcomes, evaluation, n_replicas)
    baseline = str(evaluation.baseline)
    fair = {router: one for router, one in numbers.items() if router not in upper_bounds}
    confidence = evaluation.confidence
    to_baseline = {
        key: _ratios(numbers, key, baseline, confidence) for key in RATIOS if baseline in numbers
    }
    to_best = {key: _ratios(numbers, key, _best(fair, key), confidence) for key in RATIOS if fair}
    upper = next((router for router in upper_bounds if router in numbers), None)
    regret = {} if upper is None else _ratios(numbers, "e2e_mean_s", upper, confidence)
    return ScenarioResult(
        name=given.name,
        title=given.title or given.name,
        group=given.section or "scenarios",
        load=given.load,
        qps=rate.qps,
        capacity_rps=rate.capacity_rps,
        n_replicas=n_replicas,
        requests=evaluation.requests,
        runs=evaluation.runs,
        baseline=baseline,
        results=tuple(results),
        ratio_to_baseline=to_baseline,
        ratio_to_best=to_best,
        regret={
            router: Estimate(one.value - 1, one.low - 1, one.high - 1)
            for router, one in regret.items()
        },
        unstable=unstable,
        upper_bounds=tuple(upper_bounds),
        detail=title_of(scenario, rate.qps),
    )


def _measured(
    outcomes: Mapping[str, Callable[[], Sequence[Outcome]]],
    evaluation: EvaluationConfig,
    n_replicas: int,
) -> tuple[list[RouterResult], dict[str, Numbers], dict[str, float]]:
    """Returns the metrics and the numbers of stable routers, and the growth of unstable ones."""
    counts = Resampling.of_runs(evaluation.runs, evaluation).runs
    results: list[RouterResult] = []
    numbers: dict[str, Numbers] = {}
    unstable: dict[str, float] = {}
    for router, read in outcomes.items():
        runs = read()
        grown = growth(runs)
        if grown.unstable:
            unstable[router] = grown.per_s
            continue
        found = resampled(runs, counts, evaluation.slo, n_replicas)
        results.append(result_of(router, found, runs, counts, evaluation))
        numbers[router] = {key: found[key] for key in RATIOS}
    return results, numbers, unstable


def _best(numbers: Mapping[str, Numbers], key: str) -> str:
    """Returns the router with the best estimate, the first on a tie."""
    sign = -1.0 if key in MORE_IS_BETTER else 1.0
    return min(numbers, key=lambda router: sign * float(numbers[router][key][0]))


def _ratios(
    numbers: Mapping[str, Numbers], key: str, other: str, confidence: float
) -> dict[str, Estimate]:
    """Returns each router's metric over another router's, paired."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            router: estimate(one[key] / numbers[other][key], confidence)
            for router, one in numbers.items()
        }
