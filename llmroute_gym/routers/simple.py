"""Routers that count requests or tokens, or nothing at all."""

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.base import DrawingRouter, Router, ScoreRouter, in_flight


class Random(DrawingRouter):
    """Uniform over the replicas."""

    name = "random"

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns one of the allowed replicas."""
        allowed = np.flatnonzero(mask)
        return int(allowed[int(self.draws.take()[0] * len(allowed))])


class RoundRobin(Router):
    """Cyclic: request i goes to replica i mod N, skipping replicas that may not be chosen."""

    name = "round_robin"

    def __init__(self) -> None:
        self._next = 0

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Starts again at replica 0."""
        self._next = 0

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the next allowed replica."""
        allowed = np.flatnonzero(mask)
        replica = int(allowed[np.argmax(allowed >= self._next)])
        self._next = (replica + 1) % len(mask)
        return replica

    def possible(
        self, rows: FloatArray, mask: BoolArray, rng: np.random.Generator, *, ordered: bool = True
    ) -> FloatArray:
        """Returns 1 for the replica whose turn it is: its memory stands in the rows."""
        turns = np.where(mask, rows[:, Signal.ROUNDS_SINCE_CHOSEN], -1.0)
        turn: FloatArray = np.eye(len(mask))[turns.argmax()]
        return turn


class JoinShortestQueue(ScoreRouter):
    """Fewest waiting requests; restarted ones count; ties by lowest index. Textbook JSQ."""

    name = "jsq"

    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns the waiting requests."""
        return rows[:, Signal.WAITING]


class LeastPending(JoinShortestQueue):
    """What Vidur calls `lor`: the same rule as `jsq`, kept by its own name for parity."""

    name = "lor_pending"


class LeastOutstanding(ScoreRouter):
    """Fewest requests in flight, waiting and running; ties by lowest index.

    Source: Envoy least-request (full scan), AIBrix least-request, LiteLLM least-busy.
    """

    name = "lor"

    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns the requests in flight."""
        return in_flight(rows)


class PowerOfTwo(DrawingRouter):
    """Two replicas at random without replacement, the one with fewer requests in flight.

    The first drawn wins a tie. Source: Envoy, Ray Serve, SGLang; Mitzenmacher 2001.
    """

    name = "power_of_two"
    per_request = 2

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the less loaded of two allowed replicas."""
        allowed = np.flatnonzero(mask)
        u, v = self.draws.take()
        first = int(u * len(allowed))
        if len(allowed) == 1:
            return int(allowed[0])
        second = int(v * (len(allowed) - 1))
        second += second >= first
        load = in_flight(rows)
        a, b = int(allowed[first]), int(allowed[second])
        return b if load[b] < load[a] else a


class LeastTokens(ScoreRouter):
    """Fewest prompt tokens still to prefill, this request's included; ties by lowest index.

    Source: the token join-shortest-queue of splitwise-sim, llm-d's token-load scorer.
    """

    name = "least_tokens"

    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns the outstanding prompt tokens."""
        return rows[:, Signal.PENDING_PROMPT_TOKENS] + rows[:, Signal.PROMPT_TOKENS]


class SpeedLeastOutstanding(ScoreRouter):
    """Least (requests in flight + 1) / speed; ties by lowest index. Queueing folklore."""

    name = "speed_lor"

    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns the requests in flight per unit of speed."""
        return (in_flight(rows) + 1.0) / rows[:, Signal.SPEED]
