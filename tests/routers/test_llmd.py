"""llm-d's rules on rows written by hand, in the words of its guides."""

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from tests.routers.hand import chosen, ready, route, rows

ALL = np.ones(3, dtype=np.bool_)


def test_the_default_adds_two_queue_two_memory_three_prefix() -> None:
    # Queue: (8 - q) / (8 - 0) is 1, 0, 0.5. Twice that, twice the free memory, thrice the prefix:
    # 2 + 0.4 + 0 = 2.4, 0 + 1.2 + 1.5 = 2.7, 1 + 1 + 0.6 = 2.6.
    table = rows(3, waiting=[0, 8, 4], kv_usage=[0.8, 0.4, 0.5], cached_prefix=[0, 0.5, 0.2])
    assert chosen("llmd_default", table, 10) == {1}
    # With prefix 2: 2.4, 2.2, 2.4: the first and the last are level.
    assert chosen("llmd_default:prefix=2", table) == {0, 2}
    assert chosen("llmd_default:prefix=0,queue=0", table, 10) == {1}


def test_equal_queues_count_one_each_and_leave_it_to_the_rest() -> None:
    table = rows(3, waiting=5, kv_usage=[0.2, 0.1, 0.2])
    assert chosen("llmd_default", table, 10) == {1}
    assert chosen("llmd_default", rows(3, waiting=5)) == {0, 1, 2}


def test_only_those_that_may_be_chosen_set_the_scale_of_the_queue() -> None:
    # Among the first two the queue is worth 2 to the first; with the third in, 2 of 100 are 0.04.
    table = rows(3, waiting=[0, 2, 100], cached_prefix=[0, 0.1, 0])
    assert route("llmd_default", table) == 1
    assert route("llmd_default", table, [True, True, False]) == 0


def test_no_hit_lru_sends_cold_requests_to_who_got_one_longest_ago() -> None:
    router, cold = ready("llmd_baseline", 3), rows(3)
    assert [router.route(cold, ALL) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_warm_request_neither_counts_nor_is_ranked() -> None:
    router, cold = ready("llmd_baseline", 3), rows(3)
    warm = rows(3, cached_prefix=[0, 0, 0.5])
    assert router.route(cold, ALL) == 0
    # 0.5 each, so the prefix decides; and the last one's turn is still to come.
    assert [router.route(warm, ALL) for _ in range(3)] == [2, 2, 2]
    assert [router.route(cold, ALL) for _ in range(3)] == [1, 2, 0]


def test_the_rank_is_worth_two_for_the_longest_ago_and_none_for_the_latest() -> None:
    # The first has got one: ranks 1, 0.5, 0 go to the second, third, first, twice that is added.
    # Free memory: 2 x (1, 0.45, 0.9), so 2 + 0, 0.9 + 2, 1.8 + 1.
    router = ready("llmd_baseline", 3)
    assert router.route(rows(3), ALL) == 0
    assert router.route(rows(3, kv_usage=[0, 0.55, 0.1]), ALL) == 1
    router = ready("llmd_baseline", 3)
    assert router.route(rows(3), ALL) == 0
    assert router.route(rows(3, kv_usage=[0, 0.65, 0.1]), ALL) == 2


def test_one_replica_alone_is_ranked_first() -> None:
    alone = np.array([False, True, False])
    router = ready("llmd_baseline", 3)
    assert [router.route(rows(3), alone) for _ in range(3)] == [1, 1, 1]


def test_token_load_chooses_among_the_warm() -> None:
    # The second holds 0.8 of it, just enough; the cold first one has nothing to do.
    table = rows(3, cached_prefix=[0.79, 0.8, 0.9], uncached_tokens=[0, 900, 1000])
    assert chosen("llmd_token", table, 10) == {1}
    assert chosen("llmd_token:share=0.85", table, 10) == {2}
    assert chosen("llmd_token:share=0.95", table, 10) == {0}


def test_token_load_counts_what_the_request_itself_would_add() -> None:
    # Of 1,000 tokens the second holds all but 150, the third all but 50; with those in flight they
    # have 150 + 100 and 50 + 210 to do. Of in-flight tokens alone idle ones would be level.
    busy = rows(3, prompt_tokens=1000, cached_prefix=[0, 0.85, 0.95], uncached_tokens=[0, 100, 210])
    assert chosen("llmd_token", busy, 10) == {1}
    idle = rows(3, prompt_tokens=1000, cached_prefix=[0, 0.85, 0.95])
    assert chosen("llmd_token", idle, 10) == {2}
    # Nobody holds enough of it: the half that the last one holds is still worth 500 in flight.
    cold = rows(3, prompt_tokens=1000, cached_prefix=[0, 0, 0.5], uncached_tokens=[0, 0, 499])
    assert chosen("llmd_token", cold, 10) == {2}
    level = rows(3, prompt_tokens=1000, cached_prefix=[0, 0, 0.5], uncached_tokens=[0, 0, 500])
    assert chosen("llmd_token", level) == {0, 1, 2}


def test_token_load_leaves_the_warm_when_they_start_eighteen_seconds_later() -> None:
    # At 15,928 tokens/s, 18 s are 286,704 tokens.
    table = rows(3, cached_prefix=[0, 0.9, 0], uncached_tokens=[100, 286_804, 200])
    assert chosen("llmd_token", table, 10) == {1}
    later = rows(3, cached_prefix=[0, 0.9, 0], uncached_tokens=[100, 286_805, 200])
    assert chosen("llmd_token", later, 10) == {0}
    assert chosen("llmd_token:wait_s=19", later, 10) == {1}
    assert chosen("llmd_token:tokens_per_s=1000", table, 10) == {0}


def test_token_load_knows_no_difference_beyond_its_most_and_breaks_ties_at_random() -> None:
    table = rows(3, uncached_tokens=[4_194_304, 5_000_000, 6_000_000])
    assert chosen("llmd_token", table) == {0, 1, 2}
    assert chosen("llmd_token:most_tokens=5000000", table, 10) == {0}


def test_where_all_are_warm_none_is_left_out() -> None:
    table = rows(2, cached_prefix=0.9, uncached_tokens=[1e6, 9e5])
    assert chosen("llmd_token", table, 10) == {1}


@pytest.mark.parametrize("name", ["llmd_default", "llmd_token"])
def test_the_view_is_the_routers_tree_or_the_engines_events(name: str) -> None:
    for rule, view in ((name, "tree"), (f"{name}:view=events", "events")):
        observation = make(rule).observation
        assert observation is not None
        assert (observation.prefix_view, observation.events_lag_s) == (view, 0.0)
    with pytest.raises(InputError, match=f"unknown view of {name}: 'event'.*did you mean 'events'"):
        make(f"{name}:view=event")


def test_metrics_are_polled_every_fifty_milliseconds() -> None:
    for name in ("llmd_default", "llmd_baseline"):
        observation = make(name).observation
        assert observation is not None
        assert (observation.information, observation.signal_interval_s) == ("metrics", 0.05)
