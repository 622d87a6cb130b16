"""Whole runs in one kernel call: a fixed assignment, or a rule that needs no Python."""

import math

from numba import njit

from llmroute_gym.sim.compiled.kernel import advance


@njit(cache=True)
def serve_assigned(order, starts, state):
    """Runs every replica alone through the requests that are assigned to it.

    Args:
        order: (n_placed,) requests, those of replica 0 first, by arrival within each.
        starts: (n_replicas + 1,) where each replica's requests start.
        state: all arrays.
    """
    for row in range(len(starts) - 1):
        advance(row, 0, order, starts[row], starts[row + 1], math.inf, False, state)
