"""KV blocks without a counter per request.

A decoding request whose `done` tokens were counted at the last batch end holds
ceil((done - 1) / block size) blocks; in a batch with decodes it holds ceil(done / block size).
All of them take one token per step, so the blocks in use follow from the step counter, the sum of
contexts and a histogram of (done - step) modulo the block size. An upper bound nearly always
proves that there is room.
"""

from numba import njit

from llmroute_gym.sim.compiled import layout as at


@njit(cache=True, inline="always")
def blocks_for(tokens, block_size):
    """Returns the blocks that hold `tokens` tokens."""
    return (tokens + block_size - 1) // block_size


@njit(cache=True)
def decode_blocks(histogram, row, contexts, decodes, step, block_size):
    """Returns the exact blocks of all decoding requests: sum of ceil(context / block size).

    Args:
        histogram: (n_rows, block size), decoding requests by (done - step) modulo block size.
        row: the replica's row.
        contexts: the sum of tokens to hold, over the decoding requests.
        decodes: how many they are.
        step: the step at which `done` reaches those tokens.
        block_size: tokens per block.
    """
    padding = 0
    for residue in range(block_size):
        padding += histogram[row, residue] * ((-residue - step) % block_size)
    return (contexts + padding) // block_size


@njit(cache=True)
def has_room(histogram, row, contexts, decodes, step, block_size, held, limit):
    """Whether `held` blocks plus those of the decoding requests stay within `limit`."""
    if decodes == 0:
        return held <= limit
    if held + (contexts + (block_size - 1) * decodes) // block_size <= limit:
        return True
    return held + decode_blocks(histogram, row, contexts, decodes, step, block_size) <= limit


@njit(cache=True)
def steps_with_room(histogram, row, contexts, decodes, step, block_size, held, limit, most):
    """Returns how many decode steps in a row (at most `most`) find room for their blocks.

    Step j (from 0) needs held + sum ceil((done + j) / block size) <= limit.
    """
    if most <= 0:
        return 0
    last = contexts + decodes * (most - 1)
    if held + (last + (block_size - 1) * decodes) // block_size <= limit:
        return most
    used = held + decode_blocks(histogram, row, contexts, decodes, step, block_size)
    count = 0
    while used <= limit and count < most:
        count += 1
        used += histogram[row, (1 - step - count) % block_size]
    return count


@njit(cache=True, inline="always")
def residue_of(request_int, request, finish_step, block_size):
    """Returns (done - step) modulo the block size of a decoding request."""
    total = request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
    return (total - finish_step) % block_size
