"""The heart of the compiled engine: one replica from event to event.

Between an admission, a completion and a block shortage the decode batches of a replica have the
same members, so a run of them takes one step here: constant times within a bucket of the exact
tables, an arithmetic series on fitted models.
"""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch.chunked import chunks
from llmroute_gym.sim.compiled.batch.prefill_first import whole_prompts
from llmroute_gym.sim.compiled.batch_seconds import (
    decode_seconds,
    equal_steps,
    prefill_seconds,
)
from llmroute_gym.sim.compiled.blocks import (
    blocks_for,
    has_room,
    residue,
    residue_of,
    steps_with_room,
)
from llmroute_gym.sim.compiled.events import (
    mean_after,
    note_finish,
    note_first_token,
    push,
)
from llmroute_gym.sim.compiled.eviction import make_room
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.keys import count_anew, insert_key


@inlined
def _end_of(now: float, first: float, slope: float, count: int) -> float:
    """When `count` batches of first, first + slope, ... seconds end that start at `now`."""
    return now + (count * first + slope * (count * (count - 1) * 0.5))


@inlined
def _ends_before(horizon: float, now: float, first: float, slope: float, count: int) -> int:
    """How many of `count` batches in a row end before the horizon."""
    ended = 0
    # A guess takes a root and a quotient, which is too much for one batch.
    if count > 1 and now + (first + first + slope) < horizon:
        gap = horizon - now
        if slope == 0.0:
            guess = gap / first
        else:
            half = first - 0.5 * slope
            guess = (math.sqrt(max(half * half + 2.0 * slope * gap, 0.0)) - half) / slope
        ended = int(min(max(guess, 0.0), float(count)))
    while ended > 0 and _end_of(now, first, slope, ended) >= horizon:
        ended -= 1
    while ended < count and _end_of(now, first, slope, ended + 1) < horizon:
        ended += 1
    return ended


@kernel
def new_pace(replica: int, now: float, ints: IntArray, floats: FloatArray) -> None:
    """Takes the slowdowns that have begun by `now`."""
    while now >= floats[replica + at.NEXT_SLOWDOWN]:
        slowdown = ints[replica + at.SLOWDOWN]
        floats[replica + at.SCALE] = floats[slowdown + 1] / floats[replica + at.SPEED]
        slowdown += 2
        ints[replica + at.SLOWDOWN] = slowdown
        more = slowdown < ints[replica + at.SLOWDOWN_END]
        floats[replica + at.NEXT_SLOWDOWN] = floats[slowdown] if more else math.inf


@inlined
def _end_batch(
    replica: int,
    cluster: int,
    now: float,
    b: int,
    step: int,
    context: int,
    first_key: int,
    observed: bool,
    ints: IntArray,
    floats: FloatArray,
) -> tuple[int, int, int, int]:
    """Takes out the requests whose last token is out, lets completed prefills decode.

    Returns:
        b, step, context, first_key.
    """
    block_size = ints[replica + at.BLOCK_SIZE]
    assume(first_key >= 0)
    while b > 0 and (ints[first_key] >> at.REQUEST_BITS) == step:
        request = ints[first_key] & at.REQUEST_MASK
        first_key += 1
        b -= 1
        ints[replica + at.HISTOGRAM + residue_of(request, step, block_size, ints)] -= 1
        context -= ints[request + at.PROMPT] + ints[request + at.OUTPUT]
        floats[request + at.FINISHED] = now
        if observed:
            note_finish(replica, cluster, request, now, ints, floats)
    if step >= at.STEP_LIMIT:
        step = count_anew(replica, b, step, first_key, ints)
    request = ints[replica + at.CHAIN]
    if request >= 0:
        ints[replica + at.CHAIN] = -1
        ints[replica + at.CHAIN_TOKENS] = 0
        ints[replica + at.CHAIN_DONE] = 0
    while request >= 0:
        prompt = ints[request + at.PROMPT]
        output = ints[request + at.OUTPUT]
        ints[replica + at.PREFILL_BLOCKS] -= blocks_for(prompt, block_size)
        ints[replica + at.PREFILL_COUNT] -= 1
        if math.isnan(floats[request + at.FIRST_TOKEN]):
            floats[request + at.FIRST_TOKEN] = now
            if observed:
                note_first_token(replica, request, now, ints, floats)
        if output == 1:
            floats[request + at.FINISHED] = now
            if observed:
                note_finish(replica, cluster, request, now, ints, floats)
        else:
            key = ((step + output - 1) << at.REQUEST_BITS) | request
            first_key = insert_key(replica, first_key, b, key, ints)
            ints[replica + at.HISTOGRAM + residue(prompt + 1 - step, block_size)] += 1
            ints[request + at.ORDER] = ints[replica + at.JOINED]
            ints[replica + at.JOINED] += 1
            b += 1
            context += prompt + 1
        request = ints[request + at.NEXT]
    return b, step, context, first_key


