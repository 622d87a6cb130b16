"""What decisions are composed of: filters that narrow the mask, scores that add up, and picks.

Scores are an array of at least one number per replica, which a decision fills as it likes; those of
replicas that the mask leaves out mean nothing. A rule of one's own, of the shape that llm-d's have:

```python
from dataclasses import dataclass
import numpy as np
from llmroute_gym.routers.blocks import add_free_memory, add_queue, highest_at_random, keep_cached
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.seeing import SeeingRule, poll

@decision
def warm_then_idle(rows, mask, draws, constants, memory):
    keep_cached(rows, mask, 0.5)
    scores = np.zeros(len(mask))
    add_queue(scores, rows, mask, constants[0])
    add_free_memory(scores, rows, mask, constants[1])
    return highest_at_random(scores, mask, draws[0])

@dataclass
class WarmThenIdle(SeeingRule):
    name, decide, per_request, view = "warm_then_idle", warm_then_idle, 1, "tree"
    queue: float = constant(2.0, 0.0, 10.0)
    kv: float = constant(1.0, 0.0, 10.0)
    poll_s: float = poll(0.1)
```
"""

import math

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.jit import block


@block
def how_many(mask: BoolArray) -> int:
    """Returns how many replicas are allowed."""
    count = 0
    for r in range(len(mask)):
        count += mask[r]
    return count


@block
def span(values: FloatArray, mask: BoolArray) -> tuple[float, float]:
    """Returns the least and the largest value of the allowed replicas."""
    least, most = math.inf, -math.inf
    for r in range(len(mask)):
        if mask[r]:
            least, most = min(least, values[r]), max(most, values[r])
    return least, most


@block
def keep_at_least(mask: BoolArray, values: FloatArray, least: float) -> bool:
    """Narrows the mask to replicas whose value is at least so much, unless none is.

    Args:
        mask: (n_replicas,), changed.
        values: (n_replicas,).
        least: what they need.

    Returns:
        Whether one was; if not, the mask is as before.
    """
    some = False
    for r in range(len(mask)):
        some = some or (mask[r] and values[r] >= least)
    if some:
        for r in range(len(mask)):
            mask[r] = mask[r] and values[r] >= least
    return some


@block
def keep_cached(rows: FloatArray, mask: BoolArray, share: float) -> bool:
    """Narrows the mask to replicas that hold at least such a share of the prompt, unless none does.

    Returns:
        Whether one did; if not, the mask is as before.
    """
    return keep_at_least(mask, rows[:, Signal.CACHED_PREFIX], share)


@block
def keep_one(mask: BoolArray, replica: int) -> None:
    """Narrows the mask to one replica."""
    for r in range(len(mask)):
        mask[r] = r == replica


@block
def keep_highest(values: FloatArray, mask: BoolArray) -> float:
    """Narrows the mask to replicas with the largest value, which it returns."""
    _, most = span(values, mask)
    for r in range(len(mask)):
        mask[r] = mask[r] and values[r] == most
    return most


@block
def clear(scores: FloatArray) -> None:
    """Sets all to 0."""
    for r in range(len(scores)):
        scores[r] = 0.0


@block
def add_queue(scores: FloatArray, rows: FloatArray, mask: BoolArray, weight: float) -> None:
    """Adds 1 for the shortest waiting queue of those allowed down to 0 for the longest.

    Where all are of one length that is 1 for each. Source: llm-d's queue scorer.
    """
    low, high = span(rows[:, Signal.WAITING], mask)
    for r in range(len(mask)):
        if high > low:
            scores[r] += weight * (high - rows[r, Signal.WAITING]) / (high - low)
        else:
            scores[r] += weight


@block
def add_free_memory(scores: FloatArray, rows: FloatArray, mask: BoolArray, weight: float) -> None:
    """Adds the share of KV blocks that is free. Source: llm-d's KV-cache scorer."""
    for r in range(len(mask)):
        scores[r] += weight * (1.0 - rows[r, Signal.KV_USAGE])


@block
def add_prefix(scores: FloatArray, rows: FloatArray, mask: BoolArray, weight: float) -> None:
    """Adds the share of the prompt that is cached. Source: llm-d's prefix scorer."""
    for r in range(len(mask)):
        scores[r] += weight * rows[r, Signal.CACHED_PREFIX]


@block
def uncached_tokens(rows: FloatArray, replica: int) -> float:
    """Returns how many of the request's prompt tokens a replica does not hold, a whole number."""
    prompt = rows[replica, Signal.PROMPT_TOKENS]
    # The share is a rounded quotient; crumbs of its product would settle ties.
    return float(prompt - math.floor(prompt * rows[replica, Signal.CACHED_PREFIX] + 0.5))


