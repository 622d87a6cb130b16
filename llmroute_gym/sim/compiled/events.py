"""What happens to one request on a replica, and the books that an observed run keeps of it."""

import math

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import BATCH_TIME_WEIGHT, RATE_TIME_S
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.waiting import release

_COUNTS_BITS = 32
_COUNTS_MASK = (1 << _COUNTS_BITS) - 1
_KEPT = (1.0 - BATCH_TIME_WEIGHT) ** np.arange(512)
"""What is left of an average after so many batches; nothing that shows after the last."""


@inlined
def note_sender(request: int, counts: int, uncached: int, ints: IntArray) -> None:
    """Notes for a request that is placed whose counts it enters.

    Args:
        request: its word.
        counts: see `layout.COUNTS`.
        uncached: its prompt tokens that are to be computed, as its router sees it.
        ints: memory.
    """
    ints[request + at.COUNTED] = (uncached << _COUNTS_BITS) | counts


@inlined
def _counts_of(request: int, ints: IntArray) -> int:
    counts = ints[request + at.COUNTED] & _COUNTS_MASK
    assume(counts >= 0)
    return counts


@inlined
def _count_uncached(counted: int, request: int, sign: int, ints: IntArray) -> None:
    """Adds what is to be computed of a request to a router's counts, or takes it from them."""
    uncached = ints[request + at.COUNTED] >> _COUNTS_BITS
    ints[counted + at.UNCACHED] += sign * uncached
    pairs = uncached * (2 * ints[request + at.ORIGINAL_PROMPT] - uncached)
    ints[counted + at.UNCACHED_PAIRS] += sign * pairs


@inlined
def push(replica: int, request: int, observed: bool, ints: IntArray) -> None:
    """Puts a request at the end of a replica's waiting queue."""
    ints[request + at.NEXT] = -1
    if ints[replica + at.HEAD] < 0:
        ints[replica + at.HEAD] = request
    else:
        ints[ints[replica + at.TAIL] + at.NEXT] = request
    ints[replica + at.TAIL] = request
    ints[replica + at.WAITING] += 1
    ints[replica + at.SAME_UNTIL] = 0
    prompt = ints[request + at.PROMPT]
    ints[replica + at.WAITING_PROMPT] += prompt
    if observed:
        ints[replica + at.TOTAL] += prompt + ints[request + at.OUTPUT]
        counted = replica + _counts_of(request, ints)
        ints[counted + at.SILENT] += 1
        ints[counted + at.SILENT_PROMPT] += prompt
        _count_uncached(counted, request, 1, ints)
        if ints[counted + at.FIRST_PLACED] < 0:
            ints[counted + at.FIRST_PLACED] = request
        else:
            ints[ints[counted + at.LAST_PLACED] + at.NEXT_PLACED] = request
        ints[counted + at.LAST_PLACED] = request


@inlined
def end_in_time(replica: int, request: int, ints: IntArray) -> None:
    """Cuts the output of a request to what the length of the replica's model allows."""
    if ints[replica + at.SCHEDULER] == at.VLLM_V1:
        longest = ints[ints[replica + at.STORE] + kv.LONGEST]
        if longest > 0:
            most = longest - ints[request + at.PROMPT]
            ints[request + at.OUTPUT] = min(ints[request + at.OUTPUT], most)


@inlined
def admit(
    replica: int, request: int, held: int, now: float, ints: IntArray, floats: FloatArray
) -> None:
    """Takes the head off the waiting queue; the prefills then hold `held` blocks."""
    following = ints[request + at.NEXT]
    ints[replica + at.HEAD] = following
    if following < 0:
        ints[replica + at.TAIL] = -1
    ints[replica + at.WAITING] -= 1
    ints[replica + at.WAITING_PROMPT] -= ints[request + at.PROMPT]
    if ints[replica + at.RESTARTED] > 0:
        ints[replica + at.RESTARTED] -= 1
    ints[replica + at.PREFILL_BLOCKS] = held
    ints[replica + at.PREFILL_COUNT] += 1
    if math.isnan(floats[request + at.SCHEDULED]):
        floats[request + at.SCHEDULED] = now


