"""From one routing decision to the next: placing, running on, the reward's integrals."""

import math

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import RATE_TIME_S
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.events import gate_of, note_sender
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.observing import read_engine, remaining_tokens
from llmroute_gym.sim.compiled.running import arrive, keep_up
from llmroute_gym.sim.compiled.views import tokens_seen, touch
from llmroute_gym.sim.compiled.waiting import decided, next_arrival, pop_arrival, release


@kernel
def imbalance(cluster: int, ints: IntArray, floats: FloatArray) -> float:
    """Returns the coefficient of variation over replicas of remaining tokens / speed."""
    assume(cluster >= 0)
    start, end = ints[cluster + at.FIRST_REPLICA], ints[cluster + at.END_REPLICA]
    words = ints[cluster + at.REPLICA_WORDS]
    total = 0.0
    n_replicas = 0
    replica = start
    assume(start >= 0)
    assume(words >= 0)
    while replica < end:
        total += remaining_tokens(replica, ints) / floats[replica + at.SPEED]
        n_replicas += 1
        replica += words
    mean = total / n_replicas
    if mean == 0.0:
        return 0.0
    spread = 0.0
    replica = start
    while replica < end:
        spread += (remaining_tokens(replica, ints) / floats[replica + at.SPEED] - mean) ** 2
        replica += words
    return math.sqrt(spread / n_replicas) / mean


@inlined
def _fade_to(cluster: int, now: float, ints: IntArray, floats: FloatArray) -> None:
    """Fades the averages of the cluster to `now`."""
    assume(cluster >= 0)
    kept = math.exp((floats[cluster + at.FADED_AT] - now) / RATE_TIME_S)
    floats[cluster + at.E2E_WEIGHT] *= kept
    floats[cluster + at.E2E_TOTAL] *= kept
    floats[cluster + at.ARRIVAL_WEIGHT] *= kept
    floats[cluster + at.FADED_AT] = now
    if ints[cluster + at.GATEWAYS] > 1:
        gate = ints[cluster + at.FIRST_GATE]
        assume(gate >= 0)
        for _ in range(ints[cluster + at.GATEWAYS]):
            floats[gate + at.E2E_WEIGHT] *= kept
            floats[gate + at.E2E_TOTAL] *= kept
            floats[gate + at.ARRIVAL_WEIGHT] *= kept
            gate += at.GATE_WORDS


