"""Each rule on rows written by hand."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from llmroute_gym import routers
from llmroute_gym.errors import InputError
from llmroute_gym.routers import available, make
from tests.routers.hand import N_REQUESTS, ready, route, rows

SCORED = ("jsq", "least_tokens", "lor", "lor_pending", "speed_lor")

RULES = [name for name in available() if not make(name).upper_bound]
every_router = pytest.mark.parametrize("name", RULES)


def test_the_rules_are_listed_by_name() -> None:
    expected = {"random", "round_robin", "power_of_two", *SCORED}
    assert expected <= set(available())
    assert list(available()) == sorted(available())
    assert all(make(name).name == name for name in available())


def test_every_class_is_at_hand() -> None:
    for kind in map(type, map(make, available())):
        assert getattr(routers, kind.__name__) is kind


@pytest.mark.parametrize(("wrong", "close"), [("lro", "lor"), ("roundrobin", "round_robin")])
def test_an_unknown_name_gets_its_closest_match(wrong: str, close: str) -> None:
    with pytest.raises(InputError) as error:
        make(wrong)
    message = str(error.value)
    assert message.startswith(f"unknown router {wrong!r}; available: ")
    assert f"did you mean {close!r}" in message
    assert "round_robin, " in message


@pytest.mark.parametrize("wrong", [["lor"], None, 3, {"lor": 1}])
def test_what_is_no_name_is_unknown_too(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"unknown router .*; available: .*lor"):
        make(wrong)


@pytest.mark.parametrize("name", ["jsq", "lor_pending"])
def test_the_shortest_waiting_queue_wins_whatever_runs(name: str) -> None:
    assert route(name, rows(3, waiting=[2, 0, 1], running=[0, 90, 0])) == 1
    assert route(name, rows(3, waiting=[2, 1, 1], running=[0, 90, 0])) == 1


def test_lor_counts_waiting_and_running() -> None:
    assert route("lor", rows(3, waiting=[0, 3, 1], running=[9, 1, 4])) == 1
    assert route("lor", rows(3, waiting=[0, 3, 1], running=[4, 1, 2])) == 2


def test_least_tokens_counts_prompts_not_requests() -> None:
    table = rows(3, pending_prompt_tokens=[500, 90, 100], waiting=[1, 9, 1], prompt_tokens=700)
    assert route("least_tokens", table) == 1


def test_speed_lor_expects_the_request_at_its_replica() -> None:
    # (2 + 1) / 2 < (1 + 1) / 1, and a tie of 2 / 1 with 4 / 2 goes to the lowest index.
    assert route("speed_lor", rows(2, running=[1, 2], speed=[1.0, 2.0])) == 1
    assert route("speed_lor", rows(2, running=[1, 3], speed=[1.0, 2.0])) == 0


@pytest.mark.parametrize("name", SCORED)
def test_ties_go_to_the_lowest_allowed_index(name: str) -> None:
    assert route(name, rows(4)) == 0
    assert route(name, rows(4), [False, False, True, True]) == 2


@pytest.mark.parametrize("name", SCORED)
def test_a_masked_replica_is_never_best(name: str) -> None:
    table = rows(3, waiting=[0, 8, 5], pending_prompt_tokens=[0, 800, 500])
    assert route(name, table) == 0
    assert route(name, table, [False, True, True]) == 2
    assert route(name, table, [False, True, False]) == 1


@every_router
def test_one_replica_takes_all(name: str) -> None:
    router, alone = ready(name, 1), np.ones(1, dtype=np.bool_)
    assert {router.route(rows(1, running=3), alone) for _ in range(50)} == {0}


@every_router
def test_only_allowed_replicas_are_chosen(name: str) -> None:
    router, rng = ready(name, 5), np.random.default_rng(1)
    for _ in range(500):
        mask = rng.random(5) < 0.4
        mask[rng.integers(5)] = True
        table = rows(5, waiting=rng.integers(0, 4, 5), running=rng.integers(0, 9, 5))
        assert mask[router.route(table, mask)]


@every_router
def test_a_reset_router_repeats_itself(name: str) -> None:
    rng = np.random.default_rng(2)
    tables = [rows(4, running=rng.integers(0, 5, 4)) for _ in range(200)]
    everyone, router = np.ones(4, dtype=np.bool_), ready(name, 4)
    choices = []
    for seed in (7, 7, 8):
        router.reset(4, len(tables), np.random.default_rng(seed))
        choices.append([router.route(table, everyone) for table in tables])
    assert choices[0] == choices[1]
    if name in ("random", "power_of_two"):
        assert choices[0] != choices[2]
    if not getattr(router, "per_request", 0):
        assert choices[0] == choices[2]


def test_round_robin_is_i_mod_n() -> None:
    router, everyone = ready("round_robin", 3), np.ones(3, dtype=np.bool_)
    table = rows(3, running=[9, 0, 5])
    assert [router.route(table, everyone) for _ in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_round_robin_skips_and_wraps() -> None:
    router = ready("round_robin", 4)
    some = np.array([True, False, True, False])
    assert [router.route(rows(4), some) for _ in range(4)] == [0, 2, 0, 2]
    last = np.array([False, False, False, True])
    assert router.route(rows(4), last) == 3
    assert router.route(rows(4), np.ones(4, dtype=np.bool_)) == 0


def draw(name: str, table: npt.NDArray[np.float64], mask: list[bool]) -> npt.NDArray[np.int64]:
    """Returns how often each replica is chosen."""
    router, allowed = ready(name, len(table)), np.array(mask)
    counts = Counter(router.route(table, allowed) for _ in range(N_REQUESTS))
    return np.array([counts[replica] for replica in range(len(table))])


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_without_load_all_allowed_replicas_are_equally_likely(name: str) -> None:
    # Under power of two the first drawn wins a tie, so idle replicas are equally likely too.
    counts = draw(name, rows(5), [True, True, False, True, True])
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3, 4]]).pvalue > 0.001


def test_power_of_two_takes_the_less_loaded_of_a_uniform_pair() -> None:
    # Of the 6 pairs of 4 replicas the least loaded wins 3, the next 2, then 1, the last none.
    counts = draw("power_of_two", rows(4, waiting=[0, 2, 0, 1], running=[3, 2, 1, 1]), [True] * 4)
    order = [2, 3, 0, 1]
    assert counts[1] == 0
    expected = N_REQUESTS * np.array([3, 2, 1]) / 6
    assert stats.chisquare(counts[order[:3]], expected).pvalue > 0.001


def test_power_of_two_ignores_how_much_less() -> None:
    everyone = [True] * 4
    near = draw("power_of_two", rows(4, running=[0, 1, 2, 3]), everyone)
    far = draw("power_of_two", rows(4, running=[0, 10, 200, 3000]), everyone)
    np.testing.assert_array_equal(near, far)
