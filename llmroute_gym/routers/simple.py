"""Rules that count requests or tokens, or nothing at all."""

from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import (
    allowed_at,
    fewest_in_flight,
    how_many,
    lowest,
    pair_at_random,
)
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Rule, Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _any(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    return allowed_at(mask, int(draws[0] * how_many(mask)))


@decision
def _in_turn(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    n = len(mask)
    replica = int(memory[0])
    while not mask[replica]:
        replica = (replica + 1) % n
    memory[0] = (replica + 1) % n
    return replica


@decision
def _least_waiting(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    return lowest(rows[:, Signal.WAITING], mask)


@decision
def _least_in_flight(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    return fewest_in_flight(rows, mask)


@decision
def _less_of_two(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    one, other = pair_at_random(mask, draws[0], draws[1])
    return other if rows[other, Signal.IN_FLIGHT] < rows[one, Signal.IN_FLIGHT] else one


@decision
def _least_tokens(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    for r in range(len(mask)):
        memory[r] = rows[r, Signal.PENDING_PROMPT_TOKENS] + rows[r, Signal.PROMPT_TOKENS]
    return lowest(memory, mask)


@decision
def _least_by_speed(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    for r in range(len(mask)):
        memory[r] = (rows[r, Signal.IN_FLIGHT] + 1.0) / rows[r, Signal.SPEED]
    return lowest(memory, mask)


@decision
def _most_speed(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    for r in range(len(mask)):
        memory[r] = -rows[r, Signal.SPEED] / (rows[r, Signal.IN_FLIGHT] + 1.0) ** constants[0]
    return lowest(memory, mask)


@dataclass
class Random(Rule):
    """Uniform over the replicas."""

    name = "random"
    decide = _any
    per_request = 1
    source = Source("all", "any", "2026-11")


@dataclass
class RoundRobin(Rule):
    """Cyclic: request i goes to replica i mod N, skipping replicas that may not be chosen."""

    name = "round_robin"
    decide = _in_turn
    source = Source("all", "any", "2026-11")

    def possible(
        self, rows: FloatArray, mask: BoolArray, rng: np.random.Generator, *, ordered: bool = True
    ) -> FloatArray:
        """Returns 1 for the replica whose turn it is: its memory stands in the rows."""
        turns = np.where(mask, rows[:, Signal.ROUNDS_SINCE_CHOSEN], -1.0)
        turn: FloatArray = np.eye(len(mask))[turns.argmax()]
        return turn


@dataclass
class JoinShortestQueue(SeeingRule):
    """Fewest waiting requests; restarted ones count; ties by lowest index. Textbook JSQ.

    Args:
        poll_s: age of the engines' counts, seconds.
    """

    name = "jsq"
    decide = _least_waiting
    source = Source("textbook", "-", "2026-11")

    poll_s: float = poll(0.0)

    def __post_init__(self) -> None:
        """Checks the age; what is always fresh may be seen by whatever the router is told."""
        super().__post_init__()
        if self.poll_s == 0.0:
            self.observation = None


@dataclass
class LeastPending(Rule):
    """What Vidur calls `lor`: the same rule as `jsq`, kept by its own name for parity."""

    name = "lor_pending"
    decide = _least_waiting
    source = Source("Vidur lor", "2024", "2026-01")


@dataclass
class LeastOutstanding(Rule):
    """Fewest requests in flight, by the router's own count; ties by lowest index.

    Source: Envoy least-request (full scan), AIBrix least-request, LiteLLM least-busy.
    """

    name = "lor"
    decide = _least_in_flight
    source = Source("Envoy least-request, AIBrix, LiteLLM least-busy", "2026", "2026-11")


@dataclass
class PowerOfTwo(Rule):
    """Two replicas at random without replacement, the one with fewer requests in flight.

    The first drawn wins a tie. Source: Envoy, Ray Serve, SGLang; Mitzenmacher 2001.
    """

    name = "power_of_two"
    decide = _less_of_two
    per_request = 2
    source = Source("Envoy, Ray Serve, SGLang", "2026", "2026-11")


@dataclass
class LeastTokens(SeeingRule):
    """Fewest prompt tokens to prefill, this request's included; ties by lowest index.

    By the router's own count: of requests in flight that have no first token, whole prompts.
    Source: the token join-shortest-queue of splitwise-sim, llm-d's token-load scorer.
    """

    name = "least_tokens"
    decide = _least_tokens
    source = Source("splitwise-sim token_jsq, llm-d token load", "2026", "2026-11")


@dataclass
class SpeedLeastOutstanding(Rule):
    """Least (requests in flight + 1) / speed; ties by lowest index. Queueing folklore."""

    name = "speed_lor"
    decide = _least_by_speed
    source = Source("queueing folklore", "-", "2026-11")


@dataclass
class EnvoyWeighted(SeeingRule):
    """Largest w / (n + 1) ** bias, w the replica's speed, n in flight; ties by lowest index.

    Source: Envoy least-request with unequal weights.

    Args:
        bias: how much the requests in flight count.
    """

    name = "envoy_weighted"
    decide = _most_speed
    source = Source("Envoy least-request, unequal weights", "2026", "2026-11")

    bias: float = constant(1.0, 0.0, 10.0)
