"""The hybrid of requests in flight and memory in use, on rows written by hand."""

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers import LeastOutstandingHybrid


def rows(in_flight: list[tuple[int, int]], kv_usage: list[float]) -> FloatArray:
    """Rows with the given waiting and running requests and shares of KV blocks in use."""
    table = np.zeros((len(kv_usage), N_SIGNALS))
    table[:, Signal.IN_FLIGHT] = np.sum(in_flight, axis=1)
    table[:, Signal.KV_USAGE] = kv_usage
    return table


def fresh(load_weight: float = 0.5, n_replicas: int = 3) -> LeastOutstandingHybrid:
    router = LeastOutstandingHybrid(load_weight)
    router.reset(n_replicas, 100, np.random.default_rng(0))
    return router


ALL = np.ones(3, dtype=np.bool_)


def test_the_lowest_sum_of_load_and_memory_wins() -> None:
    # 0.5 + 0.05, 0.25 + 0.4, 0.0625 + 0.45; then the last has 0.5625.
    assert fresh().route(rows([(2, 6), (0, 4), (1, 0)], [0.1, 0.8, 0.9]), ALL) == 2
    assert fresh().route(rows([(2, 6), (0, 4), (1, 0)], [0.1, 0.8, 1.0]), ALL) == 0


@pytest.mark.parametrize(("load_weight", "chosen"), [(1.0, 2), (0.0, 0)])
def test_the_weight_decides_what_counts(load_weight: float, chosen: int) -> None:
    table = rows([(2, 6), (0, 4), (1, 0)], [0.1, 0.8, 0.9])
    assert fresh(load_weight).route(table, ALL) == chosen


def test_an_idle_cluster_is_served_in_turn() -> None:
    router, idle = fresh(), rows([(0, 0)] * 3, [0.0] * 3)
    assert [router.route(idle, ALL) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_tie_goes_to_the_next_of_the_tied() -> None:
    router = fresh()
    tied = rows([(1, 1), (0, 5), (0, 2)], [0.2, 0.2, 0.2])
    assert [router.route(tied, ALL) for _ in range(4)] == [0, 2, 0, 2]


def test_a_masked_replica_is_never_chosen() -> None:
    router, idle = fresh(), rows([(0, 0)] * 3, [0.0] * 3)
    mask = np.array([False, True, True])
    assert [router.route(idle, mask) for _ in range(4)] == [1, 2, 1, 2]


def test_it_forgets_at_reset() -> None:
    router, idle = fresh(), rows([(0, 0)] * 3, [0.0] * 3)
    router.route(idle, ALL)
    router.reset(3, 100, np.random.default_rng(0))
    assert router.route(idle, ALL) == 0


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="a of lor_hybrid must be a"):
        LeastOutstandingHybrid(wrong)
