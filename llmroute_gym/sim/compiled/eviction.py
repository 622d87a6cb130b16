"""The rare decode batch without room for its blocks: the last ones restart, in exact order."""

import numpy as np
from numba import njit

from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for, decode_blocks, residue_of


@njit(cache=True)
def push_front(row, request, state):
    """Puts a restarted request at the front of the waiting queue."""
    replica_int, request_int = state.replica_int, state.request_int
    request_int[request, at.NEXT] = replica_int[row, at.HEAD]
    if replica_int[row, at.HEAD] < 0:
        replica_int[row, at.TAIL] = request
    replica_int[row, at.HEAD] = request
    replica_int[row, at.WAITING] += 1
    replica_int[row, at.RESTARTED] += 1
    replica_int[row, at.WAITING_PROMPT] += request_int[request, at.PROMPT]
    request_int[request, at.PREEMPTIONS] += 1


@njit(cache=True)
def _restart_partial(row, state):
    """Restarts the half-done prefill; returns the blocks it held."""
    replica_int, request_int = state.replica_int, state.request_int
    request = replica_int[row, at.PARTIAL]
    done = replica_int[row, at.PARTIAL_DONE]
    blocks = blocks_for(request_int[request, at.PROMPT], replica_int[row, at.BLOCK_SIZE])
    if not replica_int[row, at.KEEP_PROMPT]:
        total = request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
        request_int[request, at.PROMPT] = done
        request_int[request, at.OUTPUT] = total - done
    replica_int[row, at.PARTIAL] = -1
    replica_int[row, at.PARTIAL_DONE] = 0
    replica_int[row, at.PARTIAL_SKIPPED] = 0
    replica_int[row, at.PREFILL_BLOCKS] -= blocks
    replica_int[row, at.PREFILL_COUNT] -= 1
    push_front(row, request, state)
    return blocks


@njit(cache=True)
def _restart_decode(row, request, finish_step, state):
    """Restarts a decoding request; returns the blocks it held. Its key is left to the caller."""
    replica_int, request_int = state.replica_int, state.request_int
    block_size = replica_int[row, at.BLOCK_SIZE]
    total = request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
    done = total - finish_step + replica_int[row, at.STEP]
    state.histogram[row, residue_of(request_int, request, finish_step, block_size)] -= 1
    request_int[request, at.PROMPT] = done
    request_int[request, at.OUTPUT] = total - done
    replica_int[row, at.DECODES] -= 1
    replica_int[row, at.CONTEXT] -= done
    push_front(row, request, state)
    return blocks_for(done - 1, block_size)


@njit(cache=True)
def _by_running_order(row, state):
    """Returns the positions of the keys in the order of the running list.

    Whole prompts first: by arrival, then by when they started to decode. Chunked: by the latter.
    """
    keys, replica_int = state.keys, state.replica_int
    request_int, request_float = state.request_int, state.request_float
    first, count = replica_int[row, at.FIRST_KEY], replica_int[row, at.DECODES]
    by_arrival = replica_int[row, at.PREFILL_FIRST] == 1
    mask = (1 << at.REQUEST_BITS) - 1
    order = np.empty(count, dtype=np.int64)
    for position in range(count):
        request = keys[row, first + position] & mask
        j = position
        while j > 0:
            other = keys[row, order[j - 1]] & mask
            later = request_int[other, at.ORDER] > request_int[request, at.ORDER]
            if by_arrival:
                a, b = request_float[other, at.ARRIVED], request_float[request, at.ARRIVED]
                later = a > b or (a == b and later)
            if not later:
                break
            order[j] = order[j - 1]
            j -= 1
        order[j] = first + position
    return order


@njit(cache=True)
def make_room(row, state):
    """Restarts requests until every decode that is left has room, as the schedulers do.

    Walks the running list from its front; whoever finds no free block restarts the last of those
    behind it, or itself if it is the last.
    """
    keys, replica_int, request_int = state.keys, state.replica_int, state.request_int
    mask = (1 << at.REQUEST_BITS) - 1
    block_size, limit = replica_int[row, at.BLOCK_SIZE], replica_int[row, at.NUM_BLOCKS]
    step, decodes = replica_int[row, at.STEP], replica_int[row, at.DECODES]
    used = replica_int[row, at.PREFILL_BLOCKS]
    if decodes > 0:
        held = replica_int[row, at.CONTEXT] - decodes
        used += decode_blocks(state.histogram, row, held, decodes, step - 1, block_size)
    order = _by_running_order(row, state)
    gone = np.zeros(decodes, dtype=np.bool_)
    front, back = 0, decodes
    while front < back:
        key = keys[row, order[front]]
        request, finish_step = key & mask, key >> at.REQUEST_BITS
        evictable_partial = (
            replica_int[row, at.PARTIAL] >= 0 and replica_int[row, at.PARTIAL_SKIPPED] == 0
        )
        if used < limit:
            total = request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
            done = total - finish_step + step
            if (done - 1) % block_size == 0:
                used += 1
            front += 1
        elif evictable_partial:
            used -= _restart_partial(row, state)
        else:
            back -= 1
            key = keys[row, order[back]]
            gone[back] = True
            used -= _restart_decode(row, key & mask, key >> at.REQUEST_BITS, state)
    _drop(row, order, gone, decodes, state)


@njit(cache=True)
def _drop(row, order, gone, count, state):
    """Removes the keys at the positions that are gone and keeps the others sorted."""
    keys = state.keys
    for position in range(count):
        if gone[position]:
            keys[row, order[position]] = -1
    first = state.replica_int[row, at.FIRST_KEY]
    kept = first
    for position in range(first, first + count):
        if keys[row, position] >= 0:
            keys[row, kept] = keys[row, position]
            kept += 1
