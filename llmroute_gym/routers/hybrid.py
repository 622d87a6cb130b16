"""A rule that weighs requests in flight against memory in use."""

import numpy as np

from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.checks import number
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.base import Router, in_flight


class LeastOutstandingHybrid(Router):
    """Lowest a n / max(n) + (1 - a) k, n requests in flight and k the share of KV blocks in use.

    Ties go round robin: to the first tied replica after the last one chosen. Where nothing is in
    flight the first term is 0. Source: the tuning log names it; the definition is ours.

    Args:
        a: weight of the load, from 0 to 1.

    Raises:
        InputError: the weight is out of range.
    """

    name = "lor_hybrid"

    def __init__(self, a: float = 0.5) -> None:
        self.a = number("a of lor_hybrid", a, at_least=0)
        if self.a > 1:
            raise InputError(f"a of lor_hybrid must be a number from 0 to 1, got {shown(a)}")
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
        score: FloatArray = self.a * load + (1.0 - self.a) * rows[:, Signal.KV_USAGE]
        return score
