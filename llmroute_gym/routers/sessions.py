"""Rules that keep what belongs together on one replica: by session, or by the prompt's head."""

import math
from dataclasses import dataclass

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.hashing import hashed, highest_random_weight, next_on_ring, ring
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.rule import Rule, Source


@decision
def _by_session(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    load, session = rows[:, Signal.IN_FLIGHT], rows[0, Signal.SESSION]
    if session < 0:
        return lowest(load, mask)
    return next_on_ring(memory, hashed(session, 0.0), mask, load, math.inf)


@dataclass
class SessionHash(Rule):
    """A consistent hash of the session; a request without one goes where fewest are in flight.

    A replica has 160 points on the ring. The session belongs to the first point from its own place
    on whose replica may be chosen. Ties of those in flight go to the lowest index. The hash is
    SplitMix64; production systems hash with others, so that sessions spread alike, not equally.
    """

    name = "session_hash"
    decide = _by_session
    source = Source("production-stack session, Ray Serve", "2026", "2026-11")

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns the ring."""
        return ring(n_replicas)


@decision
def _bounded(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    load, head = rows[:, Signal.IN_FLIGHT], rows[0, Signal.PROMPT_HEAD]
    total, replicas = 0.0, 0
    for r in range(len(mask)):
        if mask[r]:
            total += load[r]
            replicas += 1
    place = hashed(head, 0.0) if head >= 0 else draws[0]
    return next_on_ring(memory, place, mask, load, constants[0] * total / replicas)


@dataclass
class ConditionalHash(Rule):
    """A consistent hash of the prompt's first 256 tokens with bounded loads.

    The request goes to the first replica on the ring, from its place on, that has at most `factor`
    times as many requests in flight as the replicas have on average; one always has. A prompt
    whose tokens no one knows is like no other, so its place is drawn. A replica has 160 points.

    Attributes:
        factor: bound of the load, in mean loads.
    """

    name = "conditional_hash"
    decide = _bounded
    per_request = 1
    source = Source("SMG prefix_hash, KubeAI PrefixHash", "1.13", "2026-11")
    factor: float = constant(1.25, 1.0, 4.0, logarithmic=True)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns the ring."""
        return ring(n_replicas)


# Memory of the sticky rule: the uses of sessions as a queue that starts at its head, an open hash
# table, and the sessions of each replica. A use is its time and the place of its session.
_QUEUE_HEAD, _QUEUE_END, _REQUESTS, _PLACES, _QUEUE = 0, 1, 2, 3, 4
_NOT_USED = -1.0


@block
def _place_of(session: float, table: FloatArray, n_places: int) -> int:
    """Returns where a session stands in the table, or where it would."""
    place = int(hashed(session, 0.0) * n_places)
    while table[3 * place + 2] != _NOT_USED and table[3 * place] != session:
        place = place + 1 if place + 1 < n_places else 0
    return place


@block
def _forget_idle(
    oldest: float, memory: FloatArray, uses: FloatArray, table: FloatArray, counts: FloatArray
) -> None:
    """Takes sessions whose last use is before a time from their replicas."""
    while memory[_QUEUE_HEAD] < memory[_QUEUE_END]:
        use = int(memory[_QUEUE_HEAD])
        used_s, place = uses[2 * use], int(uses[2 * use + 1])
        if used_s >= oldest:
            break
        if table[3 * place + 2] == used_s and table[3 * place + 1] >= 0:
            counts[int(table[3 * place + 1])] -= 1
            table[3 * place + 1] = -1.0
        memory[_QUEUE_HEAD] += 1


@decision
def _sticky(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    n, now_s, session = len(mask), rows[0, Signal.NOW_S], rows[0, Signal.SESSION]
    n_requests, n_places = int(memory[_REQUESTS]), int(memory[_PLACES])
    uses = memory[_QUEUE : _QUEUE + 2 * n_requests]
    counts = memory[_QUEUE + 2 * n_requests : _QUEUE + 2 * n_requests + n]
    table = memory[_QUEUE + 2 * n_requests + n :]
    _forget_idle(now_s - constants[0], memory, uses, table, counts)
    if session < 0:
        return lowest(rows[:, Signal.IN_FLIGHT], mask)
    place = _place_of(session, table, n_places)
    known = table[3 * place + 2] != _NOT_USED and table[3 * place + 1] >= 0
    chosen = int(table[3 * place + 1]) if known else -1
    if chosen < 0 or not mask[chosen]:
        if chosen >= 0:
            counts[chosen] -= 1
        chosen = highest_random_weight(session, counts, mask)
        counts[chosen] += 1
    table[3 * place], table[3 * place + 1], table[3 * place + 2] = session, float(chosen), now_s
    end = int(memory[_QUEUE_END])
    uses[2 * end], uses[2 * end + 1] = now_s, float(place)
    memory[_QUEUE_END] += 1
    return chosen


@dataclass
class StickyLeastLoaded(Rule):
    """A known session goes to its replica; a new one to the replica with fewest active sessions.

    Active are the sessions that the rule knows and has assigned to the replica. It forgets one
    that no request has used for more than `forget_after_s`. Ties of a new session go by rendezvous
    hash, to the replica whose hash with the session is the largest. A session whose replica may
    not be chosen is assigned anew. A request without a session goes where fewest requests are in
    flight, the lowest index on a tie, and counts as no session.

    Attributes:
        forget_after_s: seconds from a session's last request until it is forgotten.
    """

    name = "sticky_least_loaded"
    decide = _sticky
    source = Source("vllm-router sticky_least_loaded, default of prime-rl", "0.1.17", "2026-11")
    forget_after_s: float = constant(7200.0, 1.0, 86400.0, logarithmic=True)

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns a memory that knows no session."""
        n_places = n_requests + n_requests // 2 + 1
        memory = np.zeros(_QUEUE + 2 * n_requests + n_replicas + 3 * n_places)
        memory[_REQUESTS], memory[_PLACES] = n_requests, n_places
        memory[_QUEUE + 2 * n_requests + n_replicas + 2 :: 3] = _NOT_USED
        return memory
