"""The heart of the compiled engine: one replica from event to event.

Between an admission, a completion and a block shortage the decode batches of a replica have the
same members, so a run of them takes one step here: constant times within a bucket of the exact
tables, an arithmetic series on fitted models.
"""

import math

from numba import njit

from llmroute_gym.sim.batch_time import CONTEXT_BUCKET
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch_seconds import decode_seconds, prefill_seconds, segment_of
from llmroute_gym.sim.compiled.blocks import (
    blocks_for,
    has_room,
    residue_of,
    steps_with_room,
)
from llmroute_gym.sim.compiled.eviction import make_room
from llmroute_gym.sim.signals import BATCH_TIME_WEIGHT, RATE_TIME_S

_REQUEST_MASK = (1 << at.REQUEST_BITS) - 1
_LOG_KEPT = math.log(1.0 - BATCH_TIME_WEIGHT)


@njit(cache=True, inline="always")
def push(row, request, observed, state):
    """Puts a request at the end of a replica's waiting queue."""
    replica_int, request_int = state.replica_int, state.request_int
    request_int[request, at.NEXT] = -1
    if replica_int[row, at.HEAD] < 0:
        replica_int[row, at.HEAD] = request
    else:
        request_int[replica_int[row, at.TAIL], at.NEXT] = request
    replica_int[row, at.TAIL] = request
    replica_int[row, at.WAITING] += 1
    prompt = request_int[request, at.PROMPT]
    replica_int[row, at.WAITING_PROMPT] += prompt
    if observed:
        replica_int[row, at.TOTAL] += prompt + request_int[request, at.OUTPUT]
        replica_int[row, at.SILENT] += 1
        replica_int[row, at.SILENT_PROMPT] += prompt
        if replica_int[row, at.FIRST_PLACED] < 0:
            replica_int[row, at.FIRST_PLACED] = request
        else:
            request_int[replica_int[row, at.LAST_PLACED], at.NEXT_PLACED] = request
        replica_int[row, at.LAST_PLACED] = request


@njit(cache=True, inline="always")
def _pop(row, state):
    """Takes the head off the waiting queue."""
    replica_int, request_int = state.replica_int, state.request_int
    request = replica_int[row, at.HEAD]
    following = request_int[request, at.NEXT]
    replica_int[row, at.HEAD] = following
    if following < 0:
        replica_int[row, at.TAIL] = -1
    replica_int[row, at.WAITING] -= 1
    replica_int[row, at.WAITING_PROMPT] -= request_int[request, at.PROMPT]
    if replica_int[row, at.RESTARTED] > 0:
        replica_int[row, at.RESTARTED] -= 1
    return request


@njit(cache=True, inline="always")
def _chain(row, request, tokens, state):
    """Appends a prefill that the batch being built completes."""
    replica_int, request_int = state.replica_int, state.request_int
    request_int[request, at.NEXT] = -1
    if replica_int[row, at.CHAIN] < 0:
        replica_int[row, at.CHAIN] = request
    else:
        request_int[replica_int[row, at.CHAIN_END], at.NEXT] = request
    replica_int[row, at.CHAIN_END] = request
    replica_int[row, at.CHAIN_TOKENS] += tokens


@njit(cache=True)
def _note_first_token(row, request, now, state):
    replica_int, replica_float = state.replica_int, state.replica_float
    prompt = state.request_int[request, at.ORIGINAL_PROMPT]
    replica_int[row, at.SILENT] -= 1
    replica_int[row, at.SILENT_PROMPT] -= prompt
    replica_int[row, at.STREAMING] += 1
    replica_int[row, at.STREAMING_PROMPT] += prompt
    kept = math.exp((replica_float[row, at.TTFT_AT] - now) / RATE_TIME_S)
    ttft = now - state.request_float[request, at.ARRIVED]
    replica_float[row, at.TTFT_WEIGHT] = replica_float[row, at.TTFT_WEIGHT] * kept + 1.0
    replica_float[row, at.TTFT_TOTAL] = replica_float[row, at.TTFT_TOTAL] * kept + ttft
    replica_float[row, at.TTFT_AT] = now


@njit(cache=True)
def _note_finish(row, cluster, request, now, state):
    replica_int, request_int = state.replica_int, state.request_int
    cluster_int, cluster_float = state.cluster_int, state.cluster_float
    replica_int[row, at.TOTAL] -= request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
    replica_int[row, at.STREAMING] -= 1
    replica_int[row, at.STREAMING_PROMPT] -= request_int[request, at.ORIGINAL_PROMPT]
    arrived = state.request_float[request, at.ARRIVED]
    cluster_int[cluster, at.IN_SYSTEM] -= 1
    until = cluster_float[cluster, at.UNTIL]
    if now > arrived + cluster_float[cluster, at.LATE_AFTER]:
        cluster_int[cluster, at.LATE] -= 1
        cluster_float[cluster, at.LATE_AREA] += until - now
    cluster_float[cluster, at.DONE_AREA] += until - now
    kept = math.exp((now - until) / RATE_TIME_S)
    cluster_float[cluster, at.E2E_WEIGHT] += kept
    cluster_float[cluster, at.E2E_TOTAL] += (now - arrived) * kept