@inlined
def decode_run(
    replica: int,
    now: float,
    horizon: float,
    b: int,
    step: int,
    context: int,
    saved: int,
    left: int,
    mean_time: float,
    observed: bool,
    ints: IntArray,
    floats: FloatArray,
) -> tuple[float, int, int, float, float, float]:
    """Runs up to `left` decode batches of the same members, those that end before the horizon.

    Reading `saved` tokens of their contexts costs nothing. Stops early where a slowdown begins.

    Returns:
        now, step, context, mean_time; time and end of the batch in flight at the horizon, or
        infinity as its end if there is none.
    """
    scale = floats[replica + at.SCALE]
    next_slowdown = floats[replica + at.NEXT_SLOWDOWN]
    batch_time = 0.0
    batch_end = math.inf
    while left > 0 and now < next_slowdown and batch_end == math.inf:
        model = ints[replica + at.MODEL]
        assume(model >= 0)
        count, first, slope = equal_steps(model, b, context - saved, left, ints, floats)
        first *= scale
        slope *= scale
        if next_slowdown < math.inf:
            count = _ends_before(next_slowdown, now, first, slope, count - 1) + 1
        cut = now + first >= horizon
        if cut:
            count = 0
        else:
            cut = _end_of(now, first, slope, count) >= horizon
            if cut:
                count = _ends_before(horizon, now, first, slope, count)
            now = _end_of(now, first, slope, count)
            if observed and count > 0:
                mean_time = mean_after(mean_time, first, slope, count)
            step += count
            context += b * count
            left -= count
        if cut:
            batch_time = first + slope * count
            batch_end = now + batch_time
    return now, step, context, mean_time, batch_time, batch_end


