"""When a sleeping replica has to be run on: lower bounds on its next completion.

A replica whose state nobody reads can sleep while requests arrive, as long as none of its requests
finishes. The bounds hold whatever arrives: further members only make decode batches longer than
those of `LEAST`, unless memory runs short and members leave.
"""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch_seconds import steps_seconds
from llmroute_gym.sim.compiled.events import end_in_time
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel

_FAR = 1 << 40
_LOOK_AT = 8
_HAIR_LESS = 1.0 - 1e-9
"""Keeps a sum of many steps below what rounding makes of it elsewhere."""


@kernel
def _fewest_waiting(replica: int, ints: IntArray) -> int:
    """Batches that any request in prefill or in the queue still takes; looks at a few."""
    assume(replica >= 0)
    fewest = _FAR
    partial = ints[replica + at.PARTIAL]
    if partial >= 0:
        fewest = ints[partial + at.OUTPUT]
    request = ints[replica + at.HEAD]
    looked_at = 0
    while request >= 0:
        if looked_at == _LOOK_AT:
            return 1
        fewest = min(fewest, ints[request + at.OUTPUT])
        request = ints[request + at.NEXT]
        looked_at += 1
    return fewest


@kernel
def _next_step(
    replica: int, batch_end: float, first_pace: float, ints: IntArray, floats: FloatArray
) -> float:
    """The same as `look_ahead` for `vllm_v1`: a simple bound, which holds whatever arrives."""
    assume(replica >= 0)
    soonest = batch_end
    store = ints[replica + at.STORE]
    alone = ints[store + kv.CHAIN] < 0 and ints[replica + at.PREFILL_COUNT] == 0
    if alone and ints[replica + at.WAITING] == 0 and ints[replica + at.DECODES] > 0:
        left = (ints[ints[replica + at.FIRST_KEY]] >> at.REQUEST_BITS) - ints[replica + at.STEP]
        soonest += first_pace * (left - 1)
    floats[replica + at.SOONEST] = soonest
    floats[replica + at.SOONEST_SHORT] = soonest
    floats[replica + at.FIRST_PACE] = first_pace
    floats[replica + at.PACE] = first_pace
    ints[replica + at.SPARE] = -1
    ints[replica + at.STEPS_AHEAD] = 0
    return soonest


@kernel
def look_ahead(replica: int, ints: IntArray, floats: FloatArray) -> float:
    """Prepares `sleep_on` for a replica without a feed.

    Returns:
        A lower bound on when it finishes a request if nothing more arrives; exact where nothing
        waits and memory does not run short, as all batches until then are known.
    """
    assume(replica >= 0)
    model = ints[replica + at.MODEL]
    scale = floats[replica + at.LEAST_SCALE] * _HAIR_LESS
    cheapest = ints[model + at.DENSE_LEAST]
    assume(model >= 0)
    assume(cheapest >= 0)
    head = ints[replica + at.HEAD]
    batch_end = floats[replica + at.BATCH_END]
    if batch_end == math.inf and head >= 0:
        batch_end = floats[head + at.ARRIVED]
    if ints[replica + at.SCHEDULER] == at.VLLM_V1:
        return _next_step(replica, batch_end, scale * floats[cheapest + 1], ints, floats)
    # What decodes after the batch in flight, and how many steps until one of them finishes.
    members = ints[replica + at.DECODES]
    contexts = ints[replica + at.CONTEXT]
    left = _FAR
    if members > 0:
        left = (ints[ints[replica + at.FIRST_KEY]] >> at.REQUEST_BITS) - ints[replica + at.STEP]
        if ints[replica + at.IN_DECODE] == 1:
            left -= 1
            contexts += members
    request = ints[replica + at.CHAIN]
    while request >= 0:
        left = min(left, ints[request + at.OUTPUT] - 1)
        if ints[request + at.OUTPUT] > 1:
            members += 1
            contexts += ints[request + at.PROMPT] + 1
        request = ints[request + at.NEXT]
    waiting = ints[replica + at.WAITING] + (1 if ints[replica + at.PARTIAL] >= 0 else 0)
    fewest = _fewest_waiting(replica, ints) if waiting > 0 else _FAR

    # Blocks held for prefills are counted beside their contexts: a bound only.
    ahead = left if left < _FAR else 0
    block_size = ints[replica + at.BLOCK_SIZE]
    blocks = ints[replica + at.NUM_BLOCKS] - 1 - ints[replica + at.PREFILL_BLOCKS]
    spare = blocks * block_size - contexts - members * (ahead + block_size)
    spare -= ints[replica + at.WAITING_PROMPT] + waiting * (ahead + 2 * block_size)
    first_pace = scale * floats[cheapest + 1]
    pace = scale * floats[cheapest + max(members, 1)]
    soonest = soonest_short = alone = math.inf
    if left < _FAR:
        soonest_short = batch_end + first_pace * left
        soonest = alone = soonest_short
        if spare >= 0:
            least = ints[model + at.LEAST]
            seconds = steps_seconds(least, members, contexts, left, ints, floats)
            soonest = alone = batch_end + scale * seconds
            if waiting == 0:
                seconds = steps_seconds(model, members, contexts, left, ints, floats)
                alone = batch_end + scale * seconds
    if fewest < _FAR:
        soonest_short = min(soonest_short, batch_end + first_pace * fewest)
        joining = batch_end + first_pace + pace * (fewest - 1)
        soonest = min(soonest, joining if spare >= 0 else soonest_short)
        alone = min(alone, soonest)
    floats[replica + at.SOONEST] = soonest
    floats[replica + at.SOONEST_SHORT] = soonest_short
    floats[replica + at.FIRST_PACE] = first_pace
    floats[replica + at.PACE] = pace
    ints[replica + at.SPARE] = spare
    ints[replica + at.STEPS_AHEAD] = ahead
    return alone


@inlined
def sleep_on(replica: int, request: int, ints: IntArray, floats: FloatArray) -> float:
    """Puts a request that arrives into the feed of a replica that may sleep on.

    Returns:
        A lower bound on when the replica finishes this or an earlier request, whatever arrives.
    """
    if ints[replica + at.FEED] < 0:
        ints[replica + at.FEED] = request
    else:
        ints[ints[replica + at.FEED_END] + at.NEXT] = request
    ints[replica + at.FEED_END] = request
    ints[replica + at.FEED_COUNT] += 1
    end_in_time(replica, request, ints)
    tokens = ints[request + at.PROMPT] + ints[replica + at.STEPS_AHEAD]
    spare = ints[replica + at.SPARE] - tokens - 2 * ints[replica + at.BLOCK_SIZE]
    ints[replica + at.SPARE] = spare
    arrived = floats[request + at.ARRIVED]
    steps = ints[request + at.OUTPUT] - 1
    first_pace = floats[replica + at.FIRST_PACE]
    if spare >= 0:
        own = arrived + first_pace + floats[replica + at.PACE] * steps
        soonest = min(floats[replica + at.SOONEST], own)
    else:
        soonest = min(floats[replica + at.SOONEST_SHORT], arrived + first_pace * (steps + 1))
    return soonest
