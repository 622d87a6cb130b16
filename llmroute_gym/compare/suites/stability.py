"""Whether a queue grows: what separates a slow system from one that never gets done.

The requests that wait for their first batch are counted at each arrival of the last two thirds of a
run, and a line is fitted to the counts by least squares. Its slope is the growth, requests/s;
divided by the arrival rate it is the share of the arriving requests that pile up: 1 - 1/load in the
long run where the load is above 1, and 0 below. (Requests in a batch are not counted: they become
more as an empty cluster fills up, and memory bounds them.) A router is unstable in a scenario where
that share, over the scenario's runs, is above `PILING_UP` by more than twice its standard error:
a burst at the end of a run does not make it so.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim import Outcome

PILING_UP = 0.02
"""Share of the arriving requests that may pile up; in the long run a load of 1.02."""


class Growth(NamedTuple):
    """How the number of waiting requests grows."""

    per_s: float
    """Requests/s, the mean over runs."""
    share: float
    """Of the arriving requests that pile up, the mean over runs."""
    error: float
    """Standard error of the share."""

    @property
    def unstable(self) -> bool:
        """Whether the queue grows beyond what chance and the beginning of a run explain."""
        return self.share - 2 * self.error > PILING_UP


def growth_of(arrived_at_s: FloatArray, scheduled_at_s: FloatArray) -> tuple[float, float]:
    """Returns the growth in requests/s, and the arrival rate there, of one run.

    Args:
        arrived_at_s: (n,) in any order.
        scheduled_at_s: (n,) start of the first batch; requests without one were rejected, and
            never waited.
    """
    taken = np.isfinite(scheduled_at_s)
    arrived = np.sort(arrived_at_s[taken])
    if len(arrived) < 6 or arrived[-1] <= arrived[0]:
        return 0.0, 1.0
    begun = np.sort(scheduled_at_s[taken])
    waiting = np.arange(1, len(arrived) + 1) - np.searchsorted(begun, arrived, side="right")
    late = arrived >= arrived[0] + (arrived[-1] - arrived[0]) / 3
    times, counts = arrived[late], waiting[late].astype(np.float64)
    seconds = float(times[-1] - times[0])
    if seconds <= 0:
        return 0.0, 1.0
    apart = times - times.mean()
    slope = float((apart * (counts - counts.mean())).sum() / (apart**2).sum())
    return slope, len(times) / seconds


def growth(outcomes: Sequence[Outcome]) -> Growth:
    """Returns how the number of waiting requests grows over several runs."""
    found = [growth_of(one.arrived_at_s, one.scheduled_at_s) for one in outcomes]
    slopes, rates = np.array(found).T
    shares = slopes / rates
    error = float(shares.std(ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return Growth(float(slopes.mean()), float(shares.mean()), error)
