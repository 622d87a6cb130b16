"""A made-up suite: many routers, hostile names, an unstable router, an upper bound."""

import math
from functools import cache

import numpy as np

from llmroute_gym.compare.statistics import Estimate, RouterResult, compare
from llmroute_gym.compare.suites.result import RATIOS, Ratios, ScenarioResult, SuiteResult
from llmroute_gym.config import SLO, EvaluationConfig
from tests.compare.outcomes import outcome

HOSTILE = "</script><script>window.broken=1</script><b>\"x'&amp;$_{y}"
"""A router's name as nobody should choose it."""
ROUTERS = ("round_robin", "lor", "random", *(f"rule_{number}" for number in range(8)), HOSTILE)
ORACLE = "oracle"
HOSTILE_SCENARIO = "odd \"<i>'& scenario"


@cache
def some_suite() -> SuiteResult:
    """Returns a suite with four loads, one scenario apart, and one in which nothing is stable."""
    scenarios = [_scenario(f"equal_{load}", "Equal replicas", load / 100) for load in (50, 70, 95)]
    scenarios.append(_scenario(HOSTILE_SCENARIO, "Odd ones", None))
    unstable = dict.fromkeys((*ROUTERS, ORACLE), 2.5)
    scenarios.append(_scenario("flood", "Odd ones", None, unstable=unstable))
    return SuiteResult(
        name="core",
        version="1.0",
        date="2026-11-26",
        seed=7,
        confidence=0.95,
        routers=(*ROUTERS, ORACLE),
        scenarios=tuple(scenarios),
        left_out={"mooncake": "the trace is <absent>"},
    )


def _scenario(
    name: str, group: str, load: float | None, *, unstable: dict[str, float] | None = None
) -> ScenarioResult:
    unstable = {"random": 0.25} if load == 0.95 else unstable or {}
    stable = [router for router in (*ROUTERS, ORACLE) if router not in unstable]
    results = _results(stable, load or 0.6)
    ratios = _ratios(results)
    entrants = {
        metric: {router: one for router, one in found.items() if router != ORACLE}
        for metric, found in ratios.items()
    }
    return ScenarioResult(
        name=name,
        title=f"requests to 4 replicas, {name}",
        group=group,
        load=load,
        qps=4.0,
        capacity_rps=None if load is None else 8.0,
        n_replicas=4,
        requests=50,
        runs=4,
        baseline="round_robin",
        results=tuple(results),
        ratio_to_baseline=ratios,
        ratio_to_best=entrants,
        regret=ratios.get("e2e_mean_s", {}),
        unstable=unstable,
        upper_bounds=(ORACLE,),
    )


def _results(routers: list[str], load: float) -> list[RouterResult]:
    if not routers:
        return []
    rng = np.random.default_rng(3)
    scales = {router: (1 + 0.1 * place) / (1 - load) for place, router in enumerate(routers)}
    runs = {
        router: [outcome(rng.exponential(scale, 50)) for _ in range(4)]
        for router, scale in scales.items()
    }
    # One router rejects requests, so that its latencies are infinite.
    runs[HOSTILE] = [outcome(run.e2e_s, rejected=2) for run in runs[HOSTILE]]
    config = EvaluationConfig(runs=4, requests=50, resamples=50, slo=SLO(ttft_s=2.0))
    results = compare(runs, "round_robin", config, 4)
    cached = Estimate(0.4, 0.35, 0.45)
    return [
        RouterResult(
            one.router, {**one.metrics, "cached_token_share": cached}, one.served, one.differences
        )
        for one in results
    ]


def _ratios(results: list[RouterResult]) -> Ratios:
    found: dict[str, dict[str, Estimate]] = {}
    for metric in RATIOS if results else ():
        base = results[0].metrics[metric].value
        found[metric] = {}
        for one in results:
            ratio = one.metrics[metric].value / base if math.isfinite(base) else math.nan
            found[metric][one.router] = Estimate(ratio, 0.9 * ratio, 1.1 * ratio)
    return found
