"""Where an axis is marked: round numbers on a logarithmic one, percentiles on that of tails."""

import math
from typing import NamedTuple

import numpy as np

from llmroute_gym.ground.metrics import METRICS, PERCENTILES, latency_key

ENOUGH = 4
"""So many marks are wanted."""
ROUND = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    tuple(float(half) / 2 for half in range(2, 20)),
    tuple(float(tenth) / 10 for tenth in range(10, 100, 2)),
)
"""Numbers from 1 to 10 at which a decade may be marked, from few to many."""


def log_ticks(low: float, high: float) -> list[float]:
    """Returns ascending round numbers from `low` to `high`, both > 0, at least a few.

    Raises:
        ValueError: the ends are not 0 < low <= high < infinity.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low and high must be 0 < low <= high, got {low} and {high}")
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for numbers in ROUND:
        ticks = [
            float(f"{number}e{decade}")
            for decade in decades
            for number in numbers
            if low <= float(f"{number}e{decade}") <= high
        ]
        if len(ticks) >= ENOUGH:
            return ticks
    return sorted({float(f"{one:.4g}") for one in np.linspace(low, high, ENOUGH + 1)})


QUANTILES = ("p50", "p90", "p95", "p99", "p999")


class Tail(NamedTuple):
    """The axis of percentiles of a latency, the tail stretched.

    Attributes:
        keys: of the metrics.
        places: along the axis; a tenth of the distance to 100% is one further.
        labels: of the places.
    """

    keys: list[str]
    places: list[float]
    labels: list[str]


def stretched(latency: str) -> Tail:
    """Returns the axis of the percentiles of a latency, such as ``"e2e"``."""
    keys = [latency_key(latency, name) for name in QUANTILES]
    places = [-math.log10(1 - PERCENTILES[name] / 100) for name in QUANTILES]
    return Tail(keys, places, [METRICS[key].title.split()[-1] for key in keys])
