"""A rule with a learned correction: a network adds to its scores, and starts by adding nothing."""

import math
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.rules import TITLE, parsed_rule
from llmroute_gym.ground.signals import N_SIGNALS
from llmroute_gym.routers.catalog import ROUTERS
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.estimated_latency import (
    EstimatedLatency,
    count_choice,
    estimated_scores,
)
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.policy_network import Network, packed_network, room_for, score_rows
from llmroute_gym.routers.rule import Rule
from llmroute_gym.sim.registry import build

_HEADER = 3
"""Constants before those of the rule: how many these are, and the two temperatures."""


@decision
def _score(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Scores the allowed replicas at the end of the memory, and chooses nobody."""
    estimated_scores(rows, mask, constants, memory)
    return -1


@block
def _drawn(logits: FloatArray, mask: BoolArray, largest: float, draw: float) -> int:
    """Returns an allowed replica drawn from the softmax of the logits."""
    total = 0.0
    for r in range(len(mask)):
        if mask[r]:
            total += math.exp(logits[r] - largest)
    left, last = draw * total, -1
    for r in range(len(mask)):
        if mask[r]:
            last = r
            left -= math.exp(logits[r] - largest)
            if left < 0.0:
                break
    return last


@decision
def _corrected(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Takes the allowed replica with the largest logit, or one by chance if a number is drawn."""
    n_constants, inverse, temperature = int(constants[0]), constants[1], constants[2]
    own = memory[int(memory[0]) :]
    logits = estimated_scores(rows, mask, constants[_HEADER : _HEADER + n_constants], own)
    room = memory[1 : int(memory[0])].view(np.float32)
    score_rows(rows, constants[_HEADER + n_constants :].view(np.float32), room)
    least, best = math.inf, -1
    for r in range(len(mask)):
        if mask[r]:
            least = min(least, logits[r])
    for r in range(len(mask)):
        if mask[r]:
            # Relative to the least, so that no two scores that differ from it become one.
            logits[r] = (float(room[r]) - inverse * (logits[r] - least)) / temperature
            if best < 0 or logits[r] > logits[best]:
                best = r
    if len(draws) > 0:
        best = _drawn(logits, mask, logits[best], draws[0])
    count_choice(rows, best, own)
    return best


@dataclass
class ResidualRule(Rule):
    """Routes each request to the replica with the largest logit of rule and network together.

    The logits are the network's scores less `inverse_temperature` times the rule's. A network of
    zeros leaves the choices of the rule, all of them.

    Attributes:
        rule: whose scores are corrected.
        network: what corrects them.
        inverse_temperature: what the rule's scores are multiplied by.
        sampled: whether replicas are drawn by chance, as in training.
    """

    name = "policy"
    decide = _corrected
    rule: EstimatedLatency = field(kw_only=True)
    network: Network = field(kw_only=True, repr=False)
    inverse_temperature: float = field(kw_only=True)
    sampled: bool = False

    def __post_init__(self) -> None:
        """Packs the weights."""
        self.per_request = int(self.sampled)  # type: ignore[misc]
        super().__post_init__()
        own = self.rule.constants()
        header = [len(own), self.inverse_temperature, self.network.temperature]
        self._packed = np.concatenate([header, own, packed_network(self.network, sure=False)])

    def join(self, told: ObservationConfig, gateway: int) -> None:
        """Says so to the rule."""
        self.rule.join(told, gateway)

    def constants(self) -> FloatArray:
        """Returns the rule's constants and the network, single precision in words of a double."""
        return self._packed

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns where the rule's memory begins, room for the network, and the rule's memory."""
        room = np.zeros(room_for(self.network, n_replicas))
        own = self.rule.empty_memory(n_replicas, n_requests)
        return np.concatenate([[1.0 + len(room)], room, own])


class RuleScores:
    """The scores of a rule where others decide: it is shown each decision and told each choice.

    Args:
        rule: whose scores.
        n_replicas: of the cluster.
        told: what routers are told.
        gateway: as which of the gateways it looks on.
    """

    def __init__(
        self, rule: EstimatedLatency, n_replicas: int, told: ObservationConfig, gateway: int = 0
    ) -> None:
        rule = copy(rule)
        rule.join(told, gateway)
        self._constants = rule.constants()
        self._memory = rule.empty_memory(n_replicas, 0)
        self._draws = np.zeros(0)
        self._rows = np.zeros((n_replicas, N_SIGNALS))

    def scores(self, rows: FloatArray, mask: BoolArray) -> FloatArray:
        """Returns how much higher each score is than the lowest, (n_replicas,), infinite if masked.

        Args:
            rows: (n_replicas, N_SIGNALS).
            mask: (n_replicas,).
        """
        self._rows = rows
        _score(rows, mask.copy(), self._draws, self._constants, self._memory)
        scores = np.where(mask, self._memory[-len(mask) :], np.inf)
        relative: FloatArray = scores - scores.min()
        return relative

    def chosen(self, replica: int) -> None:
        """Says where the request goes that it has scored last."""
        count_choice(self._rows, replica, self._memory)


def scored_rule(text: str) -> EstimatedLatency:
    """Makes a rule whose scores can be corrected.

    Args:
        text: as settings name a rule and its options.

    Raises:
        InputError: it has no such scores, no such option, or a value is out of its range.
    """
    name, options = parsed_rule(text)
    options.pop(TITLE, None)
    family = {
        one: kind
        for one, kind in ROUTERS.items()
        if issubclass(kind, EstimatedLatency) and kind.decide is EstimatedLatency.decide
    }
    if checked_name("router", name, ROUTERS) not in family:
        raise InputError(
            f"model.rule must have scores that a network can correct, got {text}; take one of "
            f"{', '.join(family)}, with options where wanted"
        )
    return build("router", family, name, options)
