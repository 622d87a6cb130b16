"""A replica of `vllm_v1` from event to event, see `kernel` for what a run of decode batches is."""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch.vllm_v1 import (
    add_chunk,
    admit_waiting,
    chunk_tokens,
    more_steps,
    taken_in,
    unlink,
    walk,
)
from llmroute_gym.sim.compiled.batch_seconds import decode_seconds, prefill_seconds
from llmroute_gym.sim.compiled.blocks import blocks_for, residue
from llmroute_gym.sim.compiled.events import (
    end_in_time,
    mean_after,
    note_finish,
    note_first_token,
    push,
)
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.kernel import decode_run, new_pace
from llmroute_gym.sim.compiled.keys import count_anew, insert_key
from llmroute_gym.sim.compiled.prefix import fill_job, give_back, settle_all
from llmroute_gym.sim.compiled.runs import take


@inlined
def _in_order(first: int, job: int, ints: IntArray) -> int:
    """Adds a job to a list in order of admission; returns the first of it."""
    if first < 0 or ints[job + kv.NUMBER] < ints[first + kv.NUMBER]:
        ints[job + kv.LINK] = first
        return job
    before = first
    following = ints[before + kv.LINK]
    while following >= 0 and ints[following + kv.NUMBER] < ints[job + kv.NUMBER]:
        before = following
        following = ints[before + kv.LINK]
    ints[job + kv.LINK] = following
    ints[before + kv.LINK] = job
    return first


@kernel
def _count_anew(replica: int, b: int, step: int, first_key: int, ints: IntArray) -> int:
    """Counts the steps from near 0 again, in keys and jobs too; returns the step."""
    assume(first_key >= 0)
    fewer = count_anew(replica, b, step, first_key, ints)
    for word in range(first_key, first_key + b):
        job = ints[(ints[word] & at.REQUEST_MASK) + at.ORDER]
        ints[job + kv.GENERATED] -= step - fewer
    return fewer


@inlined
def _leave(replica: int, store: int, job: int, block_size: int, ints: IntArray) -> None:
    """Lets a finished job go."""
    request = ints[job + kv.REQUEST]
    assume(request >= 0)
    computed = ints[request + at.PROMPT] + ints[request + at.OUTPUT] - 1
    if ints[job + kv.STATE] & kv.KNOWN == 0 and ints[store + kv.OLDEST] < 0:
        held = blocks_for(computed, block_size)
        ints[store + kv.FREE] += held
        ints[store + kv.BLANK] += held
    else:
        give_back(store, job, computed, True, ints)
    unlink(store, job, ints)
    ints[request + at.ORDER] = -1
    arena = ints[store + kv.ARENA]
    assume(arena >= 0)
    ints[job] = ints[arena + kv.FREE_JOB]
    ints[arena + kv.FREE_JOB] = job


@inlined
def saved_tokens(
    store: int, decodes: int, block_size: int, ints: IntArray, floats: FloatArray
) -> int:
    """Returns the context tokens of the step's decodes whose reading costs nothing."""
    assume(store >= 0)
    shared = ints[store + kv.SHARED]
    if shared == 0 or decodes == 0:
        return 0
    repeated = shared * block_size * decodes // ints[store + kv.RUNNING]
    return int(floats[store + kv.SHARED_READS] * repeated)


@kernel
def receive(replica: int, request: int, observed: bool, ints: IntArray) -> None:
    """Puts a request at the end of the waiting queue of a replica of `vllm_v1`."""
    assume(replica >= 0)
    assume(request >= 0)
    store = ints[replica + at.STORE]
    assume(store >= 0)
    end_in_time(replica, request, ints)
    arena = ints[store + kv.ARENA]
    assume(arena >= 0)
    job = ints[arena + kv.FREE_JOB]
    if job >= 0:
        ints[arena + kv.FREE_JOB] = ints[job]
    else:
        job = ints[arena + kv.NEXT_JOB]
        ints[arena + kv.NEXT_JOB] = job + kv.JOB_WORDS
    assume(job >= 0)
    ints[request + at.ORDER] = job
    ints[job + kv.GENERATED] = 0
    ints[job + kv.DONE] = 0
    ints[job + kv.CHUNK] = 0
    fill_job(store, job, request, ints)
    push(replica, request, observed, ints)