@inlined
def _advance_all(
    cluster: int, until: float, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> None:
    assume(cluster >= 0)
    end, words = ints[cluster + at.END_REPLICA], ints[cluster + at.REPLICA_WORDS]
    replica = ints[cluster + at.FIRST_REPLICA]
    while replica < end:
        assume(replica >= 0)
        if floats[replica + at.BATCH_END] < until or (
            floats[replica + at.BATCH_END] == math.inf and ints[replica + at.HEAD] >= 0
        ):
            keep_up(replica, cluster, until, True, stores, ints, floats)
        replica += words


@kernel
def _read_engines(
    cluster: int, gateway: int, now: float, ints: IntArray, floats: FloatArray
) -> None:
    """Lets one router read the engines' signals."""
    assume(cluster >= 0)
    counts = ints[cluster + at.FIRST_COUNTS] + gateway * at.COUNT_WORDS
    assume(counts >= 0)
    end, words = ints[cluster + at.END_REPLICA], ints[cluster + at.REPLICA_WORDS]
    replica = ints[cluster + at.FIRST_REPLICA]
    while replica < end:
        read_engine(replica, replica + counts, now, True, ints, floats)
        replica += words
    gate = ints[cluster + at.FIRST_GATE] + gateway * at.GATE_WORDS
    floats[gate + at.READ_AT] = now


@kernel
def _poll(
    cluster: int, until: float, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> None:
    """Runs to the polls before `until`, each router's latest, in their order, and reads."""
    assume(cluster >= 0)
    interval = floats[cluster + at.SIGNAL_INTERVAL]
    gateways = ints[cluster + at.GATEWAYS]
    while True:
        gateway, read_at = -1, math.inf
        gate = ints[cluster + at.FIRST_GATE]
        for g in range(gateways):
            shift = interval * g / gateways
            latest = min(math.floor((until - shift) / interval) * interval + shift, until)
            if floats[gate + at.READ_AT] < latest < read_at:
                gateway, read_at = g, latest
            gate += at.GATE_WORDS
        if gateway < 0:
            break
        _advance_all(cluster, read_at, stores, ints, floats)
        _read_engines(cluster, gateway, read_at, ints, floats)


@kernel
def _newly_late(cluster: int, until: float, ints: IntArray, floats: FloatArray) -> float:
    """Counts the requests that become late before `until`; returns their late seconds so far."""
    assume(cluster >= 0)
    late_after = floats[cluster + at.LATE_AFTER]
    number, placed = ints[cluster + at.NEXT_LATE], ints[cluster + at.DECISION]
    seconds = 0.0
    while number < placed:
        request = decided(cluster, number, ints)
        since = floats[request + at.ARRIVED] + late_after
        if since >= until:
            break
        finished = floats[request + at.FINISHED]
        if ints[request + at.REPLICA] >= 0 and (math.isnan(finished) or finished > since):
            seconds += until - since
            ints[cluster + at.LATE] += 1
        number += 1
    ints[cluster + at.NEXT_LATE] = number
    return seconds


@inlined
def _run_to(
    cluster: int, until: float, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> tuple[float, float]:
    """Runs to the next decision; returns request seconds and late request seconds."""
    assume(cluster >= 0)
    duration = until - floats[cluster + at.NOW]
    area = ints[cluster + at.IN_SYSTEM] * duration
    late_area = ints[cluster + at.LATE] * duration
    floats[cluster + at.UNTIL] = until
    floats[cluster + at.DONE_AREA] = 0.0
    floats[cluster + at.LATE_AREA] = 0.0
    _fade_to(cluster, until, ints, floats)
    if floats[cluster + at.SIGNAL_INTERVAL] > 0.0:
        _poll(cluster, until, stores, ints, floats)
    _advance_all(cluster, until, stores, ints, floats)
    late_area += _newly_late(cluster, until, ints, floats)
    floats[cluster + at.NOW] = until
    return area - floats[cluster + at.DONE_AREA], late_area - floats[cluster + at.LATE_AREA]


@kernel
def _next_event(cluster: int, ints: IntArray, floats: FloatArray) -> float:
    """Returns when a batch ends or an idle replica wakes next; infinity if all are done."""
    assume(cluster >= 0)
    end, words = ints[cluster + at.END_REPLICA], ints[cluster + at.REPLICA_WORDS]
    replica = ints[cluster + at.FIRST_REPLICA]
    soonest = math.inf
    while replica < end:
        assume(replica >= 0)
        event = floats[replica + at.BATCH_END]
        if event == math.inf and ints[replica + at.HEAD] >= 0:
            event = floats[ints[replica + at.HEAD] + at.ARRIVED]
        soonest = min(soonest, event)
        replica += words
    return soonest


@kernel
def _run_to_arrival(
    cluster: int, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> tuple[int, float, float]:
    """Runs to the next decision where requests wait for each other, event by event.

    Whatever ends may bring the next arrival, so no replica may run ahead of the others.

    Returns:
        The word of the request, request seconds and late request seconds.
    """
    assume(cluster >= 0)
    area = late_area = 0.0
    arrival = -1
    while arrival < 0:
        until = math.inf
        known = next_arrival(cluster, ints)
        if known >= 0:
            until = floats[known + at.ARRIVED]
        event = _next_event(cluster, ints, floats)
        if event < until:
            until = np.nextafter(event, math.inf)
        else:
            arrival = pop_arrival(cluster, ints, floats)
        more, more_late = _run_to(cluster, until, stores, ints, floats)
        area += more
        late_area += more_late
    return arrival, area, late_area


@kernel
def _drain(
    cluster: int, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> tuple[float, float]:
    """Runs until all is finished; returns request seconds and late request seconds."""
    assume(cluster >= 0)
    start = floats[cluster + at.NOW]
    late_after = floats[cluster + at.LATE_AFTER]
    floats[cluster + at.UNTIL] = math.inf
    _advance_all(cluster, math.inf, stores, ints, floats)
    first, last = ints[cluster + at.FIRST_REQUEST], ints[cluster + at.LAST_REQUEST]
    end = start
    for request in range(first, last, at.REQUEST_WORDS):
        finished = floats[request + at.FINISHED]
        if finished > end:
            end = finished
    _fade_to(cluster, end, ints, floats)
    several = ints[cluster + at.GATEWAYS] > 1
    first_replica, words = ints[cluster + at.FIRST_REPLICA], ints[cluster + at.REPLICA_WORDS]
    area = late_area = 0.0
    for request in range(first, last, at.REQUEST_WORDS):
        finished = floats[request + at.FINISHED]
        if finished >= start:
            arrived = floats[request + at.ARRIVED]
            area += finished - start
            late_area += max(finished - max(arrived + late_after, start), 0.0)
            kept = math.exp((finished - end) / RATE_TIME_S)
            floats[cluster + at.E2E_WEIGHT] += kept
            floats[cluster + at.E2E_TOTAL] += (finished - arrived) * kept
            if several:
                replica = first_replica + ints[request + at.REPLICA] * words
                gate = gate_of(cluster, request, replica, ints)
                floats[gate + at.E2E_WEIGHT] += kept
                floats[gate + at.E2E_TOTAL] += (finished - arrived) * kept
    floats[cluster + at.NOW] = end
    if floats[cluster + at.SIGNAL_INTERVAL] > 0.0:
        for gateway in range(ints[cluster + at.GATEWAYS]):
            _read_engines(cluster, gateway, end, ints, floats)
    return area, late_area


@kernel
def place(
    cluster: int, replica_index: int, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> tuple[float, float, float, float, float]:
    """Sends the request at hand to a replica (-1 drops it) and runs to the next arrival.

    Args:
        cluster: its word.
        replica_index: 0 to n_replicas - 1, or -1.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.

    Returns:
        The fields of `Interval`: duration, request seconds, late request seconds, completion
        rate, imbalance.
    """
    assume(cluster >= 0)
    request = ints[cluster + at.NEXT_REQUEST]
    assume(request >= 0)
    start = floats[cluster + at.NOW]
    number = ints[cluster + at.DECISION]
    waits = ints[cluster + at.WAITS]
    if waits >= 0:
        ints[waits + 1 + number] = request
    gate = ints[cluster + at.GATE]
    assume(gate >= 0)
    if replica_index >= 0:
        words = ints[cluster + at.REPLICA_WORDS]
        replica = ints[cluster + at.FIRST_REPLICA] + replica_index * words
        assume(replica >= 0)
        ints[request + at.REPLICA] = replica_index
        counts = ints[cluster + at.COUNTS]
        assume(counts >= 0)
        uncached = ints[request + at.ORIGINAL_PROMPT]
        if stores is not None and ints[cluster + at.WEIGHS] == 1:
            uncached -= tokens_seen(cluster, replica, request, ints, floats)
        note_sender(request, counts, uncached, ints)
        arrive(replica, request, True, stores, ints)
        if stores is not None:
            touch(cluster, replica, request, ints)
        ints[replica + counts + at.CHOSEN_AT] = number
        ints[cluster + at.IN_SYSTEM] += 1
    else:
        ints[request + at.REPLICA] = at.REJECTED
        if waits >= 0:
            release(cluster, request, start, ints, floats)
    number += 1
    ints[cluster + at.DECISION] = number
    gateways = ints[cluster + at.GATEWAYS]
    floats[cluster + at.ARRIVAL_WEIGHT] += 1.0
    if gateways > 1:
        floats[gate + at.ARRIVAL_WEIGHT] += 1.0
    spread = imbalance(cluster, ints, floats)
    last = ints[cluster + at.LAST_REQUEST]
    if number * at.REQUEST_WORDS == last - ints[cluster + at.FIRST_REQUEST]:
        following = last
        area, late_area = _drain(cluster, stores, ints, floats)
    elif waits >= 0:
        following, area, late_area = _run_to_arrival(cluster, stores, ints, floats)
    else:
        following = request + at.REQUEST_WORDS
        area, late_area = _run_to(cluster, floats[following + at.ARRIVED], stores, ints, floats)
    floats[gate + at.PREVIOUS_ARRIVAL] = start
    if gateways > 1:
        turn = number % gateways
        ints[cluster + at.GATE] = ints[cluster + at.FIRST_GATE] + turn * at.GATE_WORDS
        ints[cluster + at.COUNTS] = ints[cluster + at.FIRST_COUNTS] + turn * at.COUNT_WORDS
    ints[cluster + at.NEXT_REQUEST] = following
    rate = floats[cluster + at.E2E_WEIGHT] / RATE_TIME_S
    return floats[cluster + at.NOW] - start, area, late_area, rate, spread
