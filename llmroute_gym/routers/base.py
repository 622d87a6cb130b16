"""The interface of a router: rows in, the index of a replica out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray

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
