"""Hashes of whole numbers, and the ring of a consistent hash."""

import math
from typing import Final

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.jit import block

RING_POINTS: Final = 160
"""Points of each replica on a ring, as Ketama has them."""

_GAMMA, _FIRST, _SECOND = (
    np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@block
def _mixed(word: np.uint64) -> np.uint64:
    """Returns the finalizer of SplitMix64 (Steele, Lea, Flood 2014) of a 64-bit word."""
    word = (word ^ (word >> _30)) * _FIRST
    word = (word ^ (word >> _27)) * _SECOND
    return word ^ (word >> _31)


@block
def hashed(first: float, second: float) -> float:
    """Returns a number from [0, 1), a pure function of two whole numbers."""
    word = _mixed(np.uint64(np.int64(first)) + _GAMMA)
    word = _mixed((word ^ np.uint64(np.int64(second))) + _GAMMA)
    return float(word >> _11) * 2.0**-53


def ring(n_replicas: int) -> FloatArray:
    """Returns a ring: the points of all replicas, rising, then the replica of each.

    Shape (2 * n_replicas * RING_POINTS,).
    """
    replicas = np.repeat(np.arange(n_replicas), RING_POINTS)
    points = np.tile(np.arange(RING_POINTS), n_replicas)
    pairs = zip(replicas.tolist(), points.tolist(), strict=True)
    places = np.array([hashed(float(r), 1.0 + p) for r, p in pairs])
    order = np.argsort(places, kind="stable")
    return np.concatenate([places[order], replicas[order].astype(np.float64)])


@block
def next_on_ring(
    around: FloatArray, place: float, mask: BoolArray, loads: FloatArray, most: float
) -> int:
    """Returns the first replica on a ring, from a place on, that may be chosen and has room.

    Args:
        around: see `ring`.
        place: from [0, 1).
        mask: (n_replicas,).
        loads: (n_replicas,).
        most: the load up to which a replica has room; infinity for any.

    Returns:
        Its index, -1 if there is none.
    """
    n = len(around) // 2
    start = np.searchsorted(around[:n], place)
    for step in range(n):
        r = int(around[n + (start + step) % n])
        if mask[r] and loads[r] <= most:
            return r
    return -1


@block
def highest_random_weight(key: float, scores: FloatArray, mask: BoolArray) -> int:
    """Returns an allowed replica with the lowest score; rendezvous hashing settles a tie.

    Args:
        key: a whole number.
        scores: (n_replicas,).
        mask: (n_replicas,).
    """
    best, least, weight = -1, math.inf, -1.0
    for r in range(len(mask)):
        if mask[r] and scores[r] <= least:
            own = hashed(key, float(r))
            if scores[r] < least or own > weight:
                best, least, weight = r, scores[r], own
    return best
