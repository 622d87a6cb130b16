"""The least of many numbers that change one at a time: a tree in which sixteen play for a place.

The winner stands in word 0, and the children of word i in the group of sixteen from 16 (i + 1) on;
the numbers are the last level. A change costs a few instructions per level, and none of its
branches depends on the numbers.

Numbers are floats >= 0: seen as int64 they keep their order.
"""

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled.jit import assume, inlined
from llmroute_gym.sim.compiled.lanes import LANE_BITS, LANES, bits_of, first_equal, least_with

Tournament = tuple[FloatArray, IntArray, int]


def tournament(n: int) -> Tournament:
    """Returns a tree for n numbers, all infinity: its words as both types, and the first leaf."""
    first_leaf, leaves = LANES, LANES
    while leaves < n:
        first_leaf, leaves = LANES * (first_leaf + 1), LANES * leaves
    values = np.full(first_leaf - (-n // LANES) * LANES, np.inf)
    return values, values.view(np.int64), first_leaf


@inlined
def update(tree: Tournament, index: int, value: float) -> None:
    """Sets number `index`."""
    words, node = tree[1], tree[2] + index
    word = bits_of(value)
    assume(node >= LANES)
    while node > 0:
        least_word = least_with(words, node, word)
        words[node] = word
        word = least_word
        node = (node >> LANE_BITS) - 1
    words[0] = word


@inlined
def least(tree: Tournament) -> float:
    """Returns the least number."""
    return tree[0][0]


@inlined
def first_of_least(tree: Tournament) -> int:
    """Returns its index, the lowest one of equal numbers."""
    words, first_leaf = tree[1], tree[2]
    node = 0
    while node < first_leaf:
        group = (node + 1) << LANE_BITS
        node = group + first_equal(words, group, words[0])
    return node - first_leaf


@inlined
def number(tree: Tournament, index: int) -> float:
    """Returns number `index`."""
    return tree[0][tree[2] + index]
