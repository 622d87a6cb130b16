"""AIBrix's rules on rows written by hand."""

import numpy as np

from llmroute_gym.ground.signals import Signal
from tests.routers.hand import chosen, ready, route, rows

TWO = np.ones(2, dtype=np.bool_)


def test_least_kv_takes_the_emptiest_memory_whatever_waits() -> None:
    assert route("least_kv", rows(3, kv_usage=[0.3, 0.1, 0.2], waiting=[0, 9, 0])) == 1
    assert route("least_kv", rows(3, kv_usage=[0.3, 0.1, 0.1])) == 1
    assert route("least_kv", rows(3, kv_usage=[0.3, 0.1, 0.2]), [True, False, True]) == 2


def test_the_longest_match_wins_where_load_is_even() -> None:
    table = rows(3, in_flight=[3, 5, 4], cached_prefix=[0.2, 0.6, 0.4])
    # Mean 4, standard deviation sqrt(2 / 3) = 0.82: 5 are too many, 4.82 would be just enough.
    assert route("aibrix_prefix", table) == 2
    assert route("aibrix_prefix:deviations=1.3", table) == 1
    assert route("aibrix_prefix_helm", table) == 1


def test_more_than_eight_apart_only_load_counts() -> None:
    apart = rows(3, in_flight=[0, 8, 8], cached_prefix=[0, 0.9, 0.5])
    # Mean 5.33, standard deviation 3.77: 8 are no overload.
    assert route("aibrix_prefix", apart) == 1
    further = rows(3, in_flight=[0, 9, 9], cached_prefix=[0, 0.9, 0.5])
    assert route("aibrix_prefix", further) == 0
    assert route("aibrix_prefix_helm", further) == 1


def test_without_a_match_the_fewest_in_flight_of_the_lowest_index() -> None:
    assert route("aibrix_prefix", rows(3, in_flight=[4, 2, 2])) == 1
    # The only match is overloaded: mean 1.33, deviation 0.94 and 3 > 2.27.
    assert route("aibrix_prefix", rows(3, in_flight=[1, 3, 0], cached_prefix=[0, 0.9, 0])) == 2


def test_equal_matches_go_to_fewer_in_flight_then_to_the_lowest_index() -> None:
    assert route("aibrix_prefix", rows(3, in_flight=[2, 1, 1], cached_prefix=0.5)) == 1


def test_only_those_that_may_be_chosen_make_the_load_uneven() -> None:
    table = rows(3, in_flight=[0, 9, 9], cached_prefix=[0, 0.5, 0.9])
    assert route("aibrix_prefix", table, [False, True, True]) == 2


def test_pending_time_is_in_flight_by_completions_per_second() -> None:
    router = ready("aibrix_load_balance", 2)
    # Nothing has completed yet: a rate of 1 each, so the fewest in flight.
    assert [router.route(rows(2, in_flight=[a, b]), TWO) for a, b in ((5, 0), (5, 1))] == [1, 1]
    assert [router.route(rows(2, in_flight=[0, 2]), TWO)] == [0]
    # Both of the second have ended at 10 s: 2 / 60 per second, so one in flight there is 30 s; the
    # first has completed none, so 20 in flight are 20 s.
    busy = rows(2, in_flight=[20, 1], now_s=10.0)
    busy[1, Signal.IN_FLIGHT] = 0
    assert router.route(busy, TWO) == 1
    busy[:, Signal.IN_FLIGHT] = [20, 1]
    assert router.route(busy, TWO) == 0
    busy[:, Signal.IN_FLIGHT] = [40, 1]
    assert router.route(busy, TWO) == 1


def test_completions_are_forgotten_after_a_minute() -> None:
    for time_s, expected in ((69.9, 0), (70.0, 1)):
        router = ready("aibrix_load_balance", 2)
        for _ in range(2):
            router.route(rows(2, in_flight=[5, 0]), TWO)
        router.route(rows(2, in_flight=[5, 0], now_s=10.0), TWO)  # both of the second have ended
        # While that is known, one in flight is 30 s against 20 s; after it 1 s.
        assert router.route(rows(2, in_flight=[20, 1], now_s=time_s), TWO) == expected


def test_ties_of_pending_time_are_broken_at_random() -> None:
    assert chosen("aibrix_load_balance", rows(3)) == {0, 1, 2}
    assert chosen("aibrix_load_balance", rows(3, in_flight=[1, 0, 0])) == {1, 2}
