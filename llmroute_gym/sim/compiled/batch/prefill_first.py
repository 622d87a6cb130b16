"""Batches of whole prompts (`prefill_first`)."""

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for, has_room
from llmroute_gym.sim.compiled.events import admit, chain
from llmroute_gym.sim.compiled.jit import inlined


@inlined
def whole_prompts(
    replica: int, now: float, b: int, step: int, context: int, ints: IntArray, floats: FloatArray
) -> tuple[int, int, int]:
    """Admits whole prompts (`prefill_first`); returns how many, their tokens and squares."""
    block_size = ints[replica + at.BLOCK_SIZE]
    held = ints[replica + at.PREFILL_BLOCKS]
    prefills = tokens = squares = longest = 0
    request = ints[replica + at.HEAD]
    while request >= 0 and b + ints[replica + at.PREFILL_COUNT] < ints[replica + at.MAX_BATCH]:
        prompt = ints[request + at.PROMPT]
        longest = max(longest, prompt)
        # A restarted prompt that has outgrown the limit would wait for ever: it runs alone.
        outgrown = prefills == 0 and ints[request + at.PREEMPTIONS] > 0
        if (prefills + 1) * longest > ints[replica + at.MAX_BATCHED_TOKENS] and not outgrown:
            break
        held += blocks_for(prompt, block_size)
        limit = ints[replica + at.OPEN_BLOCKS]
        if not has_room(replica, b, context - b, step - 1, held, limit, ints):
            break
        admit(replica, request, held, now, ints, floats)
        chain(replica, request, prompt, ints)
        prefills += 1
        tokens += prompt
        squares += prompt * prompt
        request = ints[replica + at.HEAD]
    return prefills, tokens, squares
