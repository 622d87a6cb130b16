"""What rules lose against `frontier` on requests that no search has used."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from frontier_cases import SIMPLE, Case
from frontier_runs import FRONTIER, counts_of, p99s, serve_case, told_lengths

from llmroute_gym.compare.statistics import Estimate, estimate
from llmroute_gym.routers import Router, make


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
    everyone: dict[str, Router] = {name: make(name) for name in (FRONTIER, *SIMPLE)}
    everyone |= dict(rules)
    everyone = {title: told_lengths(case, rule) for title, rule in everyone.items()}
    n_runs = min(runs, case.runs)
    served, _ = serve_case(case, everyone, traces, n_runs)
    whole, first = p99s(served, counts_of(n_runs))
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
