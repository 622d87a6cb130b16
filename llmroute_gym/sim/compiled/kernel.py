"""The heart of the compiled engine: one replica from event to event.

Between an admission, a completion and a block shortage the decode batches of a replica have the
same members, so a run of them takes one step here: constant times within a bucket of the exact
tables, an arithmetic series on fitted models.
"""

import math

from llmroute_gym.sim.batch_time import CONTEXT_BUCKET
from llmroute_gym.sim.compiled import layout as at
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
    admit,
    chain,
    mean_after,
    note_finish,
    note_first_token,
    push,
)
from llmroute_gym.sim.compiled.eviction import make_room
from llmroute_gym.sim.compiled.jit import inlined, kernel
from llmroute_gym.sim.run import FloatArray, IntArray


@inlined
def _end_of(now: float, first: float, slope: float, count: int) -> float:
    """When `count` batches of first, first + slope, ... seconds end that start at `now`."""
    return now + (count * first + slope * (count * (count - 1) * 0.5))


@kernel
def _ends_before(horizon: float, now: float, first: float, slope: float, count: int) -> int:
    """How many of `count` batches in a row end before the horizon."""
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
def _new_pace(replica: int, now: float, ints: IntArray, floats: FloatArray) -> None:
    """Takes the slowdowns that have begun by `now`."""
    while now >= floats[replica + at.NEXT_SLOWDOWN]:
        slowdown = ints[replica + at.SLOWDOWN]
        floats[replica + at.SCALE] = floats[slowdown + 1] / floats[replica + at.SPEED]
        slowdown += 2
        ints[replica + at.SLOWDOWN] = slowdown
        more = slowdown < ints[replica + at.SLOWDOWN_END]
        floats[replica + at.NEXT_SLOWDOWN] = floats[slowdown] if more else math.inf


