"""The rows of a decision and the observations made of them, inside the kernels."""

import math

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import AGING, FADED, NO_NAME, RATE_TIME_S, Signal
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import decode_blocks
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.views import kept_tokens, write_cached

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
_NOW_S = int(Signal.NOW_S)
_SESSION = int(Signal.SESSION)
_PROMPT_HEAD = int(Signal.PROMPT_HEAD)
_IN_FLIGHT = int(Signal.IN_FLIGHT)
_UNCACHED_TOKENS = int(Signal.UNCACHED_TOKENS)
_UNCACHED_PAIRS = int(Signal.UNCACHED_PAIRS)
_VIEW_TOKENS = int(Signal.VIEW_TOKENS)
_HIT_RATE = int(Signal.HIT_RATE)
# Where the engine's own are stored, after the word that counts of a replica are added to.
_SEEN_WAITING = at.SEEN + AGING.index(Signal.WAITING)
_SEEN_RUNNING = at.SEEN + AGING.index(Signal.RUNNING)
_SEEN_KV_USAGE = at.SEEN + AGING.index(Signal.KV_USAGE)
_SEEN_PENDING_PROMPT_TOKENS = at.SEEN + AGING.index(Signal.PENDING_PROMPT_TOKENS)
_SEEN_CONTEXT_TOKENS = at.SEEN + AGING.index(Signal.CONTEXT_TOKENS)
_SEEN_OLDEST_WAITING_S = at.SEEN + AGING.index(Signal.OLDEST_WAITING_S)
_SEEN_BATCH_TIME_S = at.SEEN + AGING.index(Signal.BATCH_TIME_S)
_SEEN_TTFT_S = at.SEEN + AGING.index(Signal.TTFT_S)
_SEEN_HIT_RATE = at.SEEN + AGING.index(Signal.HIT_RATE)


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
def _oldest_silent(counted: int, now: float, ints: IntArray, floats: FloatArray) -> float:
    assume(counted >= 0)
    request = ints[counted + at.FIRST_PLACED]
    while request >= 0 and not math.isnan(floats[request + at.FIRST_TOKEN]):
        following = ints[request + at.NEXT_PLACED]
        if following >= 0:
            ints[counted + at.FIRST_PLACED] = following
        request = following
    return now - floats[request + at.ARRIVED] if request >= 0 else 0.0


@inlined
def _mean_ttft(counted: int, now: float, floats: FloatArray) -> float:
    weight = floats[counted + at.TTFT_WEIGHT]
    if weight > 0.0:
        age = now - floats[counted + at.TTFT_AT]
        if age < _SURE_AGE_S or weight * math.exp(-age / RATE_TIME_S) > FADED:
            return floats[counted + at.TTFT_TOTAL] / weight
    return 0.0


@inlined
def _hit_rate(replica: int, ints: IntArray) -> float:
    rate = 0.0
    if ints[replica + at.SCHEDULER] == at.VLLM_V1:
        store = ints[replica + at.STORE]
        rate = ints[store + kv.FOUND_TOKENS] / max(ints[store + kv.ADMITTED_TOKENS], 1)
    return rate


@inlined
def read_engine(
    replica: int, counted: int, now: float, further: bool, ints: IntArray, floats: FloatArray
) -> None:
    """Stores what an engine reports, from the word SEEN on.

    Args:
        replica: its word.
        counted: the word that a router's counts of it are added to.
        now: seconds.
        further: whether signals beyond those of version 1 are read.
        ints: memory.
        floats: the same memory.
    """
    assume(replica >= 0)
    assume(counted >= 0)
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
    floats[counted + _SEEN_WAITING] = ints[replica + at.WAITING]
    floats[counted + _SEEN_RUNNING] = ints[replica + at.DECODES] + ints[replica + at.PREFILL_COUNT]
    floats[counted + _SEEN_KV_USAGE] = usage
    floats[counted + _SEEN_PENDING_PROMPT_TOKENS] = pending
    floats[counted + _SEEN_CONTEXT_TOKENS] = context + ints[replica + at.CHAIN_DONE]
    floats[counted + _SEEN_OLDEST_WAITING_S] = _oldest_waiting(replica, now, ints, floats)
    floats[counted + _SEEN_BATCH_TIME_S] = floats[replica + at.MEAN_BATCH_TIME]
    floats[counted + _SEEN_TTFT_S] = _mean_ttft(replica, now, floats)
    if further:
        floats[counted + _SEEN_HIT_RATE] = _hit_rate(replica, ints)


