"""Whole runs in one kernel call: a fixed assignment, or a rule that needs no Python."""

import math

import numpy as np

from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch_seconds import steps_seconds
from llmroute_gym.sim.compiled.jit import inlined, kernel
from llmroute_gym.sim.compiled.kernel import advance
from llmroute_gym.sim.compiled.tournament import first_of_least, update
from llmroute_gym.sim.run import FloatArray, IntArray

IN_FLIGHT, IN_FLIGHT_BY_SPEED, WAITING, PROMPT_TOKENS = 0, 1, 2, 3
"""What a rule minimises."""

_FAR = 1 << 40
_LOOK_AT = 8
_HAIR_LESS = 1.0 - 1e-9
"""Keeps a sum of many steps below what rounding makes of it elsewhere."""


@kernel
def serve_assigned(
    replicas: IntArray, feed: IntArray, starts: IntArray, ints: IntArray, floats: FloatArray
) -> None:
    """Runs every replica alone through the requests that are assigned to it.

    Args:
        replicas: (n_replicas,) their words.
        feed: (n_placed,) words of requests, those of replica 0 first, by arrival within each.
        starts: (n_replicas + 1,) where each replica's requests start in `feed`.
        ints: memory.
        floats: the same memory.
    """
    for r in range(len(replicas)):
        advance(replicas[r], 0, feed, starts[r], starts[r + 1], math.inf, False, ints, floats)


@inlined
def _score(rule: int, replica: int, ints: IntArray, floats: FloatArray) -> float:
    """What the rule minimises, as its router computes it from the rows."""
    if rule == WAITING:
        score = float(ints[replica + at.WAITING])
    elif rule == PROMPT_TOKENS:
        tokens = ints[replica + at.WAITING_PROMPT] + ints[replica + at.CHAIN_TOKENS]
        partial = ints[replica + at.PARTIAL]
        if partial >= 0:
            tokens += ints[partial + at.PROMPT] - ints[replica + at.PARTIAL_DONE]
        score = float(tokens)
    else:
        in_flight = ints[replica + at.WAITING] + ints[replica + at.DECODES]
        score = float(in_flight + ints[replica + at.PREFILL_COUNT])
        if rule == IN_FLIGHT_BY_SPEED:
            score = (score + 1.0) / floats[replica + at.SPEED]
    return score


@kernel
def _earliest_completion(replica: int, ints: IntArray, floats: FloatArray) -> float:
    """A lower bound on when the replica next finishes a request, if nothing more arrives.

    Exact where nothing waits and memory does not run short: the batches until then are known.
    """
    batch_end = floats[replica + at.BATCH_END]
    request = ints[replica + at.HEAD]
    if batch_end == math.inf:
        return floats[request + at.ARRIVED] if request >= 0 else math.inf
    model = ints[replica + at.MODEL]
    decodes = ints[replica + at.DECODES]
    contexts = ints[replica + at.CONTEXT]
    step = ints[replica + at.STEP]
    left = _FAR  # decode steps after the batch in flight until one of its members finishes
    if decodes > 0:
        left = (ints[ints[replica + at.FIRST_KEY]] >> at.REQUEST_BITS) - step
        if ints[replica + at.IN_DECODE] == 1:
            left -= 1
            contexts += decodes
            step += 1
    held = ints[replica + at.PREFILL_BLOCKS]
    waits = request >= 0 or ints[replica + at.PARTIAL] >= 0
    request = ints[replica + at.CHAIN]
    chained = 0
    while request >= 0:
        left = min(left, ints[request + at.OUTPUT] - 1)
        if ints[request + at.OUTPUT] > 1:
            chained += 1
            contexts += ints[request + at.PROMPT] + 1
        request = ints[request + at.NEXT]
    if left == 0:
        return batch_end
    block_size = ints[replica + at.BLOCK_SIZE]
    members = decodes + chained
    # A bound only: blocks that are held for prefills are counted beside their contexts.
    most = contexts + members * (left + block_size)
    roomy = left < _FAR and most <= (ints[replica + at.NUM_BLOCKS] - 1 - held) * block_size
    pace = floats[replica + at.LEAST_SCALE] * _HAIR_LESS
    if roomy and not waits:
        return batch_end + pace * steps_seconds(model, members, contexts, left, ints, floats)
    least = ints[model + at.DENSE_LEAST]
    soonest = left * floats[least + (members if roomy else 1)]
    return batch_end + pace * min(soonest, _shortest_waiting(replica, ints) * floats[least + 1])


