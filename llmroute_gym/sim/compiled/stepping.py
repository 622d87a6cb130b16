"""From one routing decision to the next: placing, running on, the signals and the integrals."""

import math

import numpy as np
from numba import njit

from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import decode_blocks
from llmroute_gym.sim.compiled.kernel import advance, push
from llmroute_gym.sim.signals import FADED, N_ENGINE_SIGNALS, RATE_TIME_S, Signal

ENGINE, ROUTER, ORACLE = 0, 1, 2
"""Values of `information` in the kernels."""

_NO_FEED = np.zeros(1, dtype=np.int64)
_WAITING = int(Signal.WAITING)
_RUNNING = int(Signal.RUNNING)
_KV_USAGE = int(Signal.KV_USAGE)
_PENDING_PROMPT_TOKENS = int(Signal.PENDING_PROMPT_TOKENS)
_CONTEXT_TOKENS = int(Signal.CONTEXT_TOKENS)
_OLDEST_WAITING_S = int(Signal.OLDEST_WAITING_S)
_BATCH_TIME_S = int(Signal.BATCH_TIME_S)
_TTFT_S = int(Signal.TTFT_S)
_SPEED = int(Signal.SPEED)
_AVAILABLE = int(Signal.AVAILABLE)
_PROMPT_TOKENS = int(Signal.PROMPT_TOKENS)
_PREDICTED_OUTPUT_TOKENS = int(Signal.PREDICTED_OUTPUT_TOKENS)
_CACHED_PREFIX = int(Signal.CACHED_PREFIX)
_ARRIVAL_RATE = int(Signal.ARRIVAL_RATE)
_COMPLETION_RATE = int(Signal.COMPLETION_RATE)
_E2E_S = int(Signal.E2E_S)
_SINCE_LAST_ARRIVAL_S = int(Signal.SINCE_LAST_ARRIVAL_S)
_REMAINING_TOKENS = int(Signal.REMAINING_TOKENS)
_ROUNDS_SINCE_CHOSEN = int(Signal.ROUNDS_SINCE_CHOSEN)


@njit(cache=True)
def remaining_tokens(row, state):
    """Returns the true tokens that a replica has still to process."""
    integers = state.replica_int
    done = integers[row, at.CONTEXT] + integers[row, at.PARTIAL_DONE] + integers[row, at.CHAIN_DONE]
    return integers[row, at.TOTAL] - done


@njit(cache=True)
def imbalance(first_row, n_replicas, state):
    """Returns the coefficient of variation over replicas of remaining tokens / speed."""
    total = 0.0
    for row in range(first_row, first_row + n_replicas):
        total += remaining_tokens(row, state) / state.replica_float[row, at.SPEED]
    mean = total / n_replicas
    if mean == 0.0:
        return 0.0
    spread = 0.0
    for row in range(first_row, first_row + n_replicas):
        work = remaining_tokens(row, state) / state.replica_float[row, at.SPEED]
        spread += (work - mean) ** 2
    return math.sqrt(spread / n_replicas) / mean


@njit(cache=True)
def _used_blocks(row, state):
    integers = state.replica_int
    decodes = integers[row, at.DECODES]
    if decodes == 0:
        return integers[row, at.PREFILL_BLOCKS]
    contexts, step = integers[row, at.CONTEXT], integers[row, at.STEP]
    if integers[row, at.IN_DECODE] == 0:
        contexts -= decodes
        step -= 1
    block_size = integers[row, at.BLOCK_SIZE]
    held = decode_blocks(state.histogram, row, contexts, decodes, step, block_size)
    return integers[row, at.PREFILL_BLOCKS] + held


@njit(cache=True)
def _oldest_waiting(row, now, state):
    oldest = now
    request = state.replica_int[row, at.HEAD]
    left = state.replica_int[row, at.RESTARTED] + 1
    while request >= 0 and left > 0:
        oldest = min(oldest, state.request_float[request, at.ARRIVED])
        request = state.request_int[request, at.NEXT]
        left -= 1
    return now - oldest


@njit(cache=True)
def _oldest_silent(row, now, state):
    request = state.replica_int[row, at.FIRST_PLACED]
    while request >= 0 and not math.isnan(state.request_float[request, at.FIRST_TOKEN]):
        request = state.request_int[request, at.NEXT_PLACED]
    if request < 0:
        return 0.0
    state.replica_int[row, at.FIRST_PLACED] = request
    return now - state.request_float[request, at.ARRIVED]


