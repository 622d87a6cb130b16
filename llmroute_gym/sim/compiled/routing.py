"""Whole runs in one kernel call: a fixed assignment, or a rule that needs no Python."""

import math

from llmroute_gym.sim.compiled.jit import kernel
from llmroute_gym.sim.compiled.kernel import advance
from llmroute_gym.sim.run import FloatArray, IntArray


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
