"""What rules are composed of, and the rule of one's own that the documentation shows."""

import re
from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, Replica, Workload, simulate
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers import Rule, blocks
from llmroute_gym.sim import FormulaBatchTime
from tests.routers.hand import rows

ALL = np.ones(4, dtype=np.bool_)
MASK = np.array([False, True, True, True])


def scores(add: Any, table: FloatArray, *arguments: Any, mask: BoolArray = ALL) -> list[float]:
    """What a score adds to zeros."""
    filled = np.zeros(len(table))
    add(filled, table, mask, *arguments)
    return filled.tolist()


def test_the_queue_scores_one_for_the_shortest_down_to_none() -> None:
    table = rows(4, waiting=[0, 6, 2, 4])
    assert scores(blocks.add_queue, table, 1.0) == pytest.approx([1, 0, 2 / 3, 1 / 3])
    assert scores(blocks.add_queue, table, 2.0, mask=MASK)[1:] == [0, 2, 1]
    assert scores(blocks.add_queue, rows(4, waiting=3), 2.0) == [2] * 4


def test_memory_prefix_and_token_load_score_shares() -> None:
    assert scores(blocks.add_free_memory, rows(4, kv_usage=[0, 0.25, 0.5, 1]), 2.0) == [
        2,
        1.5,
        1,
        0,
    ]
    assert scores(blocks.add_prefix, rows(4, cached_prefix=[0, 0.25, 0.5, 1]), 4.0) == [0, 1, 2, 4]
    load = rows(4, uncached_tokens=[0, 25, 100, 200])
    assert scores(blocks.add_token_load, load, 1.0, 100.0) == [1, 0.75, 0, 0]


def test_no_hit_lru_ranks_by_how_long_ago() -> None:
    last = np.array([5.0, 0.0, 7.0, 0.0])
    # Never: the second, then the fourth; then the first, and the third was the latest.
    expected = [1 / 3, 1, 0, 2 / 3]
    assert scores(blocks.add_no_hit_lru, rows(4), 1.0, last) == pytest.approx(expected)
    warm = rows(4, cached_prefix=[0, 0, 0.1, 0])
    assert scores(blocks.add_no_hit_lru, warm, 2.0, last) == [1] * 4


def test_a_filter_that_would_leave_none_leaves_all() -> None:
    table = rows(4, cached_prefix=[0.9, 0.2, 0.5, 0.8])
    mask = MASK.copy()
    assert blocks.keep_cached(table, mask, 0.5)
    assert mask.tolist() == [False, False, True, True]
    assert not blocks.keep_cached(table, mask, 0.85)
    assert mask.tolist() == [False, False, True, True]
    blocks.keep_one(mask, 3)
    assert mask.tolist() == [False, False, False, True]


def test_picks_take_the_best_of_those_allowed_and_draws_settle_ties() -> None:
    values = np.array([9.0, 3.0, 1.0, 3.0])
    assert blocks.lowest(values, MASK) == 2
    assert [blocks.highest_at_random(values, MASK, draw) for draw in (0, 0.49, 0.5)] == [1, 1, 3]
    assert blocks.highest_at_random(values, ALL, 0.99) == 0
    low = np.array([1.0, 1.0, 4.0, 1.0])
    assert [blocks.lowest_at_random(low, MASK, draw) for draw in (0, 0.49, 0.5)] == [1, 1, 3]
    assert [blocks.lowest_in_turn(low, MASK, turn) for turn in range(4)] == [1, 1, 3, 3]
    busy = rows(4, in_flight=[0, 5, 2, 2])
    assert blocks.fewest_in_flight(busy, MASK) == 2


def test_a_pair_is_two_different_ones_of_those_allowed() -> None:
    pairs = {
        blocks.pair_at_random(MASK, one, other)
        for one in np.linspace(0, 0.99, 30)
        for other in np.linspace(0, 0.99, 30)
    }
    assert pairs == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    alone = np.array([False, False, True, False])
    assert blocks.pair_at_random(alone, 0.9, 0.9) == (2, 2)


@pytest.fixture(scope="module")
def own() -> Any:
    """The class of the documentation's example."""
    (example,) = re.findall(r"```python\n(.*?)```", str(blocks.__doc__), re.DOTALL)
    names: dict[str, Any] = {"__name__": __name__}
    exec(example, names)
    return names["WarmThenIdle"]


def test_a_rule_of_ones_own_routes_in_both_engines(own: type[Rule]) -> None:
    rng = np.random.default_rng(0)
    n = 80
    workload = Workload(np.cumsum(rng.exponential(0.02, n)), [300] * n, rng.integers(5, 40, n))
    cluster = Cluster((Replica(FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)),) * 3)
    one = simulate(workload, cluster, own(), seed=3)
    other = simulate(workload, cluster, own(), seed=3, engine="reference")
    np.testing.assert_array_equal(one.replica, other.replica)
    assert set(one.replica) == {0, 1, 2}


def test_a_rule_of_ones_own_does_what_it_says(own: type[Rule]) -> None:
    rule = own(queue=4)  # type: ignore[call-arg]
    rule.reset(4, 10, np.random.default_rng(0))
    # Warm are the second and third; the second waits less, which is worth 4 against 0.5.
    table = rows(4, cached_prefix=[0, 0.5, 0.9, 0], waiting=[0, 1, 2, 0], kv_usage=[0, 0.5, 0, 0])
    assert rule.route(table, ALL) == 1
    with pytest.raises(InputError, match="queue of warm_then_idle must be a number from 0 to 10"):
        own(queue=11)  # type: ignore[call-arg]
