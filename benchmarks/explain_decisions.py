"""Decisions of a rule, recorded in simulation, and what it would have made of others like them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from explain_formula import FEATURES, IF_MIXED
from frontier_cases import SEED, Case
from frontier_runs import settings_of

from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.space import tuned_ranges
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import Router
from llmroute_gym.routers.estimated_latency import EstimatedLatency, estimated_scores
from llmroute_gym.sim import Cluster

WARM_UP = 100
"""Decisions at the start of a run that are left out: the replicas are empty."""
REQUESTS = 1000
"""Of a recorded run."""
NEIGHBOURS = 100
"""Recorded rows that a typical one is the median of."""


PENDING = (
    Signal.WAITING,
    Signal.PENDING_PROMPT_TOKENS,
    Signal.OLDEST_WAITING_S,
    Signal.UNCACHED_TOKENS,
    Signal.UNCACHED_PAIRS,
)
"""What tells of requests without first token."""


class Decision(NamedTuple):
    """What a rule knew when it decided."""

    rows: FloatArray
    """(n_replicas, N_SIGNALS)"""
    mask: BoolArray
    memory: FloatArray
    """The rule's, as it was before."""


class Recorder(Router):
    """Decides as a rule does, and keeps what it knew.

    Args:
        rule: one that scores.
    """

    name = "recorder"

    def __init__(self, rule: EstimatedLatency) -> None:
        self._rule = rule
        self.observation = rule.observation
        self.decisions: list[Decision] = []

    def meet(self, cluster: Cluster) -> None:
        """Introduces the rule."""
        self._rule.meet(cluster)

    def join(self, told: ObservationConfig, gateway: int) -> None:
        """Says to the rule what it will be told."""
        self._rule.join(told, gateway)

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Lets the rule forget the past."""
        self._rule.reset(n_replicas, n_requests, rng)

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns what the rule decides."""
        self.decisions.append(Decision(rows.copy(), mask.copy(), self._rule.memory.copy()))
        return self._rule.route(rows, mask)


def recorded(case: Case, rule: EstimatedLatency, traces: str) -> list[Decision]:
    """Returns the decisions of a run of a case, without those at its start."""
    (pool,) = pools_of(settings_of(case, traces))
    workload, cluster = pool.draw(REQUESTS, np.random.default_rng([SEED, 0]))
    recorder, view = Recorder(rule), pool.scenario.view
    serve(recorder, [workload], cluster, EvaluationConfig(), pool.observation, view=view)
    return recorder.decisions[WARM_UP:]


def scores(rule: EstimatedLatency, one: Decision, rows: FloatArray | None = None) -> FloatArray:
    """Returns the scores of a decision, (n_replicas,), or of other rows in its place."""
    seen = one.rows if rows is None else rows
    return estimated_scores(seen, one.mask.copy(), rule.constants(), one.memory.copy()).copy()


def choice(rule: EstimatedLatency, one: Decision) -> int:
    """Returns what a rule chooses there, the first of equals."""
    return int(np.where(one.mask, scores(rule, one), np.inf).argmin())


def changed(
    rule: EstimatedLatency, other: EstimatedLatency, decisions: Sequence[Decision]
) -> float:
    """Returns the share of decisions in which two rules differ."""
    return float(np.mean([choice(rule, one) != choice(other, one) for one in decisions]))


def _unweighted(rule: EstimatedLatency, feature: str) -> dict[str, float]:
    """Returns the constants that weigh a feature, each 0."""
    ends = ("", "_by_prompt", "_by_output", "_if_mixed")
    return {f"{feature}{end}": 0.0 for end in ends if f"{feature}{end}" in tuned_ranges(rule)}


def without_terms(rule: EstimatedLatency) -> dict[str, EstimatedLatency]:
    """Returns the rule without each of its terms, by the term's name in words."""
    lowest = tuned_ranges(rule)["pace_per_request"].low
    by_prompt = [name for name in tuned_ranges(rule) if name.endswith("_by_prompt")]
    by_output = [name for name in tuned_ranges(rule) if name.endswith("_by_output")]
    removed: dict[str, dict[str, float]] = {
        "estimate: requests in flight": {"pace_per_request": lowest},
        "estimate: context": {"pace_per_context": 0.0},
        "estimate: price of KV": {"kv_price": 0.0},
        "estimate: prefill": {"prefill": 0.0},
        "estimate: prompt's own prefill": {"own_prefill": 0.0},
        "estimate: oldest waiting": {"waited": 0.0},
        "estimate: speed": {"speed_power": 0.0, "speed_by_prompt": 0.0, "speed_by_output": 0.0},
        **{f"feature: {name.replace('_', ' ')}": _unweighted(rule, name) for name in FEATURES},
        "weights by prompt length": dict.fromkeys(by_prompt, 0.0),
        "weights by predicted length": dict.fromkeys(by_output, 0.0),
        "weights where speeds differ": dict.fromkeys(IF_MIXED, 0.0),
        "recent, if cold": {"recent_if_cold": 0.0},
        "uncached, by load": {"uncached_by_load": 0.0},
        "other gateways": {"of_all": 0.0},
        "attention": {"attention": 0.0},
        "progress of prefill": {"progress": 0.0},
    }
    found = {}
    for title, changes in removed.items():
        if any(getattr(rule, name) != value for name, value in changes.items()):
            found[title] = replace(rule, **changes)
    return found


