"""The rare decode batch without room for its blocks: the last ones restart, in exact order."""

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for, decode_blocks, residue_of
from llmroute_gym.sim.compiled.jit import kernel


@kernel
def _push_front(replica: int, request: int, ints: IntArray) -> None:
    """Puts a restarted request at the front of the waiting queue."""
    ints[request + at.NEXT] = ints[replica + at.HEAD]
    if ints[replica + at.HEAD] < 0:
        ints[replica + at.TAIL] = request
    ints[replica + at.HEAD] = request
    ints[replica + at.WAITING] += 1
    ints[replica + at.RESTARTED] += 1
    ints[replica + at.WAITING_PROMPT] += ints[request + at.PROMPT]
    ints[request + at.PREEMPTIONS] += 1


@kernel
def _restart_partial(replica: int, ints: IntArray) -> int:
    """Restarts the half-done prefill; returns the blocks it held."""
    request = ints[replica + at.PARTIAL]
    done = ints[replica + at.PARTIAL_DONE]
    blocks = blocks_for(ints[request + at.PROMPT], ints[replica + at.BLOCK_SIZE])
    if ints[replica + at.KEEP_PROMPT] == 0:
        total = ints[request + at.PROMPT] + ints[request + at.OUTPUT]
        ints[request + at.PROMPT] = done
        ints[request + at.OUTPUT] = total - done
    ints[replica + at.PARTIAL] = -1
    ints[replica + at.PARTIAL_DONE] = 0
    ints[replica + at.PARTIAL_SKIPPED] = 0
    ints[replica + at.PREFILL_BLOCKS] -= blocks
    ints[replica + at.PREFILL_COUNT] -= 1
    _push_front(replica, request, ints)
    return blocks


@kernel
def _restart_decode(replica: int, key: int, ints: IntArray) -> int:
    """Restarts a decoding request; returns the blocks it held. Its key is left to the caller."""
    request, finish_step = key & at.REQUEST_MASK, key >> at.REQUEST_BITS
    block_size = ints[replica + at.BLOCK_SIZE]
    total = ints[request + at.PROMPT] + ints[request + at.OUTPUT]
    done = total - finish_step + ints[replica + at.STEP]
    ints[replica + at.HISTOGRAM + residue_of(request, finish_step, block_size, ints)] -= 1
    ints[request + at.PROMPT] = done
    ints[request + at.OUTPUT] = total - done
    ints[replica + at.DECODES] -= 1
    ints[replica + at.CONTEXT] -= done
    _push_front(replica, request, ints)
    return blocks_for(done - 1, block_size)


@kernel
def _comes_later(replica: int, a: int, b: int, ints: IntArray, floats: FloatArray) -> bool:
    """Whether request a stands behind request b in the running list.

    Whole prompts first: by arrival, then by when they started to decode. Chunked: by the latter.
    """
    if ints[replica + at.SCHEDULER] == at.PREFILL_FIRST:
        arrived_a, arrived_b = floats[a + at.ARRIVED], floats[b + at.ARRIVED]
        if arrived_a != arrived_b:
            return arrived_a > arrived_b
    return ints[a + at.ORDER] > ints[b + at.ORDER]


@kernel
def _sort_by_running_order(replica: int, order: int, ints: IntArray, floats: FloatArray) -> None:
    """Writes the words of the keys, in the order of the running list, from `order` on."""
    first, count = ints[replica + at.FIRST_KEY], ints[replica + at.DECODES]
    for position in range(count):
        request = ints[first + position] & at.REQUEST_MASK
        j = position
        while j > 0:
            other = ints[ints[order + j - 1]] & at.REQUEST_MASK
            if not _comes_later(replica, other, request, ints, floats):
                break
            ints[order + j] = ints[order + j - 1]
            j -= 1
        ints[order + j] = first + position


@kernel
def make_room(replica: int, ints: IntArray, floats: FloatArray) -> None:
    """Restarts requests until every decode that is left has room, as the schedulers do.

    Walks the running list from its front; whoever finds no free block restarts the last of those
    behind it, or itself if it is the last.
    """
    block_size, limit = ints[replica + at.BLOCK_SIZE], ints[replica + at.NUM_BLOCKS]
    step, decodes = ints[replica + at.STEP], ints[replica + at.DECODES]
    held = decode_blocks(replica, ints[replica + at.CONTEXT] - decodes, step - 1, ints)
    used = ints[replica + at.PREFILL_BLOCKS] + held
    order = ints[replica + at.LAST_KEY]
    _sort_by_running_order(replica, order, ints, floats)
    front, back = 0, decodes
    while front < back:
        if used < limit:
            key = ints[ints[order + front]]
            request, finish_step = key & at.REQUEST_MASK, key >> at.REQUEST_BITS
            done = ints[request + at.PROMPT] + ints[request + at.OUTPUT] - finish_step + step
            if (done - 1) % block_size == 0:
                used += 1
            front += 1
        elif ints[replica + at.PARTIAL] >= 0 and ints[replica + at.PARTIAL_SKIPPED] == 0:
            used -= _restart_partial(replica, ints)
        else:
            back -= 1
            word = ints[order + back]
            used -= _restart_decode(replica, ints[word], ints)
            ints[word] = -1
    first = kept = ints[replica + at.FIRST_KEY]
    for word in range(first, first + decodes):
        if ints[word] >= 0:
            ints[kept] = ints[word]
            kept += 1
