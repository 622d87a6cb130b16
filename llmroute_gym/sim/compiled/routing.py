"""Whole runs in one kernel call: a fixed assignment, or a rule that needs no Python."""

import math

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.running import keep_up, run_on
from llmroute_gym.sim.compiled.tournament import Tournament, first_of_least, least, number, update
from llmroute_gym.sim.compiled.waking import look_ahead, sleep_on

IN_FLIGHT, IN_FLIGHT_BY_SPEED, WAITING = 0, 1, 2
"""What a rule minimises."""


@kernel
def serve_assigned(
    assignment: IntArray,
    replicas: IntArray,
    cluster: int,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs every replica alone through the requests that are assigned to it.

    Args:
        assignment: (n_requests,) replica indices, -1 drops the request.
        replicas: (n_replicas,) their words.
        cluster: the word of that whose requests they serve.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.
    """
    request = ints[cluster + at.LAST_REQUEST]
    for i in range(len(assignment) - 1, -1, -1):
        r = assignment[i]
        request -= at.REQUEST_WORDS
        assume(request >= 0)
        ints[request + at.REPLICA] = r if r >= 0 else at.REJECTED
        if r >= 0:
            ints[request + at.NEXT] = ints[replicas[r] + at.FEED]
            ints[replicas[r] + at.FEED] = request
    _drain(replicas, stores, ints, floats)


@inlined
def _score(rule: int, replica: int, ints: IntArray, floats: FloatArray) -> float:
    """What the rule minimises, as its router computes it from the rows."""
    if rule == WAITING:
        score = float(ints[replica + at.WAITING])
    else:
        in_flight = ints[replica + at.WAITING] + ints[replica + at.DECODES]
        in_flight += ints[replica + at.PREFILL_COUNT] + ints[replica + at.FEED_COUNT]
        score = float(in_flight)
        if rule == IN_FLIGHT_BY_SPEED:
            score = (score + 1.0) / floats[replica + at.SPEED]
    return score


@kernel
def serve_least_in_flight(
    rule: int,
    scores: Tournament,
    wakes: Tournament,
    replicas: IntArray,
    cluster: int,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Sends each request to the replica with the least score; ties to the lowest index.

    The score changes only when a request arrives or finishes, so a replica sleeps through arrivals
    until it may finish one: the cost of a decision does not grow with replicas that have nothing
    to do.

    Args:
        rule: IN_FLIGHT or IN_FLIGHT_BY_SPEED.
        scores: a `tournament` for n_replicas numbers.
        wakes: another one.
        replicas: (n_replicas,) their words.
        cluster: the word of that whose requests they serve.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.
    """
    for r in range(len(replicas)):
        update(scores, r, _score(rule, replicas[r], ints, floats))
        update(wakes, r, look_ahead(replicas[r], ints, floats))
    first, last = ints[cluster + at.FIRST_REQUEST], ints[cluster + at.LAST_REQUEST]
    for request in range(first, last, at.REQUEST_WORDS):
        assume(request >= 0)
        now = floats[request + at.ARRIVED]
        while least(wakes) < now:
            r = first_of_least(wakes)
            replica = replicas[r]
            assume(replica >= 0)
            _run_to(replica, now, stores, ints, floats)
            update(scores, r, _score(rule, replica, ints, floats))
            update(wakes, r, look_ahead(replica, ints, floats))
        r = first_of_least(scores)
        replica = replicas[r]
        assume(replica >= 0)
        ints[request + at.REPLICA] = r
        soonest = sleep_on(replica, request, ints, floats)
        update(scores, r, _score(rule, replica, ints, floats))
        update(wakes, r, min(number(wakes, r), soonest))
    _drain(replicas, stores, ints, floats)


@kernel
def serve_least(
    rule: int,
    replicas: IntArray,
    cluster: int,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Sends each request to the replica with the least score; ties to the lowest index.

    For scores that change with any batch, so that every replica must be up to date.

    Args:
        rule: WAITING.
        replicas: (n_replicas,) their words.
        cluster: the word of that whose requests they serve.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.
    """
    first, last = ints[cluster + at.FIRST_REQUEST], ints[cluster + at.LAST_REQUEST]
    for request in range(first, last, at.REQUEST_WORDS):
        assume(request >= 0)
        now = floats[request + at.ARRIVED]
        best, lowest = 0, math.inf
        for r in range(len(replicas)):
            replica = replicas[r]
            if floats[replica + at.BATCH_END] < now or ints[replica + at.HEAD] >= 0:
                keep_up(replica, 0, now, False, stores, ints, floats)
            score = _score(rule, replica, ints, floats)
            if score < lowest:
                best, lowest = r, score
        run_on(replicas[best], 0, request, now, False, stores, ints, floats)
        ints[request + at.REPLICA] = best
    _drain(replicas, stores, ints, floats)


@kernel
def serve_better_of_two(
    pairs: IntArray,
    replicas: IntArray,
    cluster: int,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Sends each request to the one of two replicas with fewer in flight; ties to the first.

    Args:
        pairs: (n_requests, 2) replica indices.
        replicas: (n_replicas,) their words.
        cluster: the word of that whose requests they serve.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.
    """
    request = ints[cluster + at.FIRST_REQUEST]
    for i in range(len(pairs)):
        assume(request >= 0)
        now = floats[request + at.ARRIVED]
        first, second = pairs[i, 0], pairs[i, 1]
        keep_up(replicas[first], 0, now, False, stores, ints, floats)
        keep_up(replicas[second], 0, now, False, stores, ints, floats)
        a = _score(IN_FLIGHT, replicas[first], ints, floats)
        b = _score(IN_FLIGHT, replicas[second], ints, floats)
        chosen = second if b < a else first
        run_on(replicas[chosen], 0, request, now, False, stores, ints, floats)
        ints[request + at.REPLICA] = chosen
        request += at.REQUEST_WORDS
    _drain(replicas, stores, ints, floats)


@kernel
def _run_to(
    replica: int, until: float, stores: at.Stores, ints: IntArray, floats: FloatArray
) -> None:
    """Runs a replica on, through the requests in its feed."""
    assume(replica >= 0)
    feed = ints[replica + at.FEED]
    ints[replica + at.FEED] = -1
    ints[replica + at.FEED_COUNT] = 0
    run_on(replica, 0, feed, until, False, stores, ints, floats)


@kernel
def _drain(replicas: IntArray, stores: at.Stores, ints: IntArray, floats: FloatArray) -> None:
    for r in range(len(replicas)):
        _run_to(replicas[r], math.inf, stores, ints, floats)


def pairs_of(draws: FloatArray, n_replicas: int) -> IntArray:
    """Turns two uniform numbers per request into two replicas without replacement.

    Args:
        draws: (n_requests, 2) in [0, 1).
        n_replicas: at least 2.

    Returns:
        (n_requests, 2).
    """
    first = (draws[:, 0] * n_replicas).astype(np.int64)
    second = (draws[:, 1] * (n_replicas - 1)).astype(np.int64)
    second += second >= first
    return np.stack([first, second], axis=1)
