"""The rows of a decision and the observations made of them, inside the kernels."""

import math

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import AGING, FADED, RATE_TIME_S, Signal
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import decode_blocks
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.views import write_cached

_SURE_AGE_S = -0.9 * math.log(FADED) * RATE_TIME_S
"""Within this time a value of weight 1 cannot have faded."""
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
_FITS = int(Signal.FITS)
# Where the engine's own are stored, after a replica's word.
_SEEN_WAITING = at.SEEN + AGING.index(Signal.WAITING)
_SEEN_RUNNING = at.SEEN + AGING.index(Signal.RUNNING)
_SEEN_KV_USAGE = at.SEEN + AGING.index(Signal.KV_USAGE)
_SEEN_PENDING_PROMPT_TOKENS = at.SEEN + AGING.index(Signal.PENDING_PROMPT_TOKENS)
_SEEN_CONTEXT_TOKENS = at.SEEN + AGING.index(Signal.CONTEXT_TOKENS)
_SEEN_OLDEST_WAITING_S = at.SEEN + AGING.index(Signal.OLDEST_WAITING_S)
_SEEN_BATCH_TIME_S = at.SEEN + AGING.index(Signal.BATCH_TIME_S)
_SEEN_TTFT_S = at.SEEN + AGING.index(Signal.TTFT_S)


@inlined
def remaining_tokens(replica: int, ints: IntArray) -> int:
    """Returns the true tokens that a replica has still to process."""
    done = ints[replica + at.CONTEXT] + ints[replica + at.PARTIAL_DONE]
    return ints[replica + at.TOTAL] - done - ints[replica + at.CHAIN_DONE]


@inlined
def _used_blocks(replica: int, ints: IntArray) -> int:
    used = ints[replica + at.PREFILL_BLOCKS]
    decodes = ints[replica + at.DECODES]
    if decodes > 0:
        late = 1 - ints[replica + at.IN_DECODE]
        contexts = ints[replica + at.CONTEXT] - decodes * late
        used += decode_blocks(replica, contexts, ints[replica + at.STEP] - late, ints)
    return used


@inlined
def _oldest_waiting(replica: int, now: float, ints: IntArray, floats: FloatArray) -> float:
    assume(replica >= 0)
    oldest = now
    request = ints[replica + at.HEAD]
    left = ints[replica + at.RESTARTED] + 1
    while request >= 0 and left > 0:
        oldest = min(oldest, floats[request + at.ARRIVED])
        request = ints[request + at.NEXT]
        left -= 1
    return now - oldest


@kernel
def _oldest_silent(replica: int, now: float, ints: IntArray, floats: FloatArray) -> float:
    assume(replica >= 0)
    request = ints[replica + at.FIRST_PLACED]
    while request >= 0 and not math.isnan(floats[request + at.FIRST_TOKEN]):
        following = ints[request + at.NEXT_PLACED]
        if following >= 0:
            ints[replica + at.FIRST_PLACED] = following
        request = following
    return now - floats[request + at.ARRIVED] if request >= 0 else 0.0


@inlined
def _read_scheduler(replica: int, now: float, ints: IntArray, floats: FloatArray) -> None:
    pending = ints[replica + at.WAITING_PROMPT] + ints[replica + at.CHAIN_TOKENS]
    partial = ints[replica + at.PARTIAL]
    if partial >= 0:
        pending += ints[partial + at.PROMPT] - ints[replica + at.PARTIAL_DONE]
    context = ints[replica + at.CONTEXT] + ints[replica + at.PARTIAL_DONE]
    if ints[replica + at.SCHEDULER] == at.VLLM_V1:
        store = ints[replica + at.STORE]
        usage = 1.0 - ints[store + kv.FREE] / ints[store + kv.USABLE]
    else:
        usage = _used_blocks(replica, ints) / ints[replica + at.NUM_BLOCKS]
    floats[replica + _SEEN_WAITING] = ints[replica + at.WAITING]
    floats[replica + _SEEN_RUNNING] = ints[replica + at.DECODES] + ints[replica + at.PREFILL_COUNT]
    floats[replica + _SEEN_KV_USAGE] = usage
    floats[replica + _SEEN_PENDING_PROMPT_TOKENS] = pending
    floats[replica + _SEEN_CONTEXT_TOKENS] = context + ints[replica + at.CHAIN_DONE]
    floats[replica + _SEEN_OLDEST_WAITING_S] = _oldest_waiting(replica, now, ints, floats)
    floats[replica + _SEEN_BATCH_TIME_S] = floats[replica + at.MEAN_BATCH_TIME]


@inlined
def read_engine(
    replica: int, now: float, information: int, ints: IntArray, floats: FloatArray
) -> None:
    """Stores a replica's own columns of the rows, from its word SEEN on."""
    assume(replica >= 0)
    ttft = 0.0
    weight = floats[replica + at.TTFT_WEIGHT]
    if weight > 0.0:
        age = now - floats[replica + at.TTFT_AT]
        if age < _SURE_AGE_S or weight * math.exp(-age / RATE_TIME_S) > FADED:
            ttft = floats[replica + at.TTFT_TOTAL] / weight
    floats[replica + _SEEN_TTFT_S] = ttft
    if information == at.ROUTER:
        floats[replica + _SEEN_WAITING] = ints[replica + at.SILENT]
        floats[replica + _SEEN_RUNNING] = ints[replica + at.STREAMING]
        floats[replica + _SEEN_KV_USAGE] = 0.0
        floats[replica + _SEEN_PENDING_PROMPT_TOKENS] = ints[replica + at.SILENT_PROMPT]
        floats[replica + _SEEN_CONTEXT_TOKENS] = ints[replica + at.STREAMING_PROMPT]
        floats[replica + _SEEN_OLDEST_WAITING_S] = _oldest_silent(replica, now, ints, floats)
        floats[replica + _SEEN_BATCH_TIME_S] = 0.0
    else:
        _read_scheduler(replica, now, ints, floats)


