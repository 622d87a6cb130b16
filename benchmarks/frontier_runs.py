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
from llmroute_gym.compare.search.pools import Pool, pools_of
from llmroute_gym.compare.search.space import Space, tuned_ranges
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.compare.statistics import Estimate, Pooled, Resampling, estimate
from llmroute_gym.config import EvaluationConfig, SearchConfig, SearchingConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers import Router, available, make
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.outcome import latency_s

FRONTIER = "frontier"
FAMILY = "estimated_latency"
TUNED = "tuned "
"""Stands before the name of a rule whose constants were tuned for the case."""


class Budgets(NamedTuple):
    """How much a rule is tuned for a case."""

    plain: int
    """Candidates for each plain rule, each on 4 workloads of 1,000 requests."""
    family: int
    """Candidates for the estimated latency."""


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
    """Pooled latencies of a rule in a case."""

    e2e_s: FloatArray
    ttft_s: FloatArray


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


def tuned_rule(case: Case, name: str, budget: int, traces: str) -> Router:
    """Returns a rule with the constants that a search finds for this very case."""
    router = make(name)
    settings = settings_of(
        case, traces, router=name, budget=budget, requests=1000, workers=1, seed=SEED + 1
    )
    pools, space = pools_of(settings), Space.of(name, router)
    search = settings.search
    with tempfile.TemporaryDirectory() as folder, Workers(pools, search) as workers:
        history = History(Path(folder) / "history.csv", space)
        with tqdm(total=budget, disable=True) as bar:
            Course(space, search, None, workers, history).run(bar)
        found = chosen(space, history.candidates, search, None, workers)
    return space.with_constants(found.constants)


def entrants(case: Case, budgets: Budgets, traces: str) -> dict[str, Router]:
    """Returns all rules that serve a case."""
    frontier = make(FRONTIER)
    if case.predicted:
        frontier = replace(frontier, predicted_output_sigma=0.5)  # type: ignore[type-var]
    rules = {FRONTIER: frontier} | {name: make(name) for name in zoo()}
    if case.tuned:
        for name in zoo():
            if tuned_ranges(rules[name]):
                rules[TUNED + name] = tuned_rule(case, name, budgets.plain, traces)
        rules[TUNED + FAMILY] = tuned_rule(case, FAMILY, budgets.family, traces)
    return rules


def measure(case: Case, budgets: Budgets, traces: str, runs: int | None = None) -> Found:
    """Serves a case by all rules and compares `frontier` with the best of each kind."""
    (pool,) = pools_of(settings_of(case, traces))
    rules = entrants(case, budgets, traces)
    n_runs = runs or case.runs
    slow: list[BoolArray] = []
    e2e: dict[str, list[FloatArray]] = {name: [] for name in rules}
    ttft: dict[str, list[FloatArray]] = {name: [] for name in rules}
    for run in range(n_runs):
        rng = np.random.default_rng([SEED, run])
        workload, cluster = pool.draw(case.requests, rng)
        slow.append(while_slow(workload, cluster))
        seed = int(rng.integers(2**31))
        for name, rule in rules.items():
            outcome = _bench(pool, workload, cluster, seed).serve(rule)
            e2e[name].append(latency_s(outcome, "e2e"))
            ttft[name].append(latency_s(outcome, "ttft"))
    counts = Resampling.of_runs(n_runs, EvaluationConfig(runs=n_runs, seed=SEED)).runs
    whole = {name: p99(values, counts) for name, values in e2e.items()}
    first = {name: p99(values, counts) for name, values in ttft.items()}
    plain = [name for name in rules if name.startswith(TUNED) and name != TUNED + FAMILY]
    inside = None
    if case.slow is not None:
        kept = {
            name: p99([one[at] for one, at in zip(e2e[name], slow, strict=True)], counts)
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


def _bench(pool: Pool, workload: Workload, cluster: Cluster, seed: int) -> Bench:
    return Bench(workload, cluster, seed, pool.observation, pool.scenario.view, keeps=False)


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


def p99(runs: Sequence[FloatArray], counts: np.ndarray) -> FloatArray:
    """Returns the 99th percentile over the requests of all runs for each row of counts."""
    run_of = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    return Pooled.of(np.concatenate(runs), run_of).percentiles(counts, (99.0,))[:, 0]


def ratio(found: Mapping[str, FloatArray], others: Sequence[str]) -> Ratio:
    """Returns what `frontier` has over the best of others, by their estimates."""
    best = min(others, key=lambda name: float(found[name][0]))
    return Ratio(best, estimate(found[FRONTIER] / found[best]))