@inlined
def chain(replica: int, request: int, tokens: int, ints: IntArray) -> None:
    """Appends a prefill that the batch being built completes."""
    ints[request + at.NEXT] = -1
    if ints[replica + at.CHAIN] < 0:
        ints[replica + at.CHAIN] = request
    else:
        ints[ints[replica + at.CHAIN_END] + at.NEXT] = request
    ints[replica + at.CHAIN_END] = request
    ints[replica + at.CHAIN_TOKENS] += tokens


@inlined
def _add_ttft(counted: int, ttft: float, now: float, floats: FloatArray) -> None:
    kept = math.exp((floats[counted + at.TTFT_AT] - now) / RATE_TIME_S)
    floats[counted + at.TTFT_WEIGHT] = floats[counted + at.TTFT_WEIGHT] * kept + 1.0
    floats[counted + at.TTFT_TOTAL] = floats[counted + at.TTFT_TOTAL] * kept + ttft
    floats[counted + at.TTFT_AT] = now


@kernel
def note_first_token(
    replica: int, request: int, now: float, ints: IntArray, floats: FloatArray
) -> None:
    """Books a first token: what streams, and the average of times to first token."""
    assume(replica >= 0)
    assume(request >= 0)
    prompt = ints[request + at.ORIGINAL_PROMPT]
    counts = _counts_of(request, ints)
    counted = replica + counts
    ints[counted + at.SILENT] -= 1
    ints[counted + at.SILENT_PROMPT] -= prompt
    ints[counted + at.STREAMING] += 1
    ints[counted + at.STREAMING_PROMPT] += prompt
    _count_uncached(counted, request, -1, ints)
    ttft = now - floats[request + at.ARRIVED]
    _add_ttft(replica, ttft, now, floats)
    if counts > 0:  # one of several routers
        _add_ttft(counted, ttft, now, floats)


@inlined
def gate_of(cluster: int, request: int, replica: int, ints: IntArray) -> int:
    """Returns the gate, see `layout.GATE`, of the router that sent a request to a replica."""
    gateway = ints[replica + _counts_of(request, ints) + at.GATEWAY]
    gate = ints[cluster + at.FIRST_GATE] + gateway * at.GATE_WORDS
    assume(gate >= 0)
    return gate


@kernel
def note_finish(
    replica: int, cluster: int, request: int, now: float, ints: IntArray, floats: FloatArray
) -> None:
    """Books a finish: the integrals of the interval and the average of latencies."""
    assume(replica >= 0)
    assume(cluster >= 0)
    assume(request >= 0)
    ints[replica + at.TOTAL] -= ints[request + at.PROMPT] + ints[request + at.OUTPUT]
    counts = _counts_of(request, ints)
    counted = replica + counts
    ints[counted + at.STREAMING] -= 1
    ints[counted + at.STREAMING_PROMPT] -= ints[request + at.ORIGINAL_PROMPT]
    ints[cluster + at.IN_SYSTEM] -= 1
    arrived = floats[request + at.ARRIVED]
    left = floats[cluster + at.UNTIL] - now
    if now > arrived + floats[cluster + at.LATE_AFTER]:
        ints[cluster + at.LATE] -= 1
        floats[cluster + at.LATE_AREA] += left
    floats[cluster + at.DONE_AREA] += left
    kept = math.exp(-left / RATE_TIME_S)
    floats[cluster + at.E2E_WEIGHT] += kept
    floats[cluster + at.E2E_TOTAL] += (now - arrived) * kept
    if counts > 0:
        gate = gate_of(cluster, request, replica, ints)
        floats[gate + at.E2E_WEIGHT] += kept
        floats[gate + at.E2E_TOTAL] += (now - arrived) * kept
    if ints[cluster + at.WAITS] >= 0:
        release(cluster, request, now, ints, floats)


@inlined
def mean_after(mean: float, first: float, slope: float, count: int) -> float:
    """Batch-time average after `count` batches of first, first + slope, ... seconds."""
    if mean == 0.0:
        mean = first
        first += slope
        count -= 1
    if count > 0:
        lag = slope / BATCH_TIME_WEIGHT
        kept = _KEPT[count] if count < len(_KEPT) else 0.0
        mean = first + slope * count - lag + (mean - first + lag) * kept
    return mean