@njit(cache=True, inline="always")
def _mean_after(mean, first, slope, count):
    """Batch-time average after `count` batches of first, first + slope, ... seconds."""
    if mean == 0.0:
        mean = first
        first += slope
        count -= 1
    if count <= 0:
        return mean
    lag = slope / BATCH_TIME_WEIGHT
    kept = 1.0 - BATCH_TIME_WEIGHT if count == 1 else math.exp(_LOG_KEPT * count)
    return first + slope * count - lag + (mean - first + lag) * kept


@njit(cache=True, inline="always")
def _end_of(now, first, slope, count):
    """When `count` batches of first, first + slope, ... seconds end that start at `now`."""
    return now + (count * first + slope * (count * (count - 1) * 0.5))


@njit(cache=True)
def _ends_before(horizon, now, first, slope, count):
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


@njit(cache=True)
def advance(row, cluster, feed, feed_at, feed_end, until, observed, state):
    """Runs one replica through everything that happens before `until`.

    Args:
        row: the replica's row.
        cluster: the row of its environment, for the bookkeeping of an observed run.
        feed: requests that arrive at this replica on the way, by arrival.
        feed_at: the first of them.
        feed_end: one past the last of them.
        until: seconds; what happens at that instant is left.
        observed: whether signals and reward integrals are kept.
        state: all arrays.
    """
    replica_int, replica_float = state.replica_int, state.replica_float
    request_int, request_float = state.request_int, state.request_float
    keys, histogram = state.keys, state.histogram
    model_int, table, slowdowns = state.model_int, state.table, state.slowdowns
    # The hot state lives in locals; everything else is touched where it changes.
    b = replica_int[row, at.DECODES]
    step = replica_int[row, at.STEP]
    context = replica_int[row, at.CONTEXT]
    first_key = replica_int[row, at.FIRST_KEY]
    batch_end = replica_float[row, at.BATCH_END]
    batch_time = replica_float[row, at.BATCH_TIME]
    mean_time = replica_float[row, at.MEAN_BATCH_TIME]
    scale = replica_float[row, at.SCALE]
    next_slowdown = replica_float[row, at.NEXT_SLOWDOWN]
    in_decode = replica_int[row, at.IN_DECODE]
    prefill_first = replica_int[row, at.PREFILL_FIRST] == 1
    max_batch = replica_int[row, at.MAX_BATCH]
    block_size = replica_int[row, at.BLOCK_SIZE]
    num_blocks = replica_int[row, at.NUM_BLOCKS]
    open_blocks = num_blocks - replica_int[row, at.WATERMARK]
    model = replica_int[row, at.MODEL]
    dense = model_int[model, at.DENSE]
    kind = model_int[model, at.KIND]
    columns = model_int[model, at.DECODE_COLUMNS]
    capacity = keys.shape[1]

    while True:
        horizon = until
        if feed_at < feed_end:
            horizon = request_float[feed[feed_at], at.ARRIVED]
        # ---- every batch end before the horizon
        while True:
            if batch_end == math.inf:
                if replica_int[row, at.HEAD] < 0:
                    break
                now = request_float[replica_int[row, at.HEAD], at.ARRIVED]
                if now >= horizon:
                    break
            else:
                if batch_end >= horizon:
                    break
                now = batch_end
                if observed:
                    mean_time = _mean_after(mean_time, batch_time, 0.0, 1)
                if in_decode == 1:
                    step += 1
                    context += b
                if replica_int[row, at.PARTIAL_CHUNK] > 0:
                    replica_int[row, at.PARTIAL_DONE] += replica_int[row, at.PARTIAL_CHUNK]
                    replica_int[row, at.PARTIAL_CHUNK] = 0
            # ---- build batches until one is in flight beyond the horizon's reach
            while True:
                # completions
                while b > 0 and (keys[row, first_key] >> at.REQUEST_BITS) == step:
                    request = keys[row, first_key] & _REQUEST_MASK
                    first_key += 1
                    b -= 1
                    histogram[row, residue_of(request_int, request, step, block_size)] -= 1
                    context -= request_int[request, at.PROMPT] + request_int[request, at.OUTPUT]
                    request_float[request, at.FINISHED] = now
                    if observed:
                        _note_finish(row, cluster, request, now, state)
                # prefills that the ended batch completed start to decode
                request = replica_int[row, at.CHAIN]
                if request >= 0:
                    replica_int[row, at.CHAIN] = -1
                    replica_int[row, at.CHAIN_TOKENS] = 0
                    replica_int[row, at.CHAIN_DONE] = 0
                    while request >= 0:
                        following = request_int[request, at.NEXT]
                        prompt = request_int[request, at.PROMPT]
                        output = request_int[request, at.OUTPUT]
                        replica_int[row, at.PREFILL_BLOCKS] -= blocks_for(prompt, block_size)
                        replica_int[row, at.PREFILL_COUNT] -= 1
                        if math.isnan(request_float[request, at.FIRST_TOKEN]):
                            request_float[request, at.FIRST_TOKEN] = now
                            if observed:
                                _note_first_token(row, request, now, state)
                        if output == 1:
                            request_float[request, at.FINISHED] = now
                            if observed:
                                _note_finish(row, cluster, request, now, state)
                        else:
                            finish = step + output - 1
                            key = (finish << at.REQUEST_BITS) | request
                            if first_key + b >= capacity:
                                for j in range(b):
                                    keys[row, j] = keys[row, first_key + j]
                                first_key = 0
                            j = first_key + b
                            while j > first_key and keys[row, j - 1] > key:
                                keys[row, j] = keys[row, j - 1]
                                j -= 1
                            keys[row, j] = key
                            histogram[row, (prompt + 1 - step) % block_size] += 1
                            request_int[request, at.ORDER] = replica_int[row, at.JOINED]
                            replica_int[row, at.JOINED] += 1
                            b += 1
                            context += prompt + 1
                        request = following

                # ---- the next batch, at `now`
                while now >= next_slowdown:
                    position = replica_int[row, at.SLOWDOWN]
                    scale = slowdowns[position, 1] / replica_float[row, at.SPEED]
                    position += 1
                    replica_int[row, at.SLOWDOWN] = position
                    if position < replica_int[row, at.SLOWDOWN_END]:
                        next_slowdown = slowdowns[position, 0]
                    else:
                        next_slowdown = math.inf
                prefills = 0
                tokens = 0
                squares = 0
                chunk_context = 0
                buckets = 0
                decoding = b
                crowded = False
                if prefill_first:
                    longest = 0
                    while replica_int[row, at.HEAD] >= 0 and prefills < max_batch:
                        request = replica_int[row, at.HEAD]
                        prompt = request_int[request, at.PROMPT]
                        longest = max(longest, prompt)
                        outgrown = prefills == 0 and request_int[request, at.PREEMPTIONS] > 0
                        if (prefills + 1) * longest > replica_int[
                            row, at.MAX_BATCHED_TOKENS
                        ] and not outgrown:
                            break
                        if b + replica_int[row, at.PREFILL_COUNT] == max_batch:
                            break
                        blocks = blocks_for(prompt, block_size)
                        held = replica_int[row, at.PREFILL_BLOCKS] + blocks
                        if not has_room(
                            histogram,
                            row,
                            context - b,
                            b,
                            step - 1,
                            block_size,
                            held,
                            open_blocks,
                        ):
                            break
                        _pop(row, state)
                        _chain(row, request, prompt, state)
                        replica_int[row, at.PREFILL_BLOCKS] = held
                        replica_int[row, at.PREFILL_COUNT] += 1
                        if math.isnan(request_float[request, at.SCHEDULED]):
                            request_float[request, at.SCHEDULED] = now
                        prefills += 1
                        tokens += prompt
                        squares += prompt * prompt
                    if prefills > 0:
                        decoding = 0
                if decoding > 0 and not has_room(
                    histogram,
                    row,
                    context,
                    b,
                    step,
                    block_size,
                    replica_int[row, at.PREFILL_BLOCKS],
                    num_blocks - 1,
                ):
                    replica_int[row, at.DECODES] = b
                    replica_int[row, at.STEP] = step
                    replica_int[row, at.CONTEXT] = context
                    replica_int[row, at.FIRST_KEY] = first_key
                    make_room(row, state)
                    crowded = True
                    b = replica_int[row, at.DECODES]
                    context = replica_int[row, at.CONTEXT]
                    decoding = b
                if not prefill_first:
                    budget = replica_int[row, at.CHUNK_SIZE] - b
                    request = replica_int[row, at.PARTIAL]
                    if request >= 0:
                        done = replica_int[row, at.PARTIAL_DONE]
                        chunk = min(request_int[request, at.PROMPT] - done, budget)
                        if chunk > 0:
                            budget -= chunk
                            prefills = 1
                            tokens = chunk
                            squares = chunk * chunk
                            chunk_context = chunk * done
                            buckets = -(-done // CONTEXT_BUCKET)
                            replica_int[row, at.PARTIAL_SKIPPED] = 0
                            if done + chunk == request_int[request, at.PROMPT]:
                                replica_int[row, at.PARTIAL] = -1
                                replica_int[row, at.PARTIAL_DONE] = 0
                                replica_int[row, at.CHAIN_DONE] = done
                                _chain(row, request, chunk, state)
                            else:
                                replica_int[row, at.PARTIAL_CHUNK] = chunk
                        else:
                            replica_int[row, at.PARTIAL_SKIPPED] = 1
                    while (
                        budget > 0
                        and replica_int[row, at.HEAD] >= 0
                        and b + replica_int[row, at.PREFILL_COUNT] < max_batch
                    ):
                        request = replica_int[row, at.HEAD]
                        prompt = request_int[request, at.PROMPT]
                        held = replica_int[row, at.PREFILL_BLOCKS] + blocks_for(prompt, block_size)
                        if not has_room(
                            histogram, row, context, b, step, block_size, held, open_blocks
                        ):
                            break
                        _pop(row, state)
                        replica_int[row, at.PREFILL_BLOCKS] = held
                        replica_int[row, at.PREFILL_COUNT] += 1
                        if math.isnan(request_float[request, at.SCHEDULED]):
                            request_float[request, at.SCHEDULED] = now
                        chunk = min(prompt, budget)
                        budget -= chunk
                        prefills += 1
                        tokens += chunk
                        squares += chunk * chunk
                        if chunk == prompt:
                            _chain(row, request, chunk, state)
                        else:
                            replica_int[row, at.PARTIAL] = request
                            replica_int[row, at.PARTIAL_DONE] = 0
                            replica_int[row, at.PARTIAL_SKIPPED] = 0
                            replica_int[row, at.PARTIAL_CHUNK] = chunk

                if prefills > 0:
                    in_decode = 1 if decoding > 0 else 0
                    batch_time = (
                        table[dense + tokens + decoding]
                        + decode_seconds(model, decoding, context, model_int, table)
                        + prefill_seconds(
                            model, prefills, squares, chunk_context, buckets, model_int, table
                        )
                    ) * scale
                    batch_end = now + batch_time
                    break
                if b == 0:
                    if replica_int[row, at.HEAD] >= 0:
                        continue  # the only request restarted itself and can run again
                    batch_end = math.inf
                    in_decode = 0
                    break

                # ---- a run of equal decode batches
                in_decode = 1
                left = 1  # after restarts the next batch may admit what this one could not
                if not crowded:
                    left = steps_with_room(
                        histogram,
                        row,
                        context,
                        b,
                        step,
                        block_size,
                        replica_int[row, at.PREFILL_BLOCKS],
                        num_blocks - 1,
                        (keys[row, first_key] >> at.REQUEST_BITS) - step,
                    )
                decode_row = model_int[model, at.DECODE] + (b - 1) * columns
                base = table[dense + b]
                knots = model_int[model, at.DECODE_KNOTS]
                in_flight = False
                while left > 0 and now < next_slowdown:
                    if kind == at.TABLE:
                        mean = context // b
                        bucket = -(-mean // CONTEXT_BUCKET)
                        first = (base + table[decode_row + bucket]) * scale
                        slope = 0.0
                        count = min(left, CONTEXT_BUCKET * bucket - mean + 1)
                    elif kind == at.FORMULA:
                        per_token = table[model_int[model, at.DECODE]]
                        first = (base + per_token * context) * scale
                        slope = per_token * b * scale
                        count = left
                    else:
                        position = context / b
                        segment = segment_of(table, knots, columns, position)
                        low, high = table[knots + segment], table[knots + segment + 1]
                        rise = table[decode_row + segment + 1] - table[decode_row + segment]
                        slope = rise / (high - low) * scale
                        first = (base + table[decode_row + segment]) * scale
                        first += slope * (position - low)
                        count = left
                        if segment < columns - 2:
                            count = min(left, int(high - position) + 1)
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
                        mean_time = _mean_after(mean_time, first, slope, count)
                    step += count
                    context += b * count
                    left -= count
                    if in_flight:
                        batch_end = now + batch_time
                        break
                if in_flight:
                    break
            # a batch is in flight, or the replica is idle
        if feed_at < feed_end:
            push(row, feed[feed_at], observed, state)
            feed_at += 1
        else:
            break

    replica_int[row, at.DECODES] = b
    replica_int[row, at.STEP] = step
    replica_int[row, at.CONTEXT] = context
    replica_int[row, at.FIRST_KEY] = first_key
    replica_int[row, at.IN_DECODE] = in_decode
    replica_float[row, at.BATCH_END] = batch_end
    replica_float[row, at.BATCH_TIME] = batch_time
    replica_float[row, at.MEAN_BATCH_TIME] = mean_time
    replica_float[row, at.SCALE] = scale
    replica_float[row, at.NEXT_SLOWDOWN] = next_slowdown
