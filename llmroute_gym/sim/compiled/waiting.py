"""Requests that wait for the end of others: their arrivals, earliest first.

An arrival is known once the request that it waits for has ended. Until then it is in no heap, and
nobody may run past the end that brings it.
"""

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel


@inlined
def count_of(cluster: int, ints: IntArray) -> int:
    """Returns the number of requests."""
    return (ints[cluster + at.LAST_REQUEST] - ints[cluster + at.FIRST_REQUEST]) // at.REQUEST_WORDS


@inlined
def decided(cluster: int, number: int, ints: IntArray) -> int:
    """Returns the word of the request that a decision placed."""
    waits = ints[cluster + at.WAITS]
    if waits < 0:
        word = ints[cluster + at.FIRST_REQUEST] + number * at.REQUEST_WORDS
    else:
        word = ints[waits + 1 + number]
    return word


@inlined
def _row(cluster: int, request: int, ints: IntArray) -> int:
    """Returns where the row of a request stands in the table."""
    number = (request - ints[cluster + at.FIRST_REQUEST]) // at.REQUEST_WORDS
    table = ints[cluster + at.WAITS] + 1 + 2 * count_of(cluster, ints)
    return table + number * at.WAIT_WORDS


@kernel
def write_waits(
    cluster: int, after: IntArray, gap_s: FloatArray, ints: IntArray, floats: FloatArray
) -> None:
    """Fills the table of a cluster whose row and requests are written.

    Args:
        cluster: its word; WAITS stands in it.
        after: (n_requests,) what each waits for, -1 for nothing.
        gap_s: (n_requests,) seconds.
        ints: memory.
        floats: the same memory.
    """
    first = ints[cluster + at.FIRST_REQUEST]
    ints[ints[cluster + at.WAITS] + at.HEAP_SIZE] = 0
    for i in range(len(after)):
        row = _row(cluster, first + i * at.REQUEST_WORDS, ints)
        ints[row + at.FIRST_CHILD] = -1
        floats[row + at.GAP] = gap_s[i]
    for i in range(len(after) - 1, -1, -1):
        if after[i] >= 0:
            word = first + i * at.REQUEST_WORDS
            parent = _row(cluster, first + after[i] * at.REQUEST_WORDS, ints)
            ints[_row(cluster, word, ints) + at.SIBLING] = ints[parent + at.FIRST_CHILD]
            ints[parent + at.FIRST_CHILD] = word
    for i in range(len(after)):
        if after[i] < 0:
            _push_arrival(cluster, first + i * at.REQUEST_WORDS, ints, floats)


@kernel
def _earlier(a: int, b: int, floats: FloatArray) -> bool:
    """Whether request a arrives before request b."""
    time_a, time_b = floats[a + at.ARRIVED], floats[b + at.ARRIVED]
    return time_a < time_b or (time_a == time_b and a < b)


@kernel
def _push_arrival(cluster: int, request: int, ints: IntArray, floats: FloatArray) -> None:
    waits = ints[cluster + at.WAITS]
    heap = waits + 1 + count_of(cluster, ints)
    place = ints[waits + at.HEAP_SIZE]
    ints[waits + at.HEAP_SIZE] = place + 1
    while place > 0 and _earlier(request, ints[heap + (place - 1) // 2], floats):
        ints[heap + place] = ints[heap + (place - 1) // 2]
        place = (place - 1) // 2
    ints[heap + place] = request


@kernel
def next_arrival(cluster: int, ints: IntArray) -> int:
    """Returns the word of the request that arrives next as far as is known, -1 for none."""
    assume(cluster >= 0)
    waits = ints[cluster + at.WAITS]
    if ints[waits + at.HEAP_SIZE] == 0:
        return -1
    return ints[waits + 1 + count_of(cluster, ints)]


@kernel
def pop_arrival(cluster: int, ints: IntArray, floats: FloatArray) -> int:
    """Takes the next arrival, of which there is one; returns its request's word."""
    waits = ints[cluster + at.WAITS]
    heap = waits + 1 + count_of(cluster, ints)
    top = ints[heap]
    size = ints[waits + at.HEAP_SIZE] - 1
    ints[waits + at.HEAP_SIZE] = size
    last = ints[heap + size]
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _earlier(ints[heap + child + 1], ints[heap + child], floats):
            child += 1
        if not _earlier(ints[heap + child], last, floats):
            break
        ints[heap + place] = ints[heap + child]
        place = child
    ints[heap + place] = last
    return top


@kernel
def release(cluster: int, request: int, now: float, ints: IntArray, floats: FloatArray) -> None:
    """Lets those arrive that waited for a request that ends now."""
    child = ints[_row(cluster, request, ints) + at.FIRST_CHILD]
    while child >= 0:
        row = _row(cluster, child, ints)
        floats[child + at.ARRIVED] = now + floats[row + at.GAP]
        _push_arrival(cluster, child, ints, floats)
        child = ints[row + at.SIBLING]