@njit(cache=True)
def read_engine(row, now, information, state):
    """Stores a replica's own columns of the rows into `state.seen`."""
    integers, floats, out = state.replica_int, state.replica_float, state.seen
    kept = math.exp((floats[row, at.TTFT_AT] - now) / RATE_TIME_S)
    known = floats[row, at.TTFT_WEIGHT] * kept > FADED
    out[row, _TTFT_S] = floats[row, at.TTFT_TOTAL] / floats[row, at.TTFT_WEIGHT] if known else 0.0
    if information == ROUTER:
        out[row, _WAITING] = integers[row, at.SILENT]
        out[row, _RUNNING] = integers[row, at.STREAMING]
        out[row, _KV_USAGE] = 0.0
        out[row, _PENDING_PROMPT_TOKENS] = integers[row, at.SILENT_PROMPT]
        out[row, _CONTEXT_TOKENS] = integers[row, at.STREAMING_PROMPT]
        out[row, _OLDEST_WAITING_S] = _oldest_silent(row, now, state)
        out[row, _BATCH_TIME_S] = 0.0
        return
    pending = integers[row, at.WAITING_PROMPT] + integers[row, at.CHAIN_TOKENS]
    partial = integers[row, at.PARTIAL]
    if partial >= 0:
        pending += state.request_int[partial, at.PROMPT] - integers[row, at.PARTIAL_DONE]
    out[row, _WAITING] = integers[row, at.WAITING]
    out[row, _RUNNING] = integers[row, at.DECODES] + integers[row, at.PREFILL_COUNT]
    out[row, _KV_USAGE] = _used_blocks(row, state) / integers[row, at.NUM_BLOCKS]
    out[row, _PENDING_PROMPT_TOKENS] = pending
    out[row, _CONTEXT_TOKENS] = (
        integers[row, at.CONTEXT] + integers[row, at.PARTIAL_DONE] + integers[row, at.CHAIN_DONE]
    )
    out[row, _OLDEST_WAITING_S] = _oldest_waiting(row, now, state)
    out[row, _BATCH_TIME_S] = floats[row, at.MEAN_BATCH_TIME]


@njit(cache=True)
def write_rows(cluster, n_replicas, information, mask, predicted, out, state):
    """Writes what a router knows now.

    Args:
        cluster: the environment.
        n_replicas: replicas of one environment.
        information: ENGINE, ROUTER or ORACLE.
        mask: (n_replicas,) replicas that may take the request.
        predicted: (n_requests,) predicted output tokens of all environments' requests.
        out: (n_replicas, N_SIGNALS) is filled.
        state: all arrays.
    """
    floats = state.cluster_float
    now = floats[cluster, at.NOW]
    n_requests = state.cluster_int[cluster, at.N_REQUESTS]
    index = state.cluster_int[cluster, at.NEXT_REQUEST]
    request = state.cluster_int[cluster, at.FIRST_REQUEST] + index
    prompt = output = since = 0.0
    if index < n_requests:
        prompt = float(state.request_int[request, at.ORIGINAL_PROMPT])
        output = predicted[request]
        since = now - floats[cluster, at.PREVIOUS_ARRIVAL]
    arrivals = floats[cluster, at.ARRIVAL_WEIGHT] * math.exp(
        (floats[cluster, at.ARRIVAL_AT] - now) / RATE_TIME_S
    )
    completions = floats[cluster, at.E2E_WEIGHT]
    e2e = floats[cluster, at.E2E_TOTAL] / completions if completions > FADED else 0.0
    fresh = information == ROUTER or floats[cluster, at.SIGNAL_INTERVAL] == 0.0
    for r in range(n_replicas):
        row = cluster * n_replicas + r
        if fresh:
            read_engine(row, now, information, state)
        for column in range(N_ENGINE_SIGNALS):
            out[r, column] = state.seen[row, column]
        out[r, _SPEED] = state.replica_float[row, at.SPEED]
        out[r, _AVAILABLE] = 1.0 if mask[r] else 0.0
        out[r, _PROMPT_TOKENS] = prompt
        out[r, _PREDICTED_OUTPUT_TOKENS] = output
        out[r, _CACHED_PREFIX] = 0.0
        out[r, _ARRIVAL_RATE] = arrivals / RATE_TIME_S / n_replicas
        out[r, _COMPLETION_RATE] = completions / RATE_TIME_S / n_replicas
        out[r, _E2E_S] = e2e
        out[r, _SINCE_LAST_ARRIVAL_S] = since
        out[r, _ROUNDS_SINCE_CHOSEN] = (index - state.replica_int[row, at.CHOSEN_AT]) / n_replicas
        out[r, _REMAINING_TOKENS] = (
            float(remaining_tokens(row, state)) if information == ORACLE else 0.0
        )


@njit(cache=True)
def _fade_to(cluster, now, state):
    """Fades the average of latencies to `now`."""
    floats = state.cluster_float
    kept = math.exp((floats[cluster, at.E2E_AT] - now) / RATE_TIME_S)
    floats[cluster, at.E2E_WEIGHT] *= kept
    floats[cluster, at.E2E_TOTAL] *= kept
    floats[cluster, at.E2E_AT] = now


@njit(cache=True)
def _advance_all(cluster, n_replicas, until, state):
    for row in range(cluster * n_replicas, (cluster + 1) * n_replicas):
        advance(row, cluster, _NO_FEED, 0, 0, until, True, state)


@njit(cache=True)
def _read_engines(cluster, n_replicas, now, state):
    for row in range(cluster * n_replicas, (cluster + 1) * n_replicas):
        read_engine(row, now, ENGINE, state)
    state.cluster_float[cluster, at.READ_AT] = now


