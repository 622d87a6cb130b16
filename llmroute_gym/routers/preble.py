"""Preble's rule: exploit a long match, or explore where recent requests cost least."""

from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import keep_highest, lowest, uncached_tokens
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule

# Memory: what was sent as a queue of (time, replica, cost), and of each replica
# the number and the cost of those in the window.
_QUEUE_HEAD, _QUEUE_END, _SUMS = 0, 1, 2


@decision
def _preble(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    match_above, window_s, prefill_s, decode_tokens, decode_s = constants
    n, now_s = len(mask), rows[0, Signal.NOW_S]
    counts, costs = memory[_SUMS : _SUMS + n], memory[_SUMS + n : _SUMS + 2 * n]
    queue = memory[_SUMS + 2 * n :]
    while memory[_QUEUE_HEAD] < memory[_QUEUE_END]:
        first = 3 * int(memory[_QUEUE_HEAD])
        if queue[first] > now_s - window_s:
            break
        r = int(queue[first + 1])
        counts[r] -= 1
        # Differences of sums leave crumbs, which would settle ties.
        costs[r] = costs[r] - queue[first + 2] if counts[r] > 0 else 0.0
        memory[_QUEUE_HEAD] += 1
    match = rows[:, Signal.CACHED_PREFIX]
    longest = mask.copy()
    matched = keep_highest(match, longest) > match_above
    chosen = lowest(counts, longest) if matched else lowest(costs, mask)
    last = 3 * int(memory[_QUEUE_END])
    queue[last], queue[last + 1] = now_s, float(chosen)
    queue[last + 2] = uncached_tokens(rows, chosen) * prefill_s + decode_tokens * decode_s
    counts[chosen] += 1
    costs[chosen] += queue[last + 2]
    memory[_QUEUE_END] += 1
    return chosen


@dataclass
class Preble(SeeingRule):
    """The longest match if it covers most of the prompt, else the least cost of a recent window.

    Over `match_above` of the prompt, the replica among those with the longest match that got the
    fewest requests in the last `window_s`; else the one whose requests of that time cost least. A
    request costs its prompt tokens that the tree did not have, times `prefill_s_per_token`, and
    `decode_tokens` times `decode_s_per_token`. Ties go to the lowest index. AIBrix takes the time
    of prefill from a piecewise formula for a V100 (Mistral 7B), of which this is the slope.

    Attributes:
        match_above: share of the prompt.
        window_s: seconds.
        prefill_s_per_token: seconds.
        decode_tokens: output tokens that a request is taken to have.
        decode_s_per_token: seconds.
        tree_tokens: how many tokens of each replica the tree keeps, the latest sent.
    """

    name = "preble"
    decide = _preble
    source = Source("AIBrix prefix-cache-preble; Preble, arXiv 2407.00023", "0.8", "2026-11")
    match_above: float = constant(0.5, 0.0, 1.0)
    window_s: float = constant(180.0, 1.0, 3600.0, logarithmic=True)
    prefill_s_per_token: float = constant(2.7106428e-4, 1e-6, 1e-1, logarithmic=True)
    decode_tokens: float = constant(45, 1, 4096, logarithmic=True, whole=True)
    decode_s_per_token: float = constant(0.15, 1e-4, 1.0, logarithmic=True)
    tree_tokens: int = 2**25
    view = "tree"

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns a memory in which nothing has been sent."""
        return np.zeros(_SUMS + 2 * n_replicas + 3 * n_requests)