def timeless(rule: EstimatedLatency) -> EstimatedLatency:
    """Returns the rule without `slowness`, which takes requests that a row has lost for ended."""
    return replace(rule, **_unweighted(rule, "slowness"))


def fresh(rule: EstimatedLatency, rows: FloatArray) -> Decision:
    """Returns a decision by a rule that remembers nothing."""
    return Decision(rows, np.ones(len(rows), dtype=np.bool_), rule.empty_memory(len(rows), 0))


def response(
    rule: EstimatedLatency,
    typical: FloatArray,
    usual: Mapping[Signal, float],
    vary: Signal,
    values: FloatArray,
    also: Mapping[Signal, float],
) -> FloatArray:
    """Returns how much higher the score is than usual as one signal varies, all else equal.

    Args:
        rule: that scores.
        typical: rows, (n, N_SIGNALS), one replica of a decision each.
        usual: what is set in all of them, and what the score is compared with.
        vary: the signal.
        values: of it, (n_values,).
        also: what is set further in the rows that vary; what they are compared with has the prompt
            of this, as a prompt is the same for all replicas.

    Returns:
        (n, n_values), logarithms.
    """
    rule, found = timeless(rule), np.empty((len(typical), len(values)))
    for number, row in enumerate(typical):
        rows = np.tile(row, (len(values) + 1, 1))
        for signal, value in usual.items():
            rows[:, signal] = value
        for signal, value in also.items():
            rows[:-1, signal] = value
        rows[:-1, vary] = values
        if vary in COMMON:
            found[number] = _one_by_one(rule, rows, vary)
            continue
        for signal in COMMON:
            rows[-1, signal] = rows[0, signal]
        own = scores(rule, fresh(rule, rows))
        found[number] = own[:-1] - own[-1]
    return found


COMMON = (Signal.PROMPT_TOKENS, Signal.PREDICTED_OUTPUT_TOKENS)
"""Of the request, the same for all replicas."""


def _one_by_one(rule: EstimatedLatency, rows: FloatArray, vary: Signal) -> FloatArray:
    """Returns what each row has over the last, whose request is of that row's length."""
    differences = []
    for row in rows[:-1]:
        pair = np.stack([row, rows[-1]])
        pair[1, vary] = row[vary]
        own = scores(rule, fresh(rule, pair))
        differences.append(own[0] - own[1])
    return np.array(differences)


def typical_row(decisions: Sequence[Decision], speed: float, in_flight: float) -> FloatArray:
    """Returns the median of the recorded rows of a speed that are nearest in requests in flight.

    No prefill is pending there, which comes and goes: medians would jump with it.
    """
    rows = np.concatenate([one.rows[one.rows[:, Signal.SPEED] == speed] for one in decisions])
    apart = np.abs(rows[:, Signal.IN_FLIGHT] - in_flight)
    row: FloatArray = np.median(rows[np.argsort(apart, kind="stable")[:NEIGHBOURS]], axis=0)
    row[Signal.IN_FLIGHT] = in_flight
    row[list(PENDING)] = 0.0
    return row


def duel(
    rule: EstimatedLatency,
    fast: FloatArray,
    slow: FloatArray,
    prompts: FloatArray,
) -> FloatArray:
    """Returns how much higher the fast replicas score than the slow one.

    Args:
        rule: that scores.
        fast: rows (n, N_SIGNALS) of a fast replica, the busier the further on.
        slow: a row (N_SIGNALS,).
        prompts: tokens of the request, (n_prompts,).

    Returns:
        (n_prompts, n), logarithms; below 0 the fast one is chosen.
    """
    rule, rows = timeless(rule), np.vstack([fast, slow])
    found = np.empty((len(prompts), len(fast)))
    for number, prompt in enumerate(prompts):
        rows[:, Signal.PROMPT_TOKENS] = prompt
        own = scores(rule, fresh(rule, rows))
        found[number] = own[:-1] - own[-1]
    return found


def most_more(lead: FloatArray, in_flight: FloatArray) -> float:
    """Returns up to how many requests more in flight a fast replica is chosen.

    Args:
        lead: (n,) how much higher it scores, by requests in flight.
        in_flight: (n,), rising.

    Returns:
        Where it is the other's turn first, interpolated; infinite if never, below 0 if always.
    """
    above = np.flatnonzero(lead >= 0)
    if not len(above):
        return float("inf")
    at = int(above[0])
    if at == 0:
        return -1.0
    share = -lead[at - 1] / (lead[at] - lead[at - 1])
    return float(in_flight[at - 1] + share * (in_flight[at] - in_flight[at - 1]))