@njit(cache=True)
def _newly_late(cluster, last, until, state):
    """Counts the requests that become late before `until`; returns their late seconds so far."""
    integers, floats = state.cluster_int, state.cluster_float
    late_after = floats[cluster, at.LATE_AFTER]
    first_request = integers[cluster, at.FIRST_REQUEST]
    request = first_request + integers[cluster, at.NEXT_LATE]
    seconds = 0.0
    while request <= last and state.request_float[request, at.ARRIVED] + late_after < until:
        since = state.request_float[request, at.ARRIVED] + late_after
        finished = state.request_float[request, at.FINISHED]
        placed = state.request_int[request, at.REPLICA] >= 0
        if placed and (math.isnan(finished) or finished > since):
            seconds += until - since
            integers[cluster, at.LATE] += 1
        request += 1
    integers[cluster, at.NEXT_LATE] = request - first_request
    return seconds


@njit(cache=True)
def _run_to(cluster, n_replicas, request, until, state):
    """Runs to the next decision; returns request seconds and late request seconds."""
    integers, floats = state.cluster_int, state.cluster_float
    duration = until - floats[cluster, at.NOW]
    area = integers[cluster, at.IN_SYSTEM] * duration
    late_area = integers[cluster, at.LATE] * duration
    floats[cluster, at.UNTIL] = until
    floats[cluster, at.DONE_AREA] = floats[cluster, at.LATE_AREA] = 0.0
    _fade_to(cluster, until, state)
    interval = floats[cluster, at.SIGNAL_INTERVAL]
    if interval > 0.0:
        read_at = min(math.floor(until / interval) * interval, until)
        if read_at > floats[cluster, at.READ_AT]:
            _advance_all(cluster, n_replicas, read_at, state)
            _read_engines(cluster, n_replicas, read_at, state)
    _advance_all(cluster, n_replicas, until, state)
    late_area += _newly_late(cluster, request, until, state)
    floats[cluster, at.NOW] = until
    return area - floats[cluster, at.DONE_AREA], late_area - floats[cluster, at.LATE_AREA]


@njit(cache=True)
def _drain(cluster, n_replicas, request, state):
    """Runs until all is finished; returns request seconds and late request seconds."""
    floats = state.cluster_float
    start = floats[cluster, at.NOW]
    late_after = floats[cluster, at.LATE_AFTER]
    floats[cluster, at.UNTIL] = math.inf
    _advance_all(cluster, n_replicas, math.inf, state)
    first_request = state.cluster_int[cluster, at.FIRST_REQUEST]
    end = start
    for i in range(first_request, request + 1):
        finished = state.request_float[i, at.FINISHED]
        if finished > end:
            end = finished
    _fade_to(cluster, end, state)
    area = late_area = 0.0
    for i in range(first_request, request + 1):
        finished = state.request_float[i, at.FINISHED]
        if finished >= start:
            arrived = state.request_float[i, at.ARRIVED]
            area += finished - start
            late_area += max(finished - max(arrived + late_after, start), 0.0)
            kept = math.exp((finished - end) / RATE_TIME_S)
            floats[cluster, at.E2E_WEIGHT] += kept
            floats[cluster, at.E2E_TOTAL] += (finished - arrived) * kept
    floats[cluster, at.NOW] = end
    if floats[cluster, at.SIGNAL_INTERVAL] > 0.0:
        _read_engines(cluster, n_replicas, end, state)
    return area, late_area


@njit(cache=True)
def place(cluster, n_replicas, replica, state):
    """Sends the request at hand to a replica (-1 drops it) and runs to the next arrival.

    Returns:
        The fields of `Interval`: duration, request seconds, late request seconds, completion
        rate, imbalance.
    """
    integers, floats = state.cluster_int, state.cluster_float
    index = integers[cluster, at.NEXT_REQUEST]
    request = integers[cluster, at.FIRST_REQUEST] + index
    start = floats[cluster, at.NOW]
    if replica >= 0:
        state.request_int[request, at.REPLICA] = replica
        push(cluster * n_replicas + replica, request, True, state)
        state.replica_int[cluster * n_replicas + replica, at.CHOSEN_AT] = index
        integers[cluster, at.IN_SYSTEM] += 1
    kept = math.exp((floats[cluster, at.ARRIVAL_AT] - start) / RATE_TIME_S)
    floats[cluster, at.ARRIVAL_WEIGHT] = floats[cluster, at.ARRIVAL_WEIGHT] * kept + 1.0
    floats[cluster, at.ARRIVAL_AT] = start
    spread = imbalance(cluster * n_replicas, n_replicas, state)
    if index + 1 < integers[cluster, at.N_REQUESTS]:
        until = state.request_float[request + 1, at.ARRIVED]
        area, late_area = _run_to(cluster, n_replicas, request, until, state)
    else:
        area, late_area = _drain(cluster, n_replicas, request, state)
    floats[cluster, at.PREVIOUS_ARRIVAL] = start
    integers[cluster, at.NEXT_REQUEST] = index + 1
    rate = floats[cluster, at.E2E_WEIGHT] / RATE_TIME_S
    return floats[cluster, at.NOW] - start, area, late_area, rate, spread
