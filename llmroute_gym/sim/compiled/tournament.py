"""The least of many numbers that change one at a time: a tree of pairwise minima."""

import numpy as np

from llmroute_gym.sim.compiled.jit import inlined
from llmroute_gym.sim.run import FloatArray


def tournament(n: int) -> FloatArray:
    """Returns a tree for n numbers, all infinity; its element 1 is the least."""
    leaves = 1
    while leaves < n:
        leaves *= 2
    return np.full(2 * leaves, np.inf)


@inlined
def update(tree: FloatArray, index: int, value: float) -> None:
    """Sets number `index`."""
    node = len(tree) // 2 + index
    tree[node] = value
    while node > 1:
        node //= 2
        least = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == least:
            break
        tree[node] = least


@inlined
def first_of_least(tree: FloatArray) -> int:
    """Returns the lowest index of the least number."""
    leaves = len(tree) // 2
    node = 1
    while node < leaves:
        node *= 2
        if tree[node + 1] < tree[node]:
            node += 1
    return node - leaves
