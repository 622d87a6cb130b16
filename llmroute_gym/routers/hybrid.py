"""A rule that weighs requests in flight against memory in use."""

from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest_in_turn
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _load_and_memory(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    n, a = len(mask), constants[0]
    most = 1.0
    for r in range(n):
        most = max(most, rows[r, Signal.IN_FLIGHT])
    for r in range(n):
        load = rows[r, Signal.IN_FLIGHT] / most
        memory[r] = a * load + (1.0 - a) * rows[r, Signal.KV_USAGE]
    replica = lowest_in_turn(memory, mask, int(memory[n]))
    memory[n] = (replica + 1) % n
    return replica


@dataclass
class LeastOutstandingHybrid(SeeingRule):
    """Lowest a n / max(n) + (1 - a) k, n requests in flight and k the share of KV blocks in use.

    Ties go round robin: to the first tied replica after the last one chosen. Where nothing is in
    flight the first term is 0. Source: the tuning log names it; the definition is ours.

    Args:
        a: weight of the load, from 0 to 1.
        poll_s: age of the engines' KV usage, seconds.

    Raises:
        InputError: the weight or the age is out of range.
    """

    name = "lor_hybrid"
    decide = _load_and_memory
    source = Source("ours, named in the tuning log", "-", "2026-11")

    a: float = constant(0.5, 0.0, 1.0)
    poll_s: float = poll(0.0)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the scores, and the first turn: of replica 0."""
        return np.zeros(n_replicas + 1)
