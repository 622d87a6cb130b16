"""The least of many numbers that change one at a time: a tree of matches between pairs.

Node 1 is the root, nodes 2i and 2i + 1 play for node i, and the numbers stand in the last level.
"""

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled.jit import assume, inlined

Tournament = tuple[FloatArray, IntArray]


def tournament(n: int) -> Tournament:
    """Returns a tree for n numbers, all infinity: of each node the least number and its index."""
    leaves = 1
    while leaves < n:
        leaves *= 2
    winners = np.arange(2 * leaves) - leaves
    for node in range(leaves - 1, 0, -1):
        winners[node] = winners[2 * node]
    return np.full(2 * leaves, np.inf), winners


@inlined
def update(tree: Tournament, index: int, value: float) -> None:
    """Sets number `index`; of equal numbers the one with the lowest index wins."""
    values, winners = tree
    node = len(values) // 2 + index
    assume(node >= 0)
    values[node] = value
    winner = index
    while node > 1:
        other = node ^ 1
        rival, rival_index = values[other], winners[other]
        loses = (rival < value) | ((rival == value) & (rival_index < winner))
        value = rival if loses else value
        winner = rival_index if loses else winner
        node >>= 1
        if values[node] == value and winners[node] == winner:
            break
        values[node] = value
        winners[node] = winner


@inlined
def least(tree: Tournament) -> float:
    """Returns the least number."""
    return tree[0][1]


@inlined
def first_of_least(tree: Tournament) -> int:
    """Returns its index, the lowest one of equal numbers."""
    return tree[1][1]


@inlined
def number(tree: Tournament, index: int) -> float:
    """Returns number `index`."""
    values = tree[0]
    return values[len(values) // 2 + index]