@kernel
def advance(
    replica: int,
    cluster: int,
    feed: int,
    until: float,
    observed: bool,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs one replica through everything that happens before `until`.

    Args:
        replica: its word.
        cluster: word of its cluster, for the books of an observed run.
        feed: the first request that arrives at this replica on the way, the others linked to it
            by arrival; -1 if there is none.
        until: seconds; what happens at that instant is left.
        observed: whether signals and reward integrals are kept.
        ints: memory, see `layout`.
        floats: the same memory.
    """
    assume(replica >= 0)
    assume(cluster >= 0)
    # The hot state lives in locals; everything else is touched where it changes.
    b = ints[replica + at.DECODES]
    step = ints[replica + at.STEP]
    context = ints[replica + at.CONTEXT]
    first_key = ints[replica + at.FIRST_KEY]
    in_decode = ints[replica + at.IN_DECODE]
    same_until = ints[replica + at.SAME_UNTIL]
    batch_end = floats[replica + at.BATCH_END]
    batch_time = floats[replica + at.BATCH_TIME]
    mean_time = floats[replica + at.MEAN_BATCH_TIME]
    prefill_first = ints[replica + at.SCHEDULER] == at.PREFILL_FIRST
    model = ints[replica + at.MODEL]
    dense = ints[model + at.DENSE]
    assume(model >= 0)
    assume(dense >= 0)

    while True:
        horizon = until
        if feed >= 0:
            horizon = floats[feed + at.ARRIVED]
        while True:
            # The end of the batch in flight, or the wake-up of an idle replica.
            if batch_end < horizon:
                now = batch_end
                if observed:
                    mean_time = mean_after(mean_time, batch_time, 0.0, 1)
                if in_decode == 1:
                    step += 1
                    context += b
                if ints[replica + at.PARTIAL_CHUNK] > 0:
                    ints[replica + at.PARTIAL_DONE] += ints[replica + at.PARTIAL_CHUNK]
                    ints[replica + at.PARTIAL_CHUNK] = 0
            elif batch_end == math.inf and ints[replica + at.HEAD] >= 0:
                now = floats[ints[replica + at.HEAD] + at.ARRIVED]
                if now >= horizon:
                    break
            else:
                break

            # Batches are built until one is in flight at the horizon, or none can be built.
            batch_end = math.inf
            same_until = 0
            while batch_end == math.inf:
                b, step, context, first_key = _end_batch(
                    replica, cluster, now, b, step, context, first_key, observed, ints, floats
                )
                if now >= floats[replica + at.NEXT_SLOWDOWN]:
                    new_pace(replica, now, ints, floats)

                prefills = tokens = squares = chunk_context = buckets = 0
                if prefill_first:
                    prefills, tokens, squares = whole_prompts(
                        replica, now, b, step, context, ints, floats
                    )
                decoding = 0 if prefills > 0 else b
                crowded = False
                if decoding > 0:
                    held, limit = ints[replica + at.PREFILL_BLOCKS], ints[replica + at.NUM_BLOCKS]
                    crowded = not has_room(replica, b, context, step, held, limit - 1, ints)
                if crowded:
                    ints[replica + at.DECODES] = b
                    ints[replica + at.STEP] = step
                    ints[replica + at.CONTEXT] = context
                    ints[replica + at.FIRST_KEY] = first_key
                    make_room(replica, ints, floats)
                    b = decoding = ints[replica + at.DECODES]
                    context = ints[replica + at.CONTEXT]
                if not prefill_first:
                    prefills, tokens, squares, chunk_context, buckets = chunks(
                        replica, now, b, step, context, ints, floats
                    )

                if prefills > 0:
                    same_until = 0
                    in_decode = 1 if decoding > 0 else 0
                    in_batch = tokens + decoding
                    assume(in_batch >= 0)
                    seconds = floats[dense + in_batch]
                    seconds += decode_seconds(model, decoding, context, ints, floats)
                    seconds += prefill_seconds(
                        model, prefills, squares, chunk_context, buckets, ints, floats
                    )
                    batch_time = seconds * floats[replica + at.SCALE]
                    batch_end = now + batch_time
                elif b > 0:
                    in_decode = 1
                    left = 1  # after restarts the next batch may admit what this one could not
                    if not crowded:
                        left = steps_with_room(
                            replica,
                            b,
                            context,
                            step,
                            ints[replica + at.PREFILL_BLOCKS],
                            ints[replica + at.NUM_BLOCKS] - 1,
                            (ints[first_key] >> at.REQUEST_BITS) - step,
                            ints,
                        )
                    same_until = step + left
                    now, step, context, mean_time, batch_time, batch_end = decode_run(
                        replica,
                        now,
                        horizon,
                        b,
                        step,
                        context,
                        0,
                        left,
                        mean_time,
                        observed,
                        ints,
                        floats,
                    )
                elif ints[replica + at.HEAD] < 0:
                    in_decode = 0
                    break
                # Else the only request has restarted itself, and can run again.
        if feed < 0:
            break
        following = ints[feed + at.NEXT]
        push(replica, feed, observed, ints)
        same_until = 0
        feed = following

    ints[replica + at.DECODES] = b
    ints[replica + at.STEP] = step
    ints[replica + at.CONTEXT] = context
    ints[replica + at.FIRST_KEY] = first_key
    ints[replica + at.IN_DECODE] = in_decode
    ints[replica + at.SAME_UNTIL] = same_until
    floats[replica + at.BATCH_END] = batch_end
    floats[replica + at.BATCH_TIME] = batch_time
    floats[replica + at.MEAN_BATCH_TIME] = mean_time