@kernel
def _shortest_waiting(replica: int, ints: IntArray) -> int:
    """Batches that any request in prefill or in the queue still takes; looks at a few."""
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
def serve_least_in_flight(
    rule: int,
    scores: FloatArray,
    wakes: FloatArray,
    replicas: IntArray,
    requests: IntArray,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Sends each request to the replica with the least score; ties to the lowest index.

    The score changes only when a request arrives or finishes, so a replica sleeps until it may
    finish one: the cost of a decision does not grow with replicas that have nothing to do.

    Args:
        rule: IN_FLIGHT or IN_FLIGHT_BY_SPEED.
        scores: a `tournament` for n_replicas numbers.
        wakes: another one.
        replicas: (n_replicas,) their words.
        requests: (n_requests,) their words.
        ints: memory.
        floats: the same memory.
    """
    n = len(replicas)
    for r in range(n):
        update(scores, r, _score(rule, replicas[r], ints, floats))
    for i in range(len(requests)):
        now = floats[requests[i] + at.ARRIVED]
        while wakes[1] < now:
            r = first_of_least(wakes)
            advance(replicas[r], 0, requests, 0, 0, now, False, ints, floats)
            update(scores, r, _score(rule, replicas[r], ints, floats))
            update(wakes, r, _earliest_completion(replicas[r], ints, floats))
        r = first_of_least(scores)
        advance(replicas[r], 0, requests, i, i + 1, now, False, ints, floats)
        ints[requests[i] + at.REPLICA] = r
        update(scores, r, _score(rule, replicas[r], ints, floats))
        update(wakes, r, _earliest_completion(replicas[r], ints, floats))
    _drain(replicas, requests, ints, floats)


@kernel
def serve_least(
    rule: int, replicas: IntArray, requests: IntArray, ints: IntArray, floats: FloatArray
) -> None:
    """Sends each request to the replica with the least score; ties to the lowest index.

    For scores that change with any batch, so that every replica must be up to date.

    Args:
        rule: WAITING or PROMPT_TOKENS.
        replicas: (n_replicas,) their words.
        requests: (n_requests,) their words.
        ints: memory.
        floats: the same memory.
    """
    for i in range(len(requests)):
        now = floats[requests[i] + at.ARRIVED]
        best, least = 0, math.inf
        for r in range(len(replicas)):
            replica = replicas[r]
            if floats[replica + at.BATCH_END] < now or ints[replica + at.HEAD] >= 0:
                advance(replica, 0, requests, 0, 0, now, False, ints, floats)
            score = _score(rule, replica, ints, floats)
            if score < least:
                best, least = r, score
        advance(replicas[best], 0, requests, i, i + 1, now, False, ints, floats)
        ints[requests[i] + at.REPLICA] = best
    _drain(replicas, requests, ints, floats)


@kernel
def serve_better_of_two(
    pairs: IntArray, replicas: IntArray, requests: IntArray, ints: IntArray, floats: FloatArray
) -> None:
    """Sends each request to the one of two replicas with fewer in flight; ties to the first.

    Args:
        pairs: (n_requests, 2) replica indices.
        replicas: (n_replicas,) their words.
        requests: (n_requests,) their words.
        ints: memory.
        floats: the same memory.
    """
    for i in range(len(requests)):
        now = floats[requests[i] + at.ARRIVED]
        first, second = pairs[i, 0], pairs[i, 1]
        advance(replicas[first], 0, requests, 0, 0, now, False, ints, floats)
        advance(replicas[second], 0, requests, 0, 0, now, False, ints, floats)
        a = _score(IN_FLIGHT, replicas[first], ints, floats)
        b = _score(IN_FLIGHT, replicas[second], ints, floats)
        chosen = second if b < a else first
        advance(replicas[chosen], 0, requests, i, i + 1, now, False, ints, floats)
        ints[requests[i] + at.REPLICA] = chosen
    _drain(replicas, requests, ints, floats)


@kernel
def _drain(replicas: IntArray, requests: IntArray, ints: IntArray, floats: FloatArray) -> None:
    for r in range(len(replicas)):
        advance(replicas[r], 0, requests, 0, 0, math.inf, False, ints, floats)


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
