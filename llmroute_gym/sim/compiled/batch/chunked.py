"""Prefill chunks beside decodes (`chunked`)."""

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.batch_time import CONTEXT_BUCKET
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for, has_room
from llmroute_gym.sim.compiled.events import admit, chain
from llmroute_gym.sim.compiled.jit import inlined


@inlined
def _next_chunk(replica: int, budget: int, ints: IntArray) -> tuple[int, int]:
    """Continues the half-done prefill; returns its chunk and the tokens it had before."""
    request = ints[replica + at.PARTIAL]
    chunk = done = 0
    if request >= 0:
        done = ints[replica + at.PARTIAL_DONE]
        chunk = min(ints[request + at.PROMPT] - done, budget)
        ints[replica + at.PARTIAL_SKIPPED] = 1 if chunk <= 0 else 0
        if chunk > 0 and done + chunk == ints[request + at.PROMPT]:
            ints[replica + at.PARTIAL] = -1
            ints[replica + at.PARTIAL_DONE] = 0
            ints[replica + at.CHAIN_DONE] = done
            chain(replica, request, chunk, ints)
        elif chunk > 0:
            ints[replica + at.PARTIAL_CHUNK] = chunk
    return max(chunk, 0), done


@inlined
def chunks(
    replica: int, now: float, b: int, step: int, context: int, ints: IntArray, floats: FloatArray
) -> tuple[int, int, int, int, int]:
    """Fills the batch with prefill chunks (`chunked`).

    Returns:
        Their number, tokens, squares, chunk times context, and context buckets.
    """
    block_size = ints[replica + at.BLOCK_SIZE]
    budget = ints[replica + at.CHUNK_SIZE] - b
    chunk, done = _next_chunk(replica, budget, ints)
    prefills = 1 if chunk > 0 else 0
    tokens = chunk
    squares = chunk * chunk
    budget -= chunk
    request = ints[replica + at.HEAD]
    limit = ints[replica + at.MAX_BATCH]
    while budget > 0 and request >= 0 and b + ints[replica + at.PREFILL_COUNT] < limit:
        prompt = ints[request + at.PROMPT]
        held = ints[replica + at.PREFILL_BLOCKS] + blocks_for(prompt, block_size)
        if not has_room(replica, b, context, step, held, ints[replica + at.OPEN_BLOCKS], ints):
            break
        admit(replica, request, held, now, ints, floats)
        part = min(prompt, budget)
        budget -= part
        prefills += 1
        tokens += part
        squares += part * part
        if part == prompt:
            chain(replica, request, part, ints)
        else:
            ints[replica + at.PARTIAL] = request
            ints[replica + at.PARTIAL_DONE] = 0
            ints[replica + at.PARTIAL_SKIPPED] = 0
            ints[replica + at.PARTIAL_CHUNK] = part
        request = ints[replica + at.HEAD]
    buckets = (done + CONTEXT_BUCKET - 1) // CONTEXT_BUCKET if chunk > 0 else 0
    return prefills, tokens, squares, chunk * done, buckets
