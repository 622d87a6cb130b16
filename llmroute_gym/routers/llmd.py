"""The endpoint picker of llm-d: filters, scores that add up, a pick."""

import math
from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import (
    add_free_memory,
    add_no_hit_lru,
    add_prefix,
    add_queue,
    add_token_load,
    cached_somewhere,
    clear,
    highest_at_random,
    keep_cached,
)
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _three_scores(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    clear(memory)
    add_queue(memory, rows, mask, constants[0])
    add_free_memory(memory, rows, mask, constants[1])
    add_prefix(memory, rows, mask, constants[2])
    return highest_at_random(memory, mask, draws[0])


@decision
def _four_scores(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    # The memory: scores, when each last got a cold request, how many there were.
    n = len(mask)
    clear(memory[:n])
    add_queue(memory, rows, mask, constants[0])
    add_free_memory(memory, rows, mask, constants[1])
    add_prefix(memory, rows, mask, constants[2])
    add_no_hit_lru(memory, rows, mask, constants[3], memory[n:])
    replica = highest_at_random(memory, mask, draws[0])
    if not cached_somewhere(rows, mask):
        memory[2 * n] += 1.0
        memory[n + replica] = memory[2 * n]
    return replica


@decision
def _token_load(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    share, wait_s, rate, most = constants[0], constants[1], constants[2], constants[3]
    warm_s, other_s = math.inf, math.inf
    for r in range(len(mask)):
        start_s = rows[r, Signal.UNCACHED_TOKENS] / rate
        if mask[r] and rows[r, Signal.CACHED_PREFIX] >= share:
            warm_s = min(warm_s, start_s)
        elif mask[r]:
            other_s = min(other_s, start_s)
    if warm_s <= other_s + wait_s:
        keep_cached(rows, mask, share)
    clear(memory)
    add_token_load(memory, rows, mask, 1.0, most)
    return highest_at_random(memory, mask, draws[0])


@dataclass
class LlmdDefault(SeeingRule):
    """Highest sum of the scores of queue, free memory and cached prefix, of those that may be had.

    The score of the queue is (max q - q) / (max q - min q), 1 where all are equal; of memory 1 - k;
    of the prefix the share of the prompt that is cached. Ties at random. Source: the defaults of
    llm-d's endpoint picker; KServe's add the fourth score of `llmd_baseline`.

    Args:
        queue: weight of the queue.
        kv: weight of the free memory.
        prefix: weight of the cached prefix.
        poll_s: age of the metrics that queue and memory are read from, seconds.
        view: where prefixes are looked up, ``"tree"`` or ``"events"``.
    """

    name = "llmd_default"
    decide = _three_scores
    per_request = 1
    source = Source("llm-d endpoint picker, defaults", "2026-11", "2026-11")

    queue: float = constant(2.0, 0.0, 100.0)
    kv: float = constant(2.0, 0.0, 100.0)
    prefix: float = constant(3.0, 0.0, 100.0)
    poll_s: float = poll(0.05)
    view: str = "tree"


@dataclass
class LlmdBaseline(SeeingRule):
    """`llmd_default` with a fourth score that spreads requests which are cached nowhere.

    For such a request the replicas are ranked by how long ago they last got one, 1 for the longest
    ago down to 0; who never got one comes first, by index. For any other it is 0.5 for all. Ties at
    random. Source: llm-d's guide to its optimized baseline; KServe's defaults.

    Args:
        queue: weight of the queue.
        kv: weight of the free memory.
        prefix: weight of the cached prefix.
        no_hit: weight of that rank.
        poll_s: age of the metrics that queue and memory are read from, seconds.
    """

    name = "llmd_baseline"
    decide = _four_scores
    per_request = 1
    source = Source("llm-d optimized-baseline, KServe", "2026-11", "2026-11")
    view = "tree"

    queue: float = constant(2.0, 0.0, 100.0)
    kv: float = constant(2.0, 0.0, 100.0)
    prefix: float = constant(3.0, 0.0, 100.0)
    no_hit: float = constant(2.0, 0.0, 100.0)
    poll_s: float = poll(0.05)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the scores, for when each last got an uncached request, and a count."""
        return np.zeros(2 * n_replicas + 1)


@dataclass
class LlmdToken(SeeingRule):
    """Fewest uncached prompt tokens, with the request's own, where most of the prompt is held.

    Those that hold less than `share` of it are left out, unless none holds that much, or the best
    of them is expected to start more than `wait_s` later than the best other one; a replica starts
    after its uncached prompt tokens in flight, which count until the first token of their request,
    at a rate of `tokens_per_s`. Of the others the highest 1 - min(1, tokens / `most_tokens`), of
    those tokens and of the request's own that are uncached there, ties at random. Source: llm-d's
    recipe of token load, the default of its guide.

    Args:
        share: of the prompt that a warm replica holds.
        wait_s: how much later a warm one may start, seconds.
        tokens_per_s: peak rate of prefill of a replica, calibrated.
        most_tokens: from which on all are equally bad.
        view: where prefixes are looked up, ``"tree"`` or ``"events"``.
    """

    name = "llmd_token"
    decide = _token_load
    per_request = 1
    source = Source("llm-d token recipe, its guide's default", "2026-11", "2026-11")

    share: float = constant(0.8, 0.0, 1.0)
    wait_s: float = constant(18.0, 0.0, 600.0)
    tokens_per_s: float = constant(15928.0, 100.0, 1e6, logarithmic=True)
    most_tokens: float = constant(4194304.0, 1024.0, 2.0**30, logarithmic=True)
    view: str = "tree"