@inlined
def _insert_key(replica: int, first: int, count: int, key: int, ints: IntArray) -> int:
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
def advance(
    replica: int,
    cluster: int,
    feed: IntArray,
    feed_at: int,
    feed_end: int,
    until: float,
    observed: bool,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs one replica through everything that happens before `until`.

    Args:
        replica: its word.
        cluster: word of its cluster, for the books of an observed run.
        feed: words of requests that arrive at this replica on the way, by arrival.
        feed_at: index of the first of them.
        feed_end: one past the last of them.
        until: seconds; what happens at that instant is left.
        observed: whether signals and reward integrals are kept.
        ints: memory, see `layout`.
        floats: the same memory.
    """
    # The hot state lives in locals; everything else is touched where it changes.
    b = ints[replica + at.DECODES]
    step = ints[replica + at.STEP]
    context = ints[replica + at.CONTEXT]
    first_key = ints[replica + at.FIRST_KEY]
    in_decode = ints[replica + at.IN_DECODE]
    batch_end = floats[replica + at.BATCH_END]
    batch_time = floats[replica + at.BATCH_TIME]
    mean_time = floats[replica + at.MEAN_BATCH_TIME]
    scale = floats[replica + at.SCALE]
    next_slowdown = floats[replica + at.NEXT_SLOWDOWN]
    prefill_first = ints[replica + at.PREFILL_FIRST] == 1
    max_batch = ints[replica + at.MAX_BATCH]
    block_size = ints[replica + at.BLOCK_SIZE]
    num_blocks = ints[replica + at.NUM_BLOCKS]
    open_blocks = ints[replica + at.OPEN_BLOCKS]
    model = ints[replica + at.MODEL]
    dense = ints[model + at.DENSE]

    while True:
        horizon = until
        if feed_at < feed_end:
            horizon = floats[feed[feed_at] + at.ARRIVED]
        while True:
            # ---- the end of the batch in flight, or the wake-up of an idle replica
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

            # ---- build batches until one is in flight at the horizon, or none can be built
            while True:
                while b > 0 and (ints[first_key] >> at.REQUEST_BITS) == step:
                    request = ints[first_key] & at.REQUEST_MASK
                    first_key += 1
                    b -= 1
                    left = residue_of(request, step, block_size, ints)
                    ints[replica + at.HISTOGRAM + left] -= 1
                    context -= ints[request + at.PROMPT] + ints[request + at.OUTPUT]
                    floats[request + at.FINISHED] = now
                    if observed:
                        note_finish(replica, cluster, request, now, ints, floats)

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
                        first_key = _insert_key(replica, first_key, b, key, ints)
                        ints[replica + at.HISTOGRAM + residue(prompt + 1 - step, block_size)] += 1
                        ints[request + at.ORDER] = ints[replica + at.JOINED]
                        ints[replica + at.JOINED] += 1
                        b += 1
                        context += prompt + 1
                    request = ints[request + at.NEXT]

                if now >= next_slowdown:
                    _new_pace(replica, now, ints, floats)
                    scale = floats[replica + at.SCALE]
                    next_slowdown = floats[replica + at.NEXT_SLOWDOWN]

                prefills = 0
                tokens = 0
                squares = 0
                chunk_context = 0
                buckets = 0
                decoding = b
                crowded = False
                request = ints[replica + at.HEAD]
                if prefill_first and request >= 0:
                    longest = 0
                    held = ints[replica + at.PREFILL_BLOCKS]
                    while request >= 0 and b + ints[replica + at.PREFILL_COUNT] < max_batch:
                        prompt = ints[request + at.PROMPT]
                        longest = max(longest, prompt)
                        if (prefills + 1) * longest > ints[replica + at.MAX_BATCHED_TOKENS] and (
                            prefills > 0 or ints[request + at.PREEMPTIONS] == 0
                        ):
                            break
                        held += blocks_for(prompt, block_size)
                        if not has_room(replica, b, context - b, step - 1, held, open_blocks, ints):
                            break
                        admit(replica, request, held, now, ints, floats)
                        chain(replica, request, prompt, ints)
                        prefills += 1
                        tokens += prompt
                        squares += prompt * prompt
                        request = ints[replica + at.HEAD]
                    if prefills > 0:
                        decoding = 0
                if decoding > 0 and not has_room(
                    replica,
                    b,
                    context,
                    step,
                    ints[replica + at.PREFILL_BLOCKS],
                    num_blocks - 1,
                    ints,
                ):
                    ints[replica + at.DECODES] = b
                    ints[replica + at.STEP] = step
                    ints[replica + at.CONTEXT] = context
                    ints[replica + at.FIRST_KEY] = first_key
                    make_room(replica, ints, floats)
                    b = decoding = ints[replica + at.DECODES]
                    context = ints[replica + at.CONTEXT]
                    crowded = True
                if not prefill_first:
                    budget = ints[replica + at.CHUNK_SIZE] - b
                    request = ints[replica + at.PARTIAL]
                    if request >= 0:
                        done = ints[replica + at.PARTIAL_DONE]
                        chunk = min(ints[request + at.PROMPT] - done, budget)
                        ints[replica + at.PARTIAL_SKIPPED] = 1
                        if chunk > 0:
                            ints[replica + at.PARTIAL_SKIPPED] = 0
                            budget -= chunk
                            prefills = 1
                            tokens = chunk
                            squares = chunk * chunk
                            chunk_context = chunk * done
                            buckets = (done + CONTEXT_BUCKET - 1) // CONTEXT_BUCKET
                            if done + chunk == ints[request + at.PROMPT]:
                                ints[replica + at.PARTIAL] = -1
                                ints[replica + at.PARTIAL_DONE] = 0
                                ints[replica + at.CHAIN_DONE] = done
                                chain(replica, request, chunk, ints)
                            else:
                                ints[replica + at.PARTIAL_CHUNK] = chunk
                    request = ints[replica + at.HEAD]
                    while (
                        budget > 0
                        and request >= 0
                        and b + ints[replica + at.PREFILL_COUNT] < max_batch
                    ):
                        prompt = ints[request + at.PROMPT]
                        held = ints[replica + at.PREFILL_BLOCKS] + blocks_for(prompt, block_size)
                        if not has_room(replica, b, context, step, held, open_blocks, ints):
                            break
                        admit(replica, request, held, now, ints, floats)
                        chunk = min(prompt, budget)
                        budget -= chunk
                        prefills += 1
                        tokens += chunk
                        squares += chunk * chunk
                        if chunk == prompt:
                            chain(replica, request, chunk, ints)
                        else:
                            ints[replica + at.PARTIAL] = request
                            ints[replica + at.PARTIAL_DONE] = 0
                            ints[replica + at.PARTIAL_SKIPPED] = 0
                            ints[replica + at.PARTIAL_CHUNK] = chunk
                        request = ints[replica + at.HEAD]

                if prefills > 0:
                    in_decode = 1 if decoding > 0 else 0
                    seconds = floats[dense + tokens + decoding]
                    seconds += decode_seconds(model, decoding, context, ints, floats)
                    seconds += prefill_seconds(
                        model, prefills, squares, chunk_context, buckets, ints, floats
                    )
                    batch_time = seconds * scale
                    batch_end = now + batch_time
                    break
                if b == 0:
                    if ints[replica + at.HEAD] >= 0:
                        continue  # the only request restarted itself and can run again
                    batch_end = math.inf
                    in_decode = 0
                    break

                # ---- a run of decode batches with the same members
                in_decode = 1
                left = 1  # after restarts the next batch may admit what this one could not
                if not crowded:
                    left = steps_with_room(
                        replica,
                        b,
                        context,
                        step,
                        ints[replica + at.PREFILL_BLOCKS],
                        num_blocks - 1,
                        (ints[first_key] >> at.REQUEST_BITS) - step,
                        ints,
                    )
                in_flight = False
                while left > 0 and now < next_slowdown:
                    count, first, slope = equal_steps(model, b, context, left, ints, floats)
                    first *= scale
                    slope *= scale
                    if next_slowdown < math.inf:
                        count = min(
                            count, _ends_before(next_slowdown, now, first, slope, count) + 1
                        )
                    if _end_of(now, first, slope, count) >= horizon:
                        count = _ends_before(horizon, now, first, slope, count)
                        batch_time = first + slope * count
                        in_flight = True
                    now = _end_of(now, first, slope, count)
                    if observed and count > 0:
                        mean_time = mean_after(mean_time, first, slope, count)
                    step += count
                    context += b * count
                    left -= count
                    if in_flight:
                        batch_end = now + batch_time
                        break
                if in_flight:
                    break
        if feed_at == feed_end:
            break
        push(replica, feed[feed_at], observed, ints)
        feed_at += 1

    ints[replica + at.DECODES] = b
    ints[replica + at.STEP] = step
    ints[replica + at.CONTEXT] = context
    ints[replica + at.FIRST_KEY] = first_key
    ints[replica + at.IN_DECODE] = in_decode
    floats[replica + at.BATCH_END] = batch_end
    floats[replica + at.BATCH_TIME] = batch_time
    floats[replica + at.MEAN_BATCH_TIME] = mean_time