@kernel
def advance_vllm(
    replica: int,
    cluster: int,
    feed: int,
    until: float,
    observed: bool,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs one replica of `vllm_v1` through everything that happens before `until`.

    Args: as those of `kernel.advance`.
    """
    assume(replica >= 0)
    assume(cluster >= 0)
    store = ints[replica + at.STORE]
    assume(store >= 0)
    # As in `kernel.advance`, the hot state lives in locals.
    b = ints[replica + at.DECODES]
    step = ints[replica + at.STEP]
    context = ints[replica + at.CONTEXT]
    first_key = ints[replica + at.FIRST_KEY]
    assume(first_key >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    in_decode = ints[replica + at.IN_DECODE]
    same_until = ints[replica + at.SAME_UNTIL]
    batch_end = floats[replica + at.BATCH_END]
    batch_time = floats[replica + at.BATCH_TIME]
    mean_time = floats[replica + at.MEAN_BATCH_TIME]
    model = ints[replica + at.MODEL]
    assume(model >= 0)
    dense = ints[model + at.DENSE]
    assume(dense >= 0)

    while True:
        horizon = until
        if feed >= 0:
            horizon = floats[feed + at.ARRIVED]
        while True:
            # The end of the step in flight, or the wake-up of an idle replica.
            if batch_end < horizon:
                now = batch_end
                if observed:
                    mean_time = mean_after(mean_time, batch_time, 0.0, 1)
                if in_decode == 1:
                    step += 1
                    context += b
            elif batch_end == math.inf and ints[replica + at.HEAD] >= 0:
                now = floats[ints[replica + at.HEAD] + at.ARRIVED]
                if now >= horizon:
                    break
            else:
                break

            # Steps are scheduled until one is in flight at the horizon, or none can be.
            batch_end = math.inf
            same_until = 0
            while batch_end == math.inf:
                # Tokens come out; whoever has all of them leaves.
                finished = -1
                while b > 0 and (ints[first_key] >> at.REQUEST_BITS) == step:
                    request = ints[first_key] & at.REQUEST_MASK
                    first_key += 1
                    b -= 1
                    total = ints[request + at.PROMPT] + ints[request + at.OUTPUT]
                    ints[replica + at.HISTOGRAM + residue(total - step, block_size)] -= 1
                    context -= total
                    floats[request + at.FINISHED] = now
                    if observed:
                        note_finish(replica, cluster, request, now, ints, floats)
                    finished = _in_order(finished, ints[request + at.ORDER], ints)
                if step >= at.STEP_LIMIT:
                    step = _count_anew(replica, b, step, first_key, ints)
                job = ints[store + kv.CHAIN]
                if job >= 0:
                    ints[store + kv.CHAIN] = -1
                    for column in range(kv.TOKENS, kv.RESUMED_CONTEXT + 1):
                        ints[store + column] = 0
                while job >= 0:
                    following = ints[job + kv.LINK]
                    request = ints[job + kv.REQUEST]
                    assume(request >= 0)
                    tokens = ints[job + kv.CHUNK]
                    done = ints[job + kv.DONE] + tokens
                    generated = ints[job + kv.GENERATED]
                    known = ints[request + at.PROMPT] + generated
                    ints[replica + at.CHAIN_TOKENS] -= tokens
                    if done < known:
                        ints[job + kv.DONE] = done
                        ints[replica + at.PARTIAL_DONE] += tokens
                        job = following
                        continue
                    ints[store + kv.PARTIALS] -= 1
                    ints[replica + at.PARTIAL_DONE] -= done - tokens
                    ints[replica + at.PREFILL_COUNT] -= 1
                    if math.isnan(floats[request + at.FIRST_TOKEN]):
                        floats[request + at.FIRST_TOKEN] = now
                        if observed:
                            note_first_token(replica, request, now, ints, floats)
                    left = ints[request + at.OUTPUT] - generated - 1
                    if left == 0:
                        floats[request + at.FINISHED] = now
                        if observed:
                            note_finish(replica, cluster, request, now, ints, floats)
                        finished = _in_order(finished, job, ints)
                    else:
                        ints[job + kv.STATE] = (ints[job + kv.STATE] & kv.KNOWN) + kv.DECODING
                        ints[job + kv.GENERATED] = step + left
                        key = ((step + left) << at.REQUEST_BITS) | request
                        first_key = insert_key(replica, first_key, b, key, ints)
                        ints[replica + at.HISTOGRAM + residue(known + 1 - step, block_size)] += 1
                        b += 1
                        context += known + 1
                    job = following
                while finished >= 0:
                    following = ints[finished + kv.LINK]
                    _leave(replica, store, finished, block_size, ints)
                    finished = following
                if now >= floats[replica + at.NEXT_SLOWDOWN]:
                    new_pace(replica, now, ints, floats)

                logged = ints[store + kv.LOGGED] == 1
                if logged:
                    floats[store + kv.NOW] = now

                # Running requests first.
                waiting = ints[replica + at.WAITING]
                limited = ints[store + kv.LONG_PREFILL] > 0 and (
                    ints[store + kv.RUNNING] + waiting > 1
                )
                budget = ints[store + kv.BUDGET] - b
                needed = 0
                if b > 0:
                    needed = ints[replica + at.HISTOGRAM + residue(1 - step, block_size)]
                partials = ints[store + kv.PARTIALS]
                tokens = known = 0
                plain = budget >= 0 and ints[store + kv.STALLED] == 0
                if partials > 0 and plain:
                    job = ints[store + kv.LAST_JOB]
                    plain = partials == 1 and ints[job + kv.STATE] & kv.STATES == kv.PARTIAL
                    if plain and budget > 0:
                        request = ints[job + kv.REQUEST]
                        assume(request >= 0)
                        known = ints[request + at.PROMPT] + ints[job + kv.GENERATED]
                        computed = ints[job + kv.DONE]
                        tokens = min(chunk_tokens(store, known, computed, limited, ints), budget)
                        needed += blocks_for(computed + tokens, block_size)
                        needed -= blocks_for(computed, block_size)
                repeats = plain and needed <= ints[store + kv.FREE]
                admits = waiting > 0
                if repeats:
                    if needed > 0:
                        take(store, needed, ints)
                    if tokens > 0:
                        add_chunk(replica, store, job, known, tokens, step, ints)
                        budget -= tokens
                else:
                    ints[replica + at.DECODES] = b
                    ints[replica + at.STEP] = step
                    ints[replica + at.CONTEXT] = context
                    ints[replica + at.FIRST_KEY] = first_key
                    ints[store + kv.PREEMPTED] = 0
                    budget = walk(replica, store, step, limited, ints)
                    admits = admits and ints[store + kv.PREEMPTED] == 0
                    b = ints[replica + at.DECODES]
                    context = ints[replica + at.CONTEXT]
                    first_key = ints[replica + at.FIRST_KEY]
                if logged:  # what is written shows when it is
                    repeats = False
                    settle_all(store, step, ints)
                if admits and budget > 0:
                    ints[store + kv.WATCHED] = 0
                    ints[replica + at.DECODES] = b
                    ints[replica + at.STEP] = step
                    admit_waiting(replica, store, now, budget, step, limited, ints, floats)
                    repeats = repeats and ints[store + kv.WATCHED] == 0

                if ints[store + kv.CHAIN] >= 0:
                    same_until = 0
                    in_decode = 1 if b > 0 else 0
                    seconds = floats[dense + ints[store + kv.TOKENS] + b]
                    decodes = b + ints[store + kv.RESUMED]
                    contexts = context + ints[store + kv.RESUMED_CONTEXT]
                    contexts -= saved_tokens(store, decodes, block_size, ints, floats)
                    seconds += decode_seconds(model, decodes, max(contexts, 0), ints, floats)
                    if ints[store + kv.PREFILLS] > 0:
                        seconds += prefill_seconds(
                            model,
                            ints[store + kv.PREFILLS],
                            ints[store + kv.SQUARES],
                            ints[store + kv.PAIRS],
                            ints[store + kv.BUCKETS],
                            ints,
                            floats,
                        )
                    batch_time = seconds * floats[replica + at.SCALE]
                    batch_end = now + batch_time
                    if batch_end < horizon:
                        now = batch_end
                        batch_end = math.inf
                        if observed:
                            mean_time = mean_after(mean_time, batch_time, 0.0, 1)
                        step += in_decode
                        context += b
                elif b > 0:
                    in_decode = 1
                    left = 1
                    if repeats:
                        most = (ints[first_key] >> at.REQUEST_BITS) - step - 1
                        left += more_steps(replica, b, step + 1, ints[store + kv.FREE], most, ints)
                    same_until = step + left
                    began = step
                    # No step of them shares more or fewer blocks: what they take is their own.
                    saved = saved_tokens(store, b, block_size, ints, floats)
                    now, step, context, mean_time, batch_time, batch_end = decode_run(
                        replica,
                        now,
                        horizon,
                        b,
                        step,
                        context,
                        saved,
                        left,
                        mean_time,
                        observed,
                        ints,
                        floats,
                    )
                    # The first of these steps has its blocks, and one may be in flight.
                    steps = step - began - 1 + (1 if batch_end < math.inf else 0)
                    if steps > 0:
                        take(store, taken_in(replica, b, began + 1, steps, ints), ints)
                elif ints[replica + at.HEAD] < 0:
                    in_decode = 0
                    break
        if feed < 0:
            break
        following = ints[feed + at.NEXT]
        receive(replica, feed, observed, ints)
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
