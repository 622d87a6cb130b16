"""What rules are made of: a decision, constants, what they are told, where they are from."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.constants import check_constants, constants_of
from llmroute_gym.routers.decision import Decision

SOME_RUN = 2**16
"""How many requests there are where nobody has said it."""


@dataclass(frozen=True)
class Source:
    """Where a rule is from.

    Attributes:
        system: that ships it, and the name it has there.
        version: of the system.
        read: when it was read there, such as ``"2026-11"``.
    """

    system: str
    version: str
    read: str


@dataclass
class Rule(Router):
    """A router whose rule is one plain function, which both engines run as it stands.

    A subclass is a dataclass: its fields are its options, those made by `constant` its constants.

    Attributes:
        decide: the rule.
        per_request: how many uniform numbers it gets for a decision.
        source: where it is from.
    """

    decide: ClassVar[Decision]
    per_request: ClassVar[int] = 0
    source: ClassVar[Source | None] = None

    def __post_init__(self) -> None:
        """Checks the constants.

        Raises:
            InputError: one of them is out of its range.
        """
        check_constants(self)
        self.draws: FloatArray = np.zeros((0, self.per_request))
        self.memory: FloatArray = np.zeros(0)
        self._next = 0

    def constants(self) -> FloatArray:
        """Returns what the decision is given as constants: those of the rule, in order."""
        return np.array([getattr(self, name) for name in constants_of(self)], dtype=np.float64)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns the memory that a run starts with, of a length of the rule's own.

        Unless overwritten, one number per replica, which a decision may fill with scores.
        """
        return np.zeros(n_replicas)

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Forgets the past and draws the numbers of a run."""
        self._rng = rng
        self.draws = rng.random((n_requests, self.per_request))
        self.memory = self.empty_memory(n_replicas, n_requests)
        self._constants = self.constants()
        self._next = 0

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns what the rule decides; without a `reset` it is at the start of some run.

        After more decisions than it was told of, it draws as many numbers anew.
        """
        if not len(self.draws):
            self.reset(len(mask), SOME_RUN, np.random.default_rng())
        if self._next == len(self.draws):
            self.draws, self._next = self._rng.random(self.draws.shape), 0
        draws = self.draws[self._next]
        self._next += 1
        return self.decide(rows, mask.copy(), draws, self._constants, self.memory)
