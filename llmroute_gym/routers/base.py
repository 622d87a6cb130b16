"""The interface of a router: rows in, the index of a replica out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run

DRAWS = 32
"""How often a rule is asked what it might choose."""


class Router(ABC):
    """Chooses a replica for each request from what the rows tell and its own memory.

    Rows are what a learned policy sees, unscaled: shape (n_replicas, N_SIGNALS), see
    `llmroute_gym.ground.signals.Signal`.

    Attributes:
        name: as in `llmroute_gym.routers.available()`.
        observation: what it wants to be told; None takes what it gets.
        upper_bound: whether it knows what no router can, so that nobody competes with it.
    """

    name: ClassVar[str]
    upper_bound: ClassVar[bool] = False
    observation: ObservationConfig | None = None

    def meet(self, cluster: Cluster) -> None:  # noqa: B027  (most rules know nothing of it)
        """Tells which replicas it is going to choose from; called before `reset`."""

    def join(self, told: ObservationConfig, gateway: int) -> None:  # noqa: B027  (few rules ask)
        """Says what it will be told, as which of the gateways from 0; called before `reset`."""

    def reset(  # noqa: B027  (many rules have no memory)
        self, n_replicas: int, n_requests: int, rng: np.random.Generator
    ) -> None:
        """Forgets the past; called once before a run.

        Args:
            n_replicas: replicas of the cluster.
            n_requests: requests to come.
            rng: all of the router's randomness.
        """

    def attend(self, run: Run) -> None:  # noqa: B027  (no router but an upper bound looks)
        """Shows the run itself, before the first decision; all that is true stands in it."""

    def lessons(self, n_requests: int) -> Sequence[int]:
        """Returns before which of its own decisions it is to be taught, rising, each above 0.

        Args:
            n_requests: most decisions that there will be.
        """
        return ()

    def learn(self, lesson: Lesson) -> None:  # noqa: B027  (few rules learn)
        """Tells what has become of the requests placed so far, at each of its `lessons`."""

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
