"""The sorted keys of a replica: when each decoding request finishes."""

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import residue
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel


@inlined
def insert_key(replica: int, first: int, count: int, key: int, ints: IntArray) -> int:
    """Adds a key to the ascending ones; returns where they start now."""
    if first + count >= ints[replica + at.LAST_KEY]:
        start = replica + at.HISTOGRAM + ints[replica + at.BLOCK_SIZE]
        for j in range(count):
            ints[start + j] = ints[first + j]
        first = start
    j = first + count
    while j > first and ints[j - 1] > key:
        ints[j] = ints[j - 1]
        j -= 1
    ints[j] = key
    return first


@kernel
def remove_key(replica: int, first: int, count: int, key: int, ints: IntArray) -> None:
    """Takes a key out of the ascending ones, where it is."""
    assume(first >= 0)
    j = first + count - 1
    while ints[j] != key:
        j -= 1
    for word in range(j, first + count - 1):
        ints[word] = ints[word + 1]


@kernel
def count_anew(replica: int, b: int, step: int, first_key: int, ints: IntArray) -> int:
    """Counts the steps from near 0 again, in the keys too; returns the step."""
    assume(first_key >= 0)
    # Whole blocks, so that the histogram of (tokens - step) modulo the block size holds.
    base = step - residue(step, ints[replica + at.BLOCK_SIZE])
    for word in range(first_key, first_key + b):
        ints[word] -= base << at.REQUEST_BITS
    return step - base