@inlined
def _read_counts(counted: int, now: float, alone: bool, ints: IntArray, floats: FloatArray) -> None:
    """Stores what a router counts by itself, from the word SEEN on.

    Args:
        counted: the word that its counts of a replica are added to.
        now: seconds.
        alone: whether it is told nothing.
        ints: memory.
        floats: the same memory.
    """
    assume(counted >= 0)
    floats[counted + _SEEN_PENDING_PROMPT_TOKENS] = ints[counted + at.SILENT_PROMPT]
    floats[counted + _SEEN_CONTEXT_TOKENS] = ints[counted + at.STREAMING_PROMPT]
    floats[counted + _SEEN_OLDEST_WAITING_S] = _oldest_silent(counted, now, ints, floats)
    floats[counted + _SEEN_TTFT_S] = _mean_ttft(counted, now, floats)
    if alone:
        floats[counted + _SEEN_WAITING] = ints[counted + at.SILENT]
        floats[counted + _SEEN_RUNNING] = ints[counted + at.STREAMING]
        floats[counted + _SEEN_KV_USAGE] = 0.0
        floats[counted + _SEEN_BATCH_TIME_S] = 0.0
        floats[counted + _SEEN_HIT_RATE] = 0.0


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
    gate = ints[cluster + at.GATE]
    assume(gate >= 0)
    further = n_columns > _FITS
    prompt = output = since = 0.0
    session = head = NO_NAME
    if request < ints[cluster + at.LAST_REQUEST]:
        prompt = float(ints[request + at.ORIGINAL_PROMPT])
        output = floats[request + at.PREDICTED]
        since = now - floats[gate + at.PREVIOUS_ARRIVAL]
        if further and ints[cluster + at.NAMES] >= 0:
            number_of_it = (request - ints[cluster + at.FIRST_REQUEST]) // at.REQUEST_WORDS
            names = ints[cluster + at.NAMES] + number_of_it * at.NAME_WORDS
            session, head = floats[names + at.SESSION], floats[names + at.PROMPT_HEAD]
    completions = floats[gate + at.E2E_WEIGHT]
    e2e = floats[gate + at.E2E_TOTAL] / completions if completions > FADED else 0.0
    arrival_rate = floats[gate + at.ARRIVAL_WEIGHT] / RATE_TIME_S / n_replicas
    completion_rate = completions / RATE_TIME_S / n_replicas
    prompt = _scaled(prompt, _PROMPT_TOKENS, scale, high)
    output = _scaled(output, _PREDICTED_OUTPUT_TOKENS, scale, high)
    since = _scaled(since, _SINCE_LAST_ARRIVAL_S, scale, high)
    e2e = _scaled(e2e, _E2E_S, scale, high)
    arrival_rate = _scaled(arrival_rate, _ARRIVAL_RATE, scale, high)
    completion_rate = _scaled(completion_rate, _COMPLETION_RATE, scale, high)
    alone = information == at.ROUTER
    asks = not alone and floats[cluster + at.SIGNAL_INTERVAL] == 0.0
    counts_itself = alone or information == at.METRICS
    counts = ints[cluster + at.COUNTS]
    turns = n_replicas * ints[cluster + at.GATEWAYS]
    for r in range(n_replicas):
        out[r, _CACHED_PREFIX] = 0.0
    if stores is not None:
        write_cached(cluster, request, _CACHED_PREFIX, out, ints, floats)
    replica = ints[cluster + at.FIRST_REPLICA]
    for r in range(n_replicas):
        assume(replica >= 0)
        counted = replica + counts
        assume(counted >= 0)
        if asks:
            read_engine(replica, counted, now, further, ints, floats)
        if counts_itself:
            _read_counts(counted, now, alone, ints, floats)
        out[r, _WAITING] = _scaled(floats[counted + _SEEN_WAITING], _WAITING, scale, high)
        out[r, _RUNNING] = _scaled(floats[counted + _SEEN_RUNNING], _RUNNING, scale, high)
        out[r, _KV_USAGE] = _scaled(floats[counted + _SEEN_KV_USAGE], _KV_USAGE, scale, high)
        out[r, _PENDING_PROMPT_TOKENS] = _scaled(
            floats[counted + _SEEN_PENDING_PROMPT_TOKENS], _PENDING_PROMPT_TOKENS, scale, high
        )
        out[r, _CONTEXT_TOKENS] = _scaled(
            floats[counted + _SEEN_CONTEXT_TOKENS], _CONTEXT_TOKENS, scale, high
        )
        out[r, _OLDEST_WAITING_S] = _scaled(
            floats[counted + _SEEN_OLDEST_WAITING_S], _OLDEST_WAITING_S, scale, high
        )
        out[r, _BATCH_TIME_S] = _scaled(
            floats[counted + _SEEN_BATCH_TIME_S], _BATCH_TIME_S, scale, high
        )
        out[r, _TTFT_S] = _scaled(floats[counted + _SEEN_TTFT_S], _TTFT_S, scale, high)
        remaining = remaining_tokens(replica, ints) if information == at.ORACLE else 0
        rounds = (number - ints[counted + at.CHOSEN_AT]) / turns
        out[r, _SPEED] = _scaled(floats[replica + at.TOLD_SPEED], _SPEED, scale, high)
        out[r, _AVAILABLE] = 1.0
        out[r, _PROMPT_TOKENS] = prompt
        out[r, _PREDICTED_OUTPUT_TOKENS] = output
        out[r, _ARRIVAL_RATE] = arrival_rate
        out[r, _COMPLETION_RATE] = completion_rate
        out[r, _E2E_S] = e2e
        out[r, _SINCE_LAST_ARRIVAL_S] = since
        out[r, _REMAINING_TOKENS] = _scaled(remaining, _REMAINING_TOKENS, scale, high)
        out[r, _ROUNDS_SINCE_CHOSEN] = _scaled(rounds, _ROUNDS_SINCE_CHOSEN, scale, high)
        if further:
            out[r, _FITS] = 1.0
            out[r, _NOW_S] = _scaled(now, _NOW_S, scale, high)
            out[r, _SESSION] = _scaled(session, _SESSION, scale, high)
            out[r, _PROMPT_HEAD] = _scaled(head, _PROMPT_HEAD, scale, high)
            in_flight = ints[counted + at.SILENT] + ints[counted + at.STREAMING]
            out[r, _IN_FLIGHT] = _scaled(in_flight, _IN_FLIGHT, scale, high)
            out[r, _UNCACHED_TOKENS] = _scaled(
                ints[counted + at.UNCACHED], _UNCACHED_TOKENS, scale, high
            )
            out[r, _UNCACHED_PAIRS] = _scaled(
                0.5 * ints[counted + at.UNCACHED_PAIRS], _UNCACHED_PAIRS, scale, high
            )
            kept = 0
            if stores is not None:
                kept = kept_tokens(cluster, replica, counted, ints)
            out[r, _VIEW_TOKENS] = _scaled(kept, _VIEW_TOKENS, scale, high)
            out[r, _HIT_RATE] = _scaled(floats[counted + _SEEN_HIT_RATE], _HIT_RATE, scale, high)
        replica += ints[cluster + at.REPLICA_WORDS]


@kernel
def pick_columns(
    row: npt.NDArray[np.floating], columns: IntArray, out: npt.NDArray[np.floating]
) -> None:
    """Copies some columns: `row` (n_replicas, N_SIGNALS) to `out` (n_replicas, n_columns)."""
    for r in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[r, column] = row[r, columns[column]]
