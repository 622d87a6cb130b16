"""Rows written by hand, and what a rule makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import N_SIGNALS, NO_NAME, Signal
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.rule import Rule
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica

N_REQUESTS = 6000


def rows(n_replicas: int, **columns: Any) -> FloatArray:
    """Rows of idle replicas of speed 1, with some columns filled in, by replica or alike for all.

    In flight are those that wait and run, unless it is given; the request has no session.
    """
    table = np.zeros((n_replicas, N_SIGNALS))
    table[:, [Signal.SESSION, Signal.PROMPT_HEAD]] = NO_NAME
    table[:, [Signal.SPEED, Signal.AVAILABLE, Signal.FITS]] = 1.0
    for name, values in columns.items():
        table[:, Signal[name.upper()]] = values
    if "in_flight" not in columns:
        table[:, Signal.IN_FLIGHT] = table[:, Signal.WAITING] + table[:, Signal.RUNNING]
    return table


def ready(rule: str | Mapping[str, Any], n_replicas: int, seed: int = 0) -> Router:
    """A rule at the start of a run."""
    router = make(rule)
    router.meet(Cluster((Replica(FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)),) * n_replicas))
    router.reset(n_replicas, N_REQUESTS, np.random.default_rng(seed))
    return router


def route(
    rule: str | Mapping[str, Any],
    table: FloatArray,
    mask: list[bool] | None = None,
    seed: int = 0,
) -> int:
    """What a rule chooses for the first request of a run."""
    allowed = np.ones(len(table), dtype=np.bool_) if mask is None else np.array(mask)
    return ready(rule, len(table), seed).route(table, allowed)


def chosen(rule: str | Mapping[str, Any], table: FloatArray, times: int = 200) -> set[int]:
    """What a rule may choose: with other random numbers each time, and no memory."""
    return {route(rule, table, seed=seed) for seed in range(times)}


def fresh(rule: Any, n_replicas: int, n_requests: int = 100, seed: int = 0) -> Any:
    """Returns the rule after a reset."""
    assert isinstance(rule, Rule)
    rule.reset(n_replicas, n_requests, np.random.default_rng(seed))
    return rule


def ask(rule: Any, table: FloatArray, without: Sequence[int] = ()) -> int:
    """Returns what the rule chooses where some replicas may not be chosen."""
    mask = np.ones(len(table), dtype=np.bool_)
    mask[list(without)] = False
    before = mask.copy()
    choice = rule.route(table, mask)
    assert (mask == before).all()
    assert mask[choice]
    return int(choice)
