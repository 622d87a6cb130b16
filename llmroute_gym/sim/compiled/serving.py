"""Whole runs by a rule that is given as a compiled function, in one kernel call."""

from typing import Any

from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.observing import write_rows
from llmroute_gym.sim.compiled.stepping import place

_AVAILABLE = int(Signal.AVAILABLE)
_FITS = int(Signal.FITS)


@inlined
def _fill_mask(
    request: int,
    fits: BoolArray,
    choosable: BoolArray,
    available: BoolArray,
    rows: FloatArray,
    mask: BoolArray,
) -> None:
    """Says of each replica in rows and mask whether it may take the request at hand."""
    for r in range(len(mask)):
        mask[r] = available[r]
        rows[r, _AVAILABLE] = 1.0 if available[r] else 0.0
        if len(fits) > 0:
            mask[r] = available[r] and choosable[request, r]
            rows[r, _FITS] = 1.0 if fits[request, r] else 0.0


@kernel
def serve_by(
    choose: Any,
    cluster: int,
    end: int,
    draws: FloatArray,
    constants: FloatArray,
    memory: FloatArray,
    fits: BoolArray,
    choosable: BoolArray,
    available: BoolArray,
    scale: FloatArray,
    high: FloatArray,
    rows: FloatArray,
    mask: BoolArray,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> tuple[bool, int]:
    """Takes decisions by a rule, up to one of them.

    Args:
        choose: from rows (n_replicas, N_SIGNALS), a mask (n_replicas,) that it may narrow, uniform
            numbers, constants and memory to the index of a replica. A first-class function, so
            that this kernel is compiled once for all rules.
        cluster: its word.
        end: the decision before which to stop.
        draws: (n_gateways, n_requests, n_draws) uniform numbers for each decision of a gateway.
        constants: (n_constants,).
        memory: (n_gateways, size) the rule's memories, changed. Decision i is gateway i modulo
            n_gateways's.
        fits: (n_requests, n_replicas) which replica could ever hold a request; no rows if all do.
        choosable: (n_requests, n_replicas) which may be chosen for it; likewise.
        available: (n_replicas,) which take requests.
        scale: (N_SIGNALS,) ones.
        high: (N_SIGNALS,) infinity.
        rows: (n_replicas, N_SIGNALS) room.
        mask: (n_replicas,) room.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.

    Returns:
        Whether the rule chose what it may not, for the decision that is at hand now; and what.
    """
    assume(cluster >= 0)
    n_gateways = len(memory)
    number = ints[cluster + at.DECISION]
    while number < end:
        word = ints[cluster + at.NEXT_REQUEST]
        request = (word - ints[cluster + at.FIRST_REQUEST]) // at.REQUEST_WORDS
        gateway, turn = number % n_gateways, number // n_gateways
        write_rows(cluster, scale, high, rows, stores, ints, floats)
        _fill_mask(request, fits, choosable, available, rows, mask)
        choice = choose(rows, mask, draws[gateway, turn], constants, memory[gateway])
        if not 0 <= choice < len(mask) or not available[choice]:
            return True, choice
        placed = choice
        if len(fits) > 0:
            if not choosable[request, choice]:
                return True, choice
            if not fits[request, choice]:
                placed = -1
        place(cluster, placed, stores, ints, floats)
        number += 1
    return False, -1
