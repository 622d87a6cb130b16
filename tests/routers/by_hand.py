"""Rows written by hand, and rules that are asked about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers.rule import Rule


def rows(n_replicas: int, **columns: float | Sequence[float]) -> FloatArray:
    """Returns rows of zeros but for the given signals: one number per replica, or one for all."""
    table = np.zeros((n_replicas, N_SIGNALS))
    table[:, [Signal.SESSION, Signal.PROMPT_HEAD]] = -1
    table[:, [Signal.SPEED, Signal.AVAILABLE, Signal.FITS]] = 1
    for name, values in columns.items():
        table[:, Signal[name.upper()]] = values
    return table


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
