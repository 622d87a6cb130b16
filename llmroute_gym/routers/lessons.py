"""What a router that learns online is told, and when."""

from typing import NamedTuple

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.outcome import Outcome


class Lesson(NamedTuple):
    """What has become of requests that a router placed: of those that have ended, shape (n,)."""

    decisions: IntArray
    """Its own decisions that placed them, by number from 0, rising."""
    ttft_s: FloatArray
    """Times to first token, seconds."""
    tpot_s: FloatArray
    """Times per output token after the first, seconds; NaN for one-token outputs."""

    @classmethod
    def of(cls, outcome: Outcome, requests: IntArray) -> "Lesson":
        """Returns the lesson of an instant.

        Args:
            outcome: of that instant.
            requests: (n,) which request each of the router's decisions so far has placed.
        """
        decisions = np.flatnonzero(np.isfinite(outcome.finished_at_s[requests]))
        ended = requests[decisions]
        return cls(decisions, outcome.ttft_s[ended], outcome.tpot_s[ended])
