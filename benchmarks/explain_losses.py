"""What rules lose against `frontier` on requests that no search has used."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from frontier_cases import SEED, SIMPLE, Case
from frontier_runs import FRONTIER, p99, settings_of

from llmroute_gym.compare.search.bench import Bench
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.statistics import Estimate, Resampling, estimate
from llmroute_gym.config import EvaluationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.sim.outcome import latency_s

PREDICTED = 0.5
"""Log-normal error of the output lengths that rules are told where they are."""


class Losses(NamedTuple):
    """What rules achieve in a case."""

    case: Case
    e2e_p99_s: Estimate
    """Of `frontier`."""
    ratios: dict[str, Estimate]
    """P99 end to end over that of `frontier`, by rule."""
    ttft: dict[str, Estimate]
    """P99 TTFT over that of `lor`, of `frontier` too."""
    simple: str
    """The best of the simple rules."""


def losses(case: Case, rules: Mapping[str, Router], traces: str, runs: int) -> Losses:
    """Serves a case by `frontier`, by simple rules and by others.

    Args:
        case: the scenario.
        rules: the others, by their titles.
        traces: folder with the public traces.
        runs: workloads at the most, of those that the case has.
    """
    (pool,) = pools_of(settings_of(case, traces))
    everyone: dict[str, Router] = {name: make(name) for name in (FRONTIER, *SIMPLE)}
    everyone |= dict(rules)
    if case.predicted:
        everyone = {title: _told(rule) for title, rule in everyone.items()}
    n_runs = min(runs, case.runs)
    e2e: dict[str, list[FloatArray]] = {title: [] for title in everyone}
    ttft: dict[str, list[FloatArray]] = {title: [] for title in everyone}
    for run in range(n_runs):
        rng = np.random.default_rng([SEED, run])
        workload, cluster = pool.draw(case.requests, rng)
        view, seed = pool.scenario.view, int(rng.integers(2**31))
        for title, rule in everyone.items():
            bench = Bench(workload, cluster, seed, pool.observation, view, keeps=False)
            outcome = bench.serve(rule)
            e2e[title].append(latency_s(outcome, "e2e"))
            ttft[title].append(latency_s(outcome, "ttft"))
    counts = Resampling.of_runs(n_runs, EvaluationConfig(runs=n_runs, seed=SEED)).runs
    whole = {title: p99(values, counts) for title, values in e2e.items()}
    first = {title: p99(values, counts) for title, values in ttft.items()}
    own, simple = whole[FRONTIER], min(SIMPLE, key=lambda name: float(whole[name][0]))
    return Losses(
        case,
        estimate(own),
        {title: estimate(one / own) for title, one in whole.items() if title != FRONTIER},
        {title: estimate(one / first["lor"]) for title, one in first.items()},
        simple,
    )


def of_fleet(found: Sequence[Losses], fleet: str) -> list[Losses]:
    """Returns the cases of `mixed` or `equal` fleets of four replicas, without predictions."""
    sure = (one for one in found if not one.case.predicted and "replicas" not in one.case.name)
    return [one for one in sure if one.case.name.startswith(fleet)]


def mean_ratio(found: Sequence[Losses], title: str, fleet: str) -> float:
    """Returns the geometric mean of a rule's ratios over the cases of a fleet."""
    cases = of_fleet(found, fleet)
    return float(np.exp(np.mean([np.log(one.ratios[title].value) for one in cases])))


def kept(found: Sequence[Losses], title: str, fleet: str) -> float:
    """Returns how much of the gain over the best simple rule another keeps, in logarithms."""
    cases = of_fleet(found, fleet)
    gain = np.sum([np.log(one.ratios[one.simple].value) for one in cases])
    lost = np.sum([np.log(one.ratios[title].value) for one in cases])
    return float(1 - lost / gain)


def _told(rule: Router) -> Router:
    """Returns a rule that is told output lengths, if it reads them."""
    if isinstance(rule, EstimatedLatency):
        return replace(rule, predicted_output_sigma=PREDICTED)
    return rule
