"""A replica runs on, whatever its scheduler."""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch.vllm_v1 import taken_in
from llmroute_gym.sim.compiled.events import mean_after, push
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.kernel import advance, decode_run
from llmroute_gym.sim.compiled.runs import take
from llmroute_gym.sim.compiled.vllm import advance_vllm, receive, saved_tokens


@kernel
def _glide(
    replica: int,
    until: float,
    observed: bool,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> bool:
    """Runs a replica on if all its batches before `until` have the members of the one in flight.

    Then it does what `advance` does, number for number, but asks for no change at a batch's end.

    Args: as of `kernel.advance` and `layout.Stores`.

    Returns:
        Whether it has; if not, nothing has changed.
    """
    assume(replica >= 0)
    now = floats[replica + at.BATCH_END]
    if now >= until:
        return True
    b = ints[replica + at.DECODES]
    began = ints[replica + at.STEP] + 1
    mean_time = floats[replica + at.MEAN_BATCH_TIME]
    if observed:
        mean_time = mean_after(mean_time, floats[replica + at.BATCH_TIME], 0.0, 1)
    saved = 0
    if stores is not None and ints[replica + at.SCHEDULER] == at.VLLM_V1:
        store = ints[replica + at.STORE]
        saved = saved_tokens(store, b, ints[replica + at.BLOCK_SIZE], ints, floats)
    now, step, context, mean_time, batch_time, batch_end = decode_run(
        replica,
        now,
        until,
        b,
        began,
        ints[replica + at.CONTEXT] + b,
        saved,
        ints[replica + at.SAME_UNTIL] - began,
        mean_time,
        observed,
        ints,
        floats,
    )
    if batch_end == math.inf:
        return False
    ints[replica + at.STEP] = step
    ints[replica + at.CONTEXT] = context
    floats[replica + at.BATCH_END] = batch_end
    floats[replica + at.BATCH_TIME] = batch_time
    floats[replica + at.MEAN_BATCH_TIME] = mean_time
    if stores is not None and ints[replica + at.SCHEDULER] == at.VLLM_V1:
        store = ints[replica + at.STORE]
        assume(store >= 0)
        take(store, taken_in(replica, b, began, step - began + 1, ints), ints)
    return True


@inlined
def run_on(
    replica: int,
    cluster: int,
    feed: int,
    until: float,
    observed: bool,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs one replica through everything that happens before `until`, see `kernel.advance`."""
    if stores is None:
        advance(replica, cluster, feed, until, observed, ints, floats)
    elif ints[replica + at.SCHEDULER] == at.VLLM_V1:
        advance_vllm(replica, cluster, feed, until, observed, ints, floats)
    else:
        advance(replica, cluster, feed, until, observed, ints, floats)


@inlined
def keep_up(
    replica: int,
    cluster: int,
    until: float,
    observed: bool,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """The same without a feed, faster where a run of equal decode batches just goes on.

    For replicas that are run on at every arrival, mostly not their own.
    """
    assume(replica >= 0)
    same = ints[replica + at.SAME_UNTIL] > ints[replica + at.STEP] + 1
    if not (same and _glide(replica, until, observed, stores, ints, floats)):
        run_on(replica, cluster, -1, until, observed, stores, ints, floats)


@inlined
def arrive(replica: int, request: int, observed: bool, stores: at.Stores, ints: IntArray) -> None:
    """Puts a request at the end of a replica's waiting queue."""
    if stores is None:
        push(replica, request, observed, ints)
    elif ints[replica + at.SCHEDULER] == at.VLLM_V1:
        receive(replica, request, observed, ints)
    else:
        push(replica, request, observed, ints)
