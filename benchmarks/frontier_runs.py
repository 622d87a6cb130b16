"""Serving the cases of `frontier_cases` by many rules, and tuning rules for one of them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from frontier_cases import SEED, SIMPLE, Case
from tqdm import tqdm

from llmroute_gym.compare.search.bench import Bench
from llmroute_gym.compare.search.choice import chosen
from llmroute_gym.compare.search.course import Course
from llmroute_gym.compare.search.history import History
from llmroute_gym.compare.search.measuring import Batch, Stage
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.scoring import score
from llmroute_gym.compare.search.space import Constants, Space, tuned_ranges
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.compare.statistics import Estimate, Pooled, Resampling, estimate
from llmroute_gym.config import EvaluationConfig, SearchConfig, SearchingConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.routers import Router, available, make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.outcome import latency_s

FRONTIER = "frontier"
FAMILY = "estimated_latency"
PREDICTED = 0.5
"""Log-normal error of the output lengths that rules are told where they are."""
Percentiles = dict[str, FloatArray]
"""Of each rule, (n_rows,)."""
REDUNDANT = ("_if_mixed", "_if_shared")
"""How constants end that say nothing which others do not where speeds and gateways never change."""
TUNED = "tuned "
"""Stands before the name of a rule whose constants were tuned for the case."""


class Budgets(NamedTuple):
    """How much a rule is tuned for a case."""

    plain: int
    """Candidates for each plain rule, each on 4 workloads of 1,000 requests."""
    family: int
    """Candidates of each search for the estimated latency."""
    family_searches: int
    """As many searches for it, of which the best counts: they end up to 17% apart."""


class Ratio(NamedTuple):
    """What `frontier` achieved over what the best of others did."""

    best: str
    value: Estimate


class Found(NamedTuple):
    """What was measured in one case."""

    case: Case
    e2e_p99_s: Estimate
    """Of `frontier`."""
    simple: Ratio
    round_robin: Ratio
    zoo: Ratio
    tuned: Ratio | None
    family: Ratio | None
    slow: Ratio | None
    ttft: Ratio


class Served(NamedTuple):
    """Latencies of a rule in a case, of each run, shapes (n_requests,)."""

    e2e_s: list[FloatArray]
    ttft_s: list[FloatArray]


def zoo() -> list[str]:
    """Returns the rules that compete as they ship."""
    others = (FAMILY, FRONTIER, "frontier_prefix")
    return [one for one in available() if one not in others and not make(one).upper_bound]


def settings_of(case: Case, traces: str, **searching: object) -> SearchConfig:
    """Returns the settings of a search on one case."""
    searching = {"requests": case.requests, **searching}
    return SearchConfig(
        search=SearchingConfig(scenarios=[dict(case.scenario)], **searching), traces=traces
    )


def tuned_rule(case: Case, name: str, budget: int, traces: str, searches: int = 1) -> Router:
    """Returns a rule with the constants that searches find for this very case.

    Args:
        case: whose scenario the candidates serve.
        name: of the rule.
        budget: candidates of each search.
        traces: folder of the traces.
        searches: as many, each of a seed of its own; the best of their winners is taken, by
            workloads that none of them was bred on or chosen by.
    """
    router = make(name)
    only = [one for one in tuned_ranges(router) if not one.endswith(REDUNDANT)]
    space = Space.of(name, router, only)
    all_settings = [
        settings_of(
            case, traces, router=name, budget=budget, requests=1000, workers=1, seed=SEED + number
        )
        for number in range(1, searches + 1)
    ]
    winners = [space.with_constants(searched(space, settings)) for settings in all_settings]
    if searches == 1:
        return winners[0]
    settings = all_settings[0]
    with Workers(pools_of(settings), settings.search) as workers:
        start, *logs = workers.measured([space.rule, *winners], Batch(Stage.PROOF))
        scores = [score(workers.measuring, one, start, None) for one in logs]
    return min(zip(scores, winners, strict=True), key=lambda one: one[0].objective)[1]


def searched(space: Space, settings: SearchConfig) -> Constants:
    """Returns the constants that one search chooses."""
    pools, search = pools_of(settings), settings.search
    with tempfile.TemporaryDirectory() as folder, Workers(pools, search) as workers:
        history = History(Path(folder) / "history.csv", space)
        with tqdm(total=search.budget, disable=True) as bar:
            Course(space, search, None, workers, history).run(bar)
        return chosen(space, history.candidates, search, None, workers).constants


def told_lengths(case: Case, rule: Router) -> Router:
    """Returns a rule that is told output lengths, if it reads them and the case predicts them."""
    if case.predicted and isinstance(rule, EstimatedLatency):
        return replace(rule, predicted_output_sigma=PREDICTED)
    return rule


def entrants(case: Case, budgets: Budgets, traces: str) -> dict[str, Router]:
    """Returns all rules that serve a case."""
    rules = {name: make(name) for name in zoo()}
    rules[FRONTIER] = told_lengths(case, make(FRONTIER))
    if case.tuned:
        for name in zoo():
            if tuned_ranges(rules[name]):
                rules[TUNED + name] = tuned_rule(case, name, budgets.plain, traces)
        rules[TUNED + FAMILY] = tuned_rule(
            case, FAMILY, budgets.family, traces, budgets.family_searches
        )
    return rules


def serve_case(
    case: Case, rules: Mapping[str, Router], traces: str, n_runs: int
) -> tuple[dict[str, Served], list[BoolArray]]:
    """Serves the workloads of a case by each rule.

    Returns:
        What each achieved, and of each run which requests arrive while a replica is slow.
    """
    (pool,) = pools_of(settings_of(case, traces))
    slow: list[BoolArray] = []
    served = {title: Served([], []) for title in rules}
    for run in range(n_runs):
        rng = np.random.default_rng([SEED, run])
        workload, cluster = pool.draw(case.requests, rng)
        slow.append(while_slow(workload, cluster))
        view, seed = pool.scenario.view, int(rng.integers(2**31))
        for title, rule in rules.items():
            bench = Bench(workload, cluster, seed, pool.observation, view, keeps=False)
            outcome = bench.serve(rule)
            served[title].e2e_s.append(latency_s(outcome, "e2e"))
            served[title].ttft_s.append(latency_s(outcome, "ttft"))
    return served, slow


def p99s(served: Mapping[str, Served], counts: IntArray) -> tuple[Percentiles, Percentiles]:
    """Returns each rule's P99 end to end and of the TTFT for each row of counts."""
    e2e = {title: p99(one.e2e_s, counts) for title, one in served.items()}
    return e2e, {title: p99(one.ttft_s, counts) for title, one in served.items()}


