"""What decisions are composed of: filters that narrow the mask, and picks.

A score is an array of one number per replica, which a decision fills as it likes.
"""

import math

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.jit import block


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
def lowest(scores: FloatArray, mask: BoolArray) -> int:
    """Returns the allowed replica with the lowest score, the first of them on a tie."""
    best, least = -1, math.inf
    for r in range(len(mask)):
        if mask[r] and (best < 0 or scores[r] < least):
            best, least = r, scores[r]
    return best


@block
def lowest_at_random(scores: FloatArray, mask: BoolArray, draw: float) -> int:
    """Returns an allowed replica with the lowest score; `draw` from [0, 1) settles a tie."""
    least = scores[lowest(scores, mask)]
    tied = 0
    for r in range(len(mask)):
        tied += mask[r] and scores[r] == least
    left = int(draw * tied)
    for r in range(len(mask)):
        if mask[r] and scores[r] == least:
            if left == 0:
                return r
            left -= 1
    return -1


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
