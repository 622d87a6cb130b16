"""Tests of the bounds that let a replica sleep through arrivals."""

from collections.abc import Callable

import numpy as np
import pytest

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.compiled.least import (
    least_of_piecewise,
    least_of_profile,
    least_of_table,
)

N_BATCH, N_BUCKETS = 7, 9


@pytest.mark.parametrize("seed", range(5))
def test_no_larger_batch_of_a_table_is_faster_than_its_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decode = rng.uniform(1.0, 2.0, (N_BATCH, N_BUCKETS))
    dense = rng.uniform(1.0, 2.0, N_BATCH)
    cheapest = np.minimum.accumulate(dense[::-1])[::-1]
    bounds = least_of_table(decode, cheapest)
    for _ in range(3000):
        b, more = np.sort(rng.integers(1, N_BATCH + 1, 2))
        contexts = rng.integers(0, b * 64 * (N_BUCKETS - 1) + 1)
        grown = rng.integers(contexts, more * 64 * (N_BUCKETS - 1) + 1)
        bucket, further = -(-(contexts // b) // 64), -(-(grown // more) // 64)
        assert bounds[b - 1, bucket] <= decode[more - 1, further] + dense[more - 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reach", [300.0, 900.0])
@pytest.mark.parametrize("least_of", [least_of_profile, least_of_piecewise])
def test_no_larger_batch_of_a_profile_is_faster_than_its_bound(
    seed: int, reach: float, least_of: Callable[..., FloatArray]
) -> None:
    rng = np.random.default_rng(seed)
    knots = np.array([0.0, 10.0, 100.0, 500.0])
    decode = np.sort(rng.uniform(1.0, 2.0, (N_BATCH, 4)), axis=1)
    decode[0, 1:3] = decode[0, 2:0:-1]  # not monotone
    dense = rng.uniform(1.0, 2.0, N_BATCH)
    cheapest = np.minimum.accumulate(dense[::-1])[::-1]
    bounds = least_of(decode, knots, dense, cheapest, reach)

    def at(grid: np.ndarray, b: int, mean: float) -> float:
        j = min(int(np.searchsorted(knots, mean, side="right")) - 1, len(knots) - 2)
        u = (mean - knots[j]) / (knots[j + 1] - knots[j])
        return float((1 - u) * grid[b - 1, j] + u * grid[b - 1, j + 1])

    for _ in range(3000):
        b, more = np.sort(rng.integers(1, N_BATCH + 1, 2))
        contexts = rng.uniform(0, b * reach)
        grown = rng.uniform(contexts, more * reach)
        slowest = at(decode, more, grown / more) + dense[more - 1]
        assert at(bounds, b, contexts / b) <= slowest * (1 + 1e-12)


def test_the_bound_of_a_rising_time_is_near_it() -> None:
    knots = np.array([0.0, 10.0, 100.0, 500.0])
    members = np.arange(1, N_BATCH + 1)
    decode = 1e-3 * members[:, None] * (1.0 + knots)
    dense = 1.0 + 0.1 * members
    bounds = least_of_piecewise(decode, knots, dense, dense, 300.0)
    times = decode + dense[:, None]
    assert (bounds <= times).all()
    assert (bounds > 0.985 * times).all()
