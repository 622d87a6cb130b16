"""The tree of least numbers against a plain search."""

import numpy as np
import pytest
from numba import njit

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled.tournament import (
    Tournament,
    first_of_least,
    least,
    number,
    tournament,
    update,
)


@njit(error_model="numpy")  # uncached: a stale kernel would prove nothing
def _play(
    tree: Tournament,
    indices: IntArray,
    values: FloatArray,
    read: FloatArray,
    winners: IntArray,
    bests: FloatArray,
) -> None:
    for i in range(len(indices)):
        update(tree, indices[i], values[i])
        read[i] = number(tree, indices[i])
        winners[i] = first_of_least(tree)
        bests[i] = least(tree)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 64, 255, 257, 1024, 5000])
def test_the_winner_is_the_first_of_the_least_numbers_after_every_change(n: int) -> None:
    rng = np.random.default_rng(n)
    indices = np.concatenate([np.arange(n), rng.integers(n, size=2000)])
    values = np.where(
        rng.random(len(indices)) < 0.7, rng.integers(4, size=len(indices)), rng.random(len(indices))
    )
    values[rng.random(len(indices)) < 0.1] = np.inf
    winners = np.empty(len(indices), dtype=np.int64)
    read, bests = np.empty(len(indices)), np.empty(len(indices))
    _play(tournament(n), indices, values, read, winners, bests)
    np.testing.assert_array_equal(read, values)
    numbers = np.full(n, np.inf)
    for index, value, winner, best in zip(indices, values, winners, bests, strict=True):
        numbers[index] = value
        assert winner == np.argmin(numbers)
        assert best == numbers.min()