@inlined
def _scaled(value: float, column: int, scale: FloatArray, high: FloatArray) -> float:
    scaled = value * scale[column]  # never negative
    return scaled if scaled < high[column] else high[column]


@kernel
def write_rows(
    cluster: int,
    scale: FloatArray,
    high: FloatArray,
    out: npt.NDArray[np.floating],
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Writes what a router knows now; every replica is said to take requests, and to fit.

    Args:
        cluster: its word.
        scale: (N_SIGNALS,) what each column is multiplied by.
        high: (N_SIGNALS,) what it is clipped to then.
        out: (n_replicas, n_columns), the nineteen columns of version 1 or all; what nothing here
            knows of stays as it is.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.
    """
    assume(cluster >= 0)
    now = floats[cluster + at.NOW]
    information = ints[cluster + at.INFORMATION]
    n_replicas, n_columns = out.shape
    request = ints[cluster + at.NEXT_REQUEST]
    number = ints[cluster + at.DECISION]
    prompt = output = since = 0.0
    if request < ints[cluster + at.LAST_REQUEST]:
        prompt = float(ints[request + at.ORIGINAL_PROMPT])
        output = floats[request + at.PREDICTED]
        since = now - floats[cluster + at.PREVIOUS_ARRIVAL]
    completions = floats[cluster + at.E2E_WEIGHT]
    e2e = floats[cluster + at.E2E_TOTAL] / completions if completions > FADED else 0.0
    arrival_rate = floats[cluster + at.ARRIVAL_WEIGHT] / RATE_TIME_S / n_replicas
    completion_rate = completions / RATE_TIME_S / n_replicas
    prompt = _scaled(prompt, _PROMPT_TOKENS, scale, high)
    output = _scaled(output, _PREDICTED_OUTPUT_TOKENS, scale, high)
    since = _scaled(since, _SINCE_LAST_ARRIVAL_S, scale, high)
    e2e = _scaled(e2e, _E2E_S, scale, high)
    arrival_rate = _scaled(arrival_rate, _ARRIVAL_RATE, scale, high)
    completion_rate = _scaled(completion_rate, _COMPLETION_RATE, scale, high)
    fresh = information == at.ROUTER or floats[cluster + at.SIGNAL_INTERVAL] == 0.0
    for r in range(n_replicas):
        out[r, _CACHED_PREFIX] = 0.0
    if stores is not None:
        write_cached(cluster, request, _CACHED_PREFIX, out, ints, floats)
    replica = ints[cluster + at.FIRST_REPLICA]
    for r in range(n_replicas):
        assume(replica >= 0)
        if fresh:
            read_engine(replica, now, information, ints, floats)
        out[r, _WAITING] = _scaled(floats[replica + _SEEN_WAITING], _WAITING, scale, high)
        out[r, _RUNNING] = _scaled(floats[replica + _SEEN_RUNNING], _RUNNING, scale, high)
        out[r, _KV_USAGE] = _scaled(floats[replica + _SEEN_KV_USAGE], _KV_USAGE, scale, high)
        out[r, _PENDING_PROMPT_TOKENS] = _scaled(
            floats[replica + _SEEN_PENDING_PROMPT_TOKENS], _PENDING_PROMPT_TOKENS, scale, high
        )
        out[r, _CONTEXT_TOKENS] = _scaled(
            floats[replica + _SEEN_CONTEXT_TOKENS], _CONTEXT_TOKENS, scale, high
        )
        out[r, _OLDEST_WAITING_S] = _scaled(
            floats[replica + _SEEN_OLDEST_WAITING_S], _OLDEST_WAITING_S, scale, high
        )
        out[r, _BATCH_TIME_S] = _scaled(
            floats[replica + _SEEN_BATCH_TIME_S], _BATCH_TIME_S, scale, high
        )
        out[r, _TTFT_S] = _scaled(floats[replica + _SEEN_TTFT_S], _TTFT_S, scale, high)
        remaining = remaining_tokens(replica, ints) if information == at.ORACLE else 0
        rounds = (number - ints[replica + at.CHOSEN_AT]) / n_replicas
        out[r, _SPEED] = _scaled(floats[replica + at.SPEED], _SPEED, scale, high)
        out[r, _AVAILABLE] = 1.0
        out[r, _PROMPT_TOKENS] = prompt
        out[r, _PREDICTED_OUTPUT_TOKENS] = output
        out[r, _ARRIVAL_RATE] = arrival_rate
        out[r, _COMPLETION_RATE] = completion_rate
        out[r, _E2E_S] = e2e
        out[r, _SINCE_LAST_ARRIVAL_S] = since
        out[r, _REMAINING_TOKENS] = _scaled(remaining, _REMAINING_TOKENS, scale, high)
        out[r, _ROUNDS_SINCE_CHOSEN] = _scaled(rounds, _ROUNDS_SINCE_CHOSEN, scale, high)
        if n_columns > _FITS:
            out[r, _FITS] = 1.0
        replica += ints[cluster + at.REPLICA_WORDS]


@kernel
def pick_columns(
    row: npt.NDArray[np.floating], columns: IntArray, out: npt.NDArray[np.floating]
) -> None:
    """Copies some columns: `row` (n_replicas, N_SIGNALS) to `out` (n_replicas, n_columns)."""
    for r in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[r, column] = row[r, columns[column]]
