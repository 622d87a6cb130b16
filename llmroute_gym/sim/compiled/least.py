"""How long decode batches take at least, whatever requests join them.

Measured batch times are not quite monotone: a batch with one more request is sometimes the faster
one. A router that lets a replica sleep until it may finish a request needs a bound that holds for
all members that may join it. While no member leaves, their number and the sum of their contexts
only grow.
"""

import numpy as np

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.batch_time import CONTEXT_BUCKET


def least_of_table(decode: FloatArray, cheapest: FloatArray) -> FloatArray:
    """Returns a lower bound of whole batch times by decodes and bucket of the mean context.

    Args:
        decode: (max_batch, n_buckets) seconds of decode attention of 1, 2, ... requests.
        cheapest: (max_batch,) the least seconds of everything else, of so many tokens or more.

    Returns:
        (max_batch, n_buckets): the least time of any batch with as many decodes or more, and
        contexts whose sum is as large or larger.
    """
    times = decode + cheapest[:, None]
    onwards = np.minimum.accumulate(times[:, ::-1], axis=1)[:, ::-1]
    n_batch, n_buckets = times.shape
    buckets = np.arange(n_buckets)
    shortest = np.where(buckets > 0, CONTEXT_BUCKET * (buckets - 1) + 1, 0)  # mean of a bucket
    bounds = np.empty_like(times)
    for index in range(n_batch):
        members = np.arange(index, n_batch)[:, None] + 1
        mean = (index + 1) * shortest // members
        bucket = (mean + CONTEXT_BUCKET - 1) // CONTEXT_BUCKET
        bounds[index] = onwards[members - 1, bucket].min(axis=0)
    return bounds


def least_of_profile(
    decode: FloatArray, knots: FloatArray, dense: FloatArray, cheapest: FloatArray, reach: float
) -> FloatArray:
    """Returns the same for times that are piecewise linear in the mean context.

    The bound is the time itself times one factor per number of decodes, so it keeps its knots.

    Args:
        decode: (max_batch, n_knots) seconds of decode attention at the knots.
        knots: (n_knots,) mean contexts, ascending from 0; the last segment goes on.
        dense: (max_batch,) seconds of everything else.
        cheapest: (max_batch,) its least, of so many tokens or more.
        reach: longest mean context, tokens.

    Returns:
        (max_batch, n_knots).
    """
    n_knots = len(knots)
    if reach > knots[-1]:
        slope = (decode[:, -1] - decode[:, -2]) / (knots[-1] - knots[-2])
        last = decode[:, -1] + slope * (reach - knots[-1])
        knots, decode = np.append(knots, reach), np.column_stack([decode, last])
    onwards = np.minimum.accumulate(decode[:, ::-1], axis=1)[:, ::-1] + cheapest[:, None]
    times = decode + dense[:, None]
    factors = np.ones(len(times))
    for index in range(len(times)):
        shrink = (index + 1) / np.arange(index + 1, len(times) + 1)[:, None]
        # Quotients of linear functions are least where one of them has a knot.
        at = np.minimum(
            np.hstack([np.broadcast_to(knots, (len(shrink), len(knots))), knots / shrink]),
            knots[-1],
        )
        bound = _between(knots, onwards[index:], at * shrink)
        factors[index] = min(1.0, (bound / np.interp(at, knots, times[index])).min())
    return factors[:, None] * times[:, :n_knots]


def _between(knots: FloatArray, values: FloatArray, x: FloatArray) -> FloatArray:
    """Interpolates each row of values (n_rows, n_knots) at that row of x, none beyond the knots."""
    segment = np.minimum(np.searchsorted(knots, x, side="right"), len(knots) - 1) - 1
    low = np.take_along_axis(values, segment, axis=1)
    high = np.take_along_axis(values, segment + 1, axis=1)
    slope = (high - low) / (knots[segment + 1] - knots[segment])
    return np.where(x == knots[segment + 1], high, slope * (x - knots[segment]) + low)


def least_of_piecewise(
    decode: FloatArray, knots: FloatArray, dense: FloatArray, cheapest: FloatArray, reach: float
) -> FloatArray:
    """Returns the same as `least_of_profile`, a hair lower, for batches of a thousand decodes.

    Goes from the largest batch down with the least time of all batches so far, known at sums of
    contexts one per cent apart: between two of them it is at least what it is at the lower one.
    """
    n_batch, n_knots = decode.shape
    slope = (decode[:, -1] - decode[:, -2]) / (knots[-1] - knots[-2])
    top = max(float(knots[-1]), reach)
    knots = np.append(knots, top + 1.0)
    decode = np.column_stack([decode, decode[:, -1] + slope * (knots[-1] - knots[-2])])
    times = decode + dense[:, None]
    highest = np.maximum.accumulate(times, axis=1)
    onwards = np.minimum.accumulate(decode[:, ::-1], axis=1)[:, ::-1] + cheapest[:, None]
    sums = np.append(0.0, 1.01 ** np.arange(np.ceil(np.log(n_batch * top) / np.log(1.01)) + 1))
    least = np.full(len(sums), np.inf)
    factors = np.ones(n_batch)
    for index in range(n_batch - 1, -1, -1):
        mean = sums / (index + 1)
        least = np.minimum(least, np.interp(mean, knots, onwards[index]))
        cells = int(np.searchsorted(mean, top, side="right"))
        longest = np.interp(mean[1 : cells + 1], knots, highest[index])
        factors[index] = min(1.0, (least[: len(longest)] / longest).min())
    return factors[:, None] * times[:, :n_knots]
