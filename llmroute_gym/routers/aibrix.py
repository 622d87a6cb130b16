"""The rules of AIBrix's gateway, by its own counts."""

import math
from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import (
    fewest_in_flight,
    how_many,
    lowest,
    lowest_at_random,
    span,
)
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _least_memory(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    return lowest(rows[:, Signal.KV_USAGE], mask)


@decision
def _prefix_unless_unequal(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    low, high = span(rows[:, Signal.IN_FLIGHT], mask)
    total, squares = 0.0, 0.0
    for r in range(len(mask)):
        if mask[r]:
            total += rows[r, Signal.IN_FLIGHT]
    mean = total / how_many(mask)
    for r in range(len(mask)):
        if mask[r]:
            squares += (rows[r, Signal.IN_FLIGHT] - mean) ** 2
    most = mean + constants[1] * math.sqrt(squares / how_many(mask))
    best = -1
    if high - low <= constants[0]:
        for r in range(len(mask)):
            share = rows[r, Signal.CACHED_PREFIX]
            if mask[r] and share > 0.0 and rows[r, Signal.IN_FLIGHT] <= most:
                longer = best < 0 or share > rows[best, Signal.CACHED_PREFIX]
                equal = best >= 0 and share == rows[best, Signal.CACHED_PREFIX]
                fewer = rows[r, Signal.IN_FLIGHT] < rows[best, Signal.IN_FLIGHT]
                if longer or (equal and fewer):
                    best = r
    return best if best >= 0 else fewest_in_flight(rows, mask)


@decision
def _least_pending_time(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    # The memory: scores, requests sent, of these known to have ended, of these in the window, then
    # the first and the last+1 entry of the window, then its entries: when, and of which replica.
    n = len(mask)
    scores, sent, ended, recent = (
        memory[:n],
        memory[n : 2 * n],
        memory[2 * n : 3 * n],
        memory[3 * n : 4 * n],
    )
    first, last, entries = int(memory[4 * n]), int(memory[4 * n + 1]), memory[4 * n + 2 :]
    now_s = rows[0, Signal.NOW_S]
    for r in range(n):
        while ended[r] < sent[r] - rows[r, Signal.IN_FLIGHT]:
            entries[2 * last], entries[2 * last + 1] = now_s, r
            last += 1
            ended[r] += 1.0
            recent[r] += 1.0
    while first < last and entries[2 * first] <= now_s - constants[0]:
        recent[int(entries[2 * first + 1])] -= 1.0
        first += 1
    memory[4 * n], memory[4 * n + 1] = first, last
    for r in range(n):
        per_s = recent[r] / constants[0] if recent[r] > 0.0 else 1.0
        scores[r] = rows[r, Signal.IN_FLIGHT] / per_s
    replica = lowest_at_random(scores, mask, draws[0])
    sent[replica] += 1.0
    return replica


@dataclass
class LeastKv(SeeingRule):
    """Smallest share of KV blocks in use; ties by lowest index. Source: AIBrix least-kv-cache.

    Args:
        poll_s: age of the metrics, seconds.
    """

    name = "least_kv"
    decide = _least_memory
    source = Source("AIBrix least-kv-cache", "0.8", "2026-11")

    poll_s: float = poll(0.0)


@dataclass
class AibrixPrefix(SeeingRule):
    """Longest cached prefix of the replicas that are not overloaded, by requests in flight.

    If the most and the fewest requests in flight are more than `imbalance` apart, the fewest.
    Else the largest cached share of the prompt among replicas with at most mean + `deviations`
    standard deviations (of the population) in flight, ties by fewer in flight, then by lowest
    index. If none of them holds anything, the fewest in flight. The fewest: ties by lowest index.
    Source: AIBrix prefix-cache.

    Args:
        imbalance: difference of requests in flight from which on prefixes do not count.
        deviations: standard deviations above the mean that still are no overload.
    """

    name = "aibrix_prefix"
    decide = _prefix_unless_unequal
    source = Source("AIBrix prefix-cache", "0.8", "2026-11")
    view = "tree"

    imbalance: float = constant(8.0, 0.0, 10000.0)
    deviations: float = constant(1.0, 0.0, 100.0)


@dataclass
class AibrixPrefixHelm(AibrixPrefix):
    """`aibrix_prefix` with what AIBrix's Helm chart sets: 16 and 2."""

    name = "aibrix_prefix_helm"
    source = Source("AIBrix prefix-cache, Helm chart", "0.8", "2026-11")

    imbalance: float = constant(16.0, 0.0, 10000.0)
    deviations: float = constant(2.0, 0.0, 100.0)


@dataclass
class AibrixLoadBalance(SeeingRule):
    """Fewest requests in flight per completion per second, over the last minute; ties at random.

    Where nothing was completed in that time the rate is 1 per second. The router knows of a
    completion when it decides next. Source: AIBrix load-balance.

    Args:
        window_s: seconds over which completions are counted.
    """

    name = "aibrix_load_balance"
    decide = _least_pending_time
    per_request = 1
    source = Source("AIBrix load-balance", "0.8", "2026-11")

    window_s: float = constant(60.0, 1.0, 3600.0, logarithmic=True)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns four numbers per replica, the ends of the window, and room for all that ends."""
        return np.zeros(4 * n_replicas + 2 + 2 * n_requests)
