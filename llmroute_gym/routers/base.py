"""The interface of a router: rows in, the index of a replica out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal

DRAWS = 32
"""How often a rule is asked what it might choose."""


class Router(ABC):
    """Chooses a replica for each request from what the rows tell and its own memory.

    Rows are what a learned policy sees, unscaled: shape (n_replicas, N_SIGNALS), see
    `llmroute_gym.ground.signals.Signal`.

    Attributes:
        name: as in `llmroute_gym.routers.available()`.
        observation: what it wants to be told; None takes what it gets.
    """

    name: ClassVar[str]
    observation: ObservationConfig | None = None

    def reset(  # noqa: B027  (many rules have no memory)
        self, n_replicas: int, n_requests: int, rng: np.random.Generator
    ) -> None:
        """Forgets the past; called once before a run.

        Args:
            n_replicas: replicas of the cluster.
            n_requests: requests to come.
            rng: all of the router's randomness.
        """

    @abstractmethod
    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the index of the replica for the request at hand.

        Args:
            rows: (n_replicas, N_SIGNALS).
            mask: (n_replicas,), the replicas that may be chosen; at least one.
        """

    def possible(
        self, rows: FloatArray, mask: BoolArray, rng: np.random.Generator, *, ordered: bool = True
    ) -> FloatArray:
        """Returns how probable each choice is to one who sees the rows only, shape (n_replicas,).

        The rule itself is asked, with memories and random numbers drawn anew. Overwrite it where
        the rows tell more, such as whose turn it is.

        Args:
            rows: (n_replicas, N_SIGNALS).
            mask: (n_replicas,).
            rng: draws memories, random numbers and orders.
            ordered: whether the one who sees the rows knows the replicas' order; if not, the order
                is shuffled, which leaves ties to chance.
        """
        n_replicas = len(mask)
        counts = np.zeros(n_replicas)
        for _ in range(DRAWS):
            order = np.arange(n_replicas) if ordered else rng.permutation(n_replicas)
            memory = int(rng.integers(n_replicas))
            self.reset(n_replicas, n_replicas, rng)
            for _ in range(memory):
                self.route(rows[order], mask[order])
            counts[order[self.route(rows[order], mask[order])]] += 1
        return counts / DRAWS


class ScoreRouter(Router):
    """Takes the replica with the lowest score, the lowest index on a tie."""

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the allowed replica with the lowest score."""
        return int(np.argmin(np.where(mask, self.scores(rows), np.inf)))

    @abstractmethod
    def scores(self, rows: FloatArray) -> FloatArray:
        """Returns one number per replica, shape (n_replicas,); lower is better."""


def in_flight(rows: FloatArray) -> FloatArray:
    """Returns the requests that the router has in flight to each replica, shape (n_replicas,)."""
    return rows[:, Signal.WAITING] + rows[:, Signal.RUNNING]


class UniformDraws:
    """Uniform numbers, drawn before the run so that both engines see the same ones.

    Args:
        per_request: numbers per request.
    """

    def __init__(self, per_request: int = 1) -> None:
        self.per_request = per_request
        self.values: npt.NDArray[np.float64] = np.empty((0, per_request))
        self._next = 0

    def reset(self, n_requests: int, rng: np.random.Generator) -> None:
        """Draws the numbers of a run, shape (n_requests, per_request)."""
        self.values = rng.random((n_requests, self.per_request))
        self._next = 0

    def take(self) -> FloatArray:
        """Returns the numbers of the next request, shape (per_request,)."""
        row: FloatArray = self.values[self._next]
        self._next += 1
        return row


class DrawingRouter(Router):
    """A router with randomness, drawn before the run.

    Attributes:
        draws: the uniform numbers of the run.
    """

    per_request: ClassVar[int] = 1

    def __init__(self) -> None:
        self.draws = UniformDraws(self.per_request)

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Draws the numbers of the run."""
        self.draws.reset(n_requests, rng)
