"""Rules of which the best constants are known."""

from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Rule


@decision
def lopsided(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Sends the share constants[0] to the first of two replicas."""
    return 0 if draws[0] < constants[0] else 1


@dataclass
class Lopsided(Rule):
    """For two equal replicas; the best share is a half."""

    name = "lopsided"
    decide = lopsided
    per_request = 1

    share: float = constant(0.85, 0.05, 0.95)


@decision
def in_spells(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Takes the replicas in turn, each for a spell, and the first one now and then."""
    turn = int(memory[0] / constants[0]) % len(mask)
    memory[0] += 1
    return 0 if draws[0] < constants[1] else turn


@dataclass
class InSpells(Rule):
    """For equal replicas; the shorter the spells, and the fewer exceptions, the better."""

    name = "in_spells"
    decide = in_spells
    per_request = 1

    spell: int = constant(20, 1, 200, logarithmic=True, whole=True)
    exceptions: float = constant(0.2, 0.0, 1.0)
    delay: float = constant(1.0, 0.0, 5.0, tuned=False)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns the number of requests so far."""
        return np.zeros(1)
