"""KV blocks without a counter per request.

A decoding request whose `done` tokens were counted at the last batch end holds
ceil((done - 1) / block size) blocks; in a batch with decodes it holds ceil(done / block size).
All of them take one token per step, so the blocks in use follow from the step counter, the sum of
contexts and a histogram of (done - step) modulo the block size. An upper bound nearly always
proves that there is room.
"""

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.lanes import LANES, weighed

_USUAL = LANES
"""A block size for which dividing is shifting, and one count per residue fits the lanes."""


@inlined
def blocks_for(tokens: int, block_size: int) -> int:
    """Returns the blocks that hold `tokens` tokens."""
    padded = tokens + block_size - 1
    return padded // _USUAL if block_size == _USUAL else padded // block_size


@inlined
def residue(tokens: int, block_size: int) -> int:
    """Returns tokens modulo the block size, at least 0."""
    return tokens % _USUAL if block_size == _USUAL else tokens % block_size


@inlined
def _missing_tokens(counts: int, full: int, block_size: int, ints: IntArray) -> int:
    """Returns the tokens that all decoding requests lack to fill their last blocks."""
    missing = 0
    for other in range(block_size):
        padding = full - other if other <= full else full - other + block_size
        missing += ints[counts + other] * padding
    return missing


@inlined
def decode_blocks(replica: int, contexts: int, step: int, ints: IntArray) -> int:
    """Returns the exact blocks of all decoding requests: sum of ceil(context / block size).

    Args:
        replica: its word.
        contexts: the sum of tokens to hold, over the decoding requests.
        step: the step at which `done` reaches those tokens.
        ints: memory.
    """
    assume(replica >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    full = residue(-step, block_size)  # of contexts that end with their block
    counts = replica + at.HISTOGRAM
    if block_size == _USUAL:
        missing = weighed(ints, counts, full)
    else:
        missing = _missing_tokens(counts, full, block_size, ints)
    return blocks_for(contexts + missing - block_size + 1, block_size)


@inlined
def has_room(
    replica: int, decodes: int, contexts: int, step: int, held: int, limit: int, ints: IntArray
) -> bool:
    """Whether `held` blocks plus those of the decoding requests stay within `limit`."""
    block_size = ints[replica + at.BLOCK_SIZE]
    room = contexts + (block_size - 1) * decodes <= (limit - held) * block_size
    if not room:
        room = held + decode_blocks(replica, contexts, step, ints) <= limit
    return room


@inlined
def steps_with_room(
    replica: int,
    decodes: int,
    contexts: int,
    step: int,
    held: int,
    limit: int,
    most: int,
    ints: IntArray,
) -> int:
    """Returns how many decode steps in a row (1 to `most`) find room for their blocks.

    Step j (from 0) needs held + sum ceil((done + j) / block size) <= limit; step 0 has it.
    """
    block_size = ints[replica + at.BLOCK_SIZE]
    steps = most
    if contexts + decodes * (most + block_size - 2) > (limit - held) * block_size:
        steps = _counted_steps(replica, contexts, step, held, limit, most, ints)
    return steps


@kernel
def _counted_steps(
    replica: int, contexts: int, step: int, held: int, limit: int, most: int, ints: IntArray
) -> int:
    """The same, counted block by block."""
    assume(replica >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    used = held + decode_blocks(replica, contexts, step, ints)
    growing = residue(1 - step, block_size)  # the residue that took a new block at step 0
    count = 0
    while used <= limit and count < most:
        count += 1
        growing = growing - 1 if growing > 0 else block_size - 1
        used += ints[replica + at.HISTOGRAM + growing]
    return max(count, 1)


@inlined
def residue_of(request: int, finish_step: int, block_size: int, ints: IntArray) -> int:
    """Returns (done - step) modulo the block size of a decoding request."""
    return residue(ints[request + at.PROMPT] + ints[request + at.OUTPUT] - finish_step, block_size)