@block
def add_token_load(
    scores: FloatArray, rows: FloatArray, mask: BoolArray, weight: float, most: float
) -> None:
    """Adds 1 for no uncached prompt tokens without first token, down to 0 for `most`.

    Those in flight and those that the request would add. Source: llm-d's token-load scorer.
    """
    for r in range(len(mask)):
        tokens = rows[r, Signal.UNCACHED_TOKENS] + uncached_tokens(rows, r)
        scores[r] += weight * (1.0 - min(1.0, tokens / most))


@block
def cached_somewhere(rows: FloatArray, mask: BoolArray) -> bool:
    """Returns whether an allowed replica holds some of the prompt."""
    some = False
    for r in range(len(mask)):
        some = some or (mask[r] and rows[r, Signal.CACHED_PREFIX] > 0.0)
    return some


@block
def add_no_hit_lru(
    scores: FloatArray, rows: FloatArray, mask: BoolArray, weight: float, last: FloatArray
) -> None:
    """Spreads requests that are cached nowhere: adds 1 for who got one longest ago, down to 0.

    Those that never got one come first, by index. Adds 0.5 to all where the request is cached
    somewhere. Source: llm-d's no-hit-LRU scorer.

    Args:
        scores: changed.
        rows: (n_replicas, N_SIGNALS).
        mask: who is ranked.
        weight: of the score.
        last: (n_replicas,) when each last got one, in any increasing count; 0 for never.
    """
    n, ranked = len(mask), not cached_somewhere(rows, mask)
    others = max(how_many(mask) - 1, 1)
    for r in range(n):
        score = 0.5
        if ranked:
            before = 0
            for s in range(n):
                earlier = last[s] < last[r] or (last[s] == last[r] and s < r)
                before += mask[s] and earlier
            score = 1.0 - before / others
        scores[r] += weight * score


@block
def lowest(scores: FloatArray, mask: BoolArray) -> int:
    """Returns the allowed replica with the lowest score, the first of them on a tie."""
    best, least = -1, math.inf
    for r in range(len(mask)):
        if mask[r] and (best < 0 or scores[r] < least):
            best, least = r, scores[r]
    return best


@block
def fewest_in_flight(rows: FloatArray, mask: BoolArray) -> int:
    """Returns the allowed replica with the fewest requests in flight, the first on a tie."""
    best = -1
    for r in range(len(mask)):
        if mask[r] and (best < 0 or rows[r, Signal.IN_FLIGHT] < rows[best, Signal.IN_FLIGHT]):
            best = r
    return best


@block
def _one_of(scores: FloatArray, mask: BoolArray, score: float, draw: float) -> int:
    """Returns one of the allowed replicas with a score, by a number from [0, 1)."""
    tied = 0
    for r in range(len(mask)):
        tied += mask[r] and scores[r] == score
    left = int(draw * tied)
    for r in range(len(mask)):
        if mask[r] and scores[r] == score:
            if left == 0:
                return r
            left -= 1
    return -1


@block
def lowest_at_random(scores: FloatArray, mask: BoolArray, draw: float) -> int:
    """Returns an allowed replica with the lowest score; `draw` from [0, 1) settles a tie."""
    return _one_of(scores, mask, scores[lowest(scores, mask)], draw)


@block
def highest_at_random(scores: FloatArray, mask: BoolArray, draw: float) -> int:
    """Returns an allowed replica with the highest score; `draw` from [0, 1) settles a tie."""
    _, most = span(scores, mask)
    return _one_of(scores, mask, most, draw)


@block
def lowest_in_turn(scores: FloatArray, mask: BoolArray, turn: int) -> int:
    """Returns an allowed replica with the lowest score, on a tie the first from `turn` on."""
    least = scores[lowest(scores, mask)]
    n = len(mask)
    for step in range(n):
        r = (turn + step) % n
        if mask[r] and scores[r] == least:
            return r
    return -1


@block
def allowed_at(mask: BoolArray, index: int) -> int:
    """Returns the allowed replica that so many others come before."""
    for r in range(len(mask)):
        if mask[r]:
            if index == 0:
                return r
            index -= 1
    return -1


@block
def pair_at_random(mask: BoolArray, first: float, second: float) -> tuple[int, int]:
    """Returns two of the allowed replicas, drawn without replacement, or the only one twice."""
    count = how_many(mask)
    one = int(first * count)
    other = int(second * (count - 1))
    if count > 1:
        other += other >= one
    return allowed_at(mask, one), allowed_at(mask, other)