def counts_of(n_runs: int) -> IntArray:
    """Returns how often each run counts, the estimate's row first."""
    return Resampling.of_runs(n_runs, EvaluationConfig(runs=n_runs, seed=SEED)).runs


def measure(case: Case, budgets: Budgets, traces: str, runs: int | None = None) -> Found:
    """Serves a case by all rules and compares `frontier` with the best of each kind."""
    n_runs = runs or case.runs
    served, slow = serve_case(case, entrants(case, budgets, traces), traces, n_runs)
    counts = counts_of(n_runs)
    whole, first = p99s(served, counts)
    plain = [name for name in served if name.startswith(TUNED) and name != TUNED + FAMILY]
    inside = None
    if case.slow is not None:
        kept = {
            name: p99([one[at] for one, at in zip(served[name].e2e_s, slow, strict=True)], counts)
            for name in (*SIMPLE, FRONTIER)
        }
        inside = ratio(kept, SIMPLE)
    return Found(
        case=case,
        e2e_p99_s=estimate(whole[FRONTIER]),
        simple=ratio(whole, SIMPLE),
        round_robin=ratio(whole, ["round_robin"]),
        zoo=ratio(whole, zoo()),
        tuned=ratio(whole, [*zoo(), *plain]) if plain else None,
        family=ratio(whole, [TUNED + FAMILY]) if plain else None,
        slow=inside,
        ttft=ratio(first, ["lor"]),
    )


def while_slow(workload: Workload, cluster: Cluster) -> BoolArray:
    """Returns which requests arrive while a replica is slow, shape (n_requests,)."""
    arrived_s = workload.arrived_at_s
    slow = np.zeros(len(arrived_s), dtype=np.bool_)
    for replica in cluster:
        changes = [*replica.slowdowns, (np.inf, 1.0)]
        for (at_s, factor), (end_s, _) in pairwise(changes):
            if factor > 1:
                slow |= (arrived_s >= at_s) & (arrived_s < end_s)
    return slow


def p99(runs: Sequence[FloatArray], counts: IntArray) -> FloatArray:
    """Returns the 99th percentile over the requests of all runs for each row of counts."""
    run_of = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    return Pooled.of(np.concatenate(runs), run_of).percentiles(counts, (99.0,))[:, 0]


def with_interval(one: Estimate) -> str:
    """Returns an estimate and its interval as tables show them."""
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def ratio(found: Mapping[str, FloatArray], others: Sequence[str]) -> Ratio:
    """Returns what `frontier` has over the best of others, by their estimates."""
    best = min(others, key=lambda name: float(found[name][0]))
    return Ratio(best, estimate(found[FRONTIER] / found[best]))
