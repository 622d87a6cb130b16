"""A rule that weighs requests in flight against memory in use."""

import math

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.base import Router, in_flight


class LeastOutstandingHybrid(Router):
    """Lowest a n / max(n) + (1 - a) k, n requests in flight and k the share of KV blocks in use.

    Ties go round robin: to the first tied replica after the last one chosen. Where nothing is in
    flight the first term is 0. Source: the tuning log names it; the definition is ours.

    Args:
        load_weight: a, from 0 to 1.

    Raises:
        InputError: the weight is out of range.
    """

    name = "lor_hybrid"

    def __init__(self, load_weight: float = 0.5) -> None:
        if not (math.isfinite(load_weight) and 0 <= load_weight <= 1):
            raise InputError(f"load_weight of lor_hybrid must be from 0 to 1, got {load_weight}")
        self.load_weight = load_weight
        self._next = 0

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Lets the first tie go to the lowest index."""
        self._next = 0

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the allowed replica with the lowest score, on a tie the next in turn."""
        scores = np.where(mask, self.scores(rows), np.inf)
        tied = np.flatnonzero(scores == scores.min())
        replica = int(tied[np.argmax(tied >= self._next)])
        self._next = (replica + 1) % len(mask)
        return replica

    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns one number per replica, shape (n_replicas,); lower is better."""
        n = in_flight(rows)
        load = n / max(float(n.max()), 1.0)
        score: FloatArray = (
            self.load_weight * load + (1.0 - self.load_weight) * rows[:, Signal.KV_USAGE]
        )
        return score
