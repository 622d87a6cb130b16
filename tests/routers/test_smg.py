"""SMG's rules on rows written by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmroute_gym import simulate
from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.rules import rule_text
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import LlmdDefault, Random, SmgLeastLoad, SmgVeto, make
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.engines import EngineName
from tests.routers.hand import N_REQUESTS, chosen, ready, route, rows

ALL = np.ones(3, dtype=np.bool_)


def test_the_load_is_queued_tokens_by_throughput_plus_a_price_of_memory() -> None:
    # 1024 q / 2000 + 0.15 k / (1 - k): 0.512 + 0.15, 0 + 0.6, 0.512 + 0.05.
    table = rows(3, waiting=[1, 0, 1], kv_usage=[0.5, 0.8, 0.25])
    assert route("smg_least_load", table) == 2
    # A price of 0.1 s: 0.612, 0.4, 0.545.
    assert route("smg_least_load:memory_s=0.1", table) == 1
    # Speeds 2, 1, 1: 0.256 + 0.15, 0.6, 0.562.
    fast = rows(3, waiting=[1, 0, 1], kv_usage=[0.5, 0.8, 0.25], speed=[2, 1, 1])
    assert route("smg_least_load", fast) == 0
    assert route("smg_least_load", rows(3, kv_usage=[1, 1, 1])) == 0


def at(time_s: float) -> Any:
    return rows(3, now_s=time_s, prompt_tokens=500)


def test_what_was_sent_since_the_poll_counts() -> None:
    router = ready("smg_least_load", 3)
    # Each sent prompt adds 500 / 2000 s to its replica until the next poll, at 10 s.
    assert [router.route(at(t), ALL) for t in (0, 1, 2, 9.9)] == [0, 1, 2, 0]
    busy = at(9.9)
    busy[1:, Signal.WAITING] = 1  # 1024 tokens and the 500 sent, against 1000, 1500, 2000
    assert [router.route(busy, ALL) for _ in range(3)] == [0, 0, 1]
    assert [router.route(at(t), ALL) for t in (10, 10)] == [0, 1]


def polled(interval_s: float, gateways: int) -> ObservationConfig:
    return ObservationConfig(information="metrics", signal_interval_s=interval_s, gateways=gateways)


@pytest.mark.parametrize("name", ["smg_least_load", "smg_veto:rule=smg_least_load"])
def test_each_gateway_counts_from_its_own_polls_on(name: str) -> None:
    # The second of two polls at 5 s, 15 s and so on, the first at 0 s, 10 s and so on.
    for gateway, choices in ((0, [0, 1, 2, 0, 1]), (1, [0, 0, 1, 2, 0])):
        router = ready(name, 3)
        router.join(polled(10.0, 2), gateway)
        router.reset(3, N_REQUESTS, np.random.default_rng(0))
        assert [router.route(at(t), ALL) for t in (1, 5, 9.9, 10, 15)] == choices


def test_the_polls_that_a_run_tells_of_count() -> None:
    router = ready("smg_least_load", 3)
    for told, choices in (
        (polled(2.0, 1), [0, 1, 0]),
        (polled(0.0, 1), [0, 0, 0]),
        (ObservationConfig(information="router", signal_interval_s=9.0), [0, 0, 0]),
    ):
        router.join(told, 0)
        router.reset(3, N_REQUESTS, np.random.default_rng(0))
        assert [router.route(at(t), ALL) for t in (0, 1.9, 2)] == choices


def test_fresh_metrics_need_no_memory_of_what_was_sent() -> None:
    router = ready("smg_least_load:poll_s=0", 3)
    assert [router.route(at(0), ALL) for _ in range(3)] == [0, 0, 0]


def test_a_pair_is_drawn_and_the_lower_score_wins() -> None:
    table = rows(3, waiting=[1, 0, 0], kv_usage=[0.5, 0.8, 0.25])
    # Scores 0.662, 0.6, 0.05: the first never wins, the second only against the first.
    assert chosen("smg_power_of_two", table) == {1, 2}
    assert chosen("smg_power_of_two", rows(3)) == {0, 1, 2}
    counts = [route("smg_power_of_two", table, seed=seed) for seed in range(600)].count(2)
    assert 360 < counts < 440


def test_a_pair_counts_what_was_sent_too() -> None:
    router = ready("smg_power_of_two", 2)
    assert {router.route(rows(2, prompt_tokens=9), ALL[:2]) for _ in range(2)} == {0, 1}


@pytest.mark.parametrize("limit", [{"waiting": [8, 0, 0]}, {"kv_usage": [0.8, 0.5, 0.5]}])
def test_the_veto_leaves_out_who_reaches_a_limit(limit: Any) -> None:
    table = rows(3, in_flight=[0, 2, 1], **limit)
    assert route("lor", table) in (0, 1)  # by waiting and running
    assert route("smg_veto:rule=random", table, seed=0) in (1, 2)
    assert chosen("smg_veto:rule=random", table) == {1, 2}
    under = rows(3, in_flight=[0, 2, 1], waiting=7.0, kv_usage=0.79)
    assert chosen("smg_veto:rule=random", under) == {0, 1, 2}


def test_where_all_reach_a_limit_the_least_loaded_gets_it() -> None:
    table = rows(3, waiting=[8, 9, 0], kv_usage=[0, 0, 0.8], in_flight=[30, 20, 20])
    assert chosen("smg_veto:rule=random", table, 20) == {1}
    assert route("smg_veto:rule=random", table, [True, False, True]) == 2
    assert chosen("smg_veto:rule=random,kv=0.9", table, 20) == {2}


def test_the_veto_asks_nobody_who_may_not_be_chosen() -> None:
    # The only one under both limits is masked, so the others are all there is.
    table = rows(3, waiting=[0, 9, 8], in_flight=[0, 9, 8])
    assert route("smg_veto", table, [False, True, True]) == 2


def test_the_rule_behind_the_veto_keeps_its_options_draws_and_memory() -> None:
    filtered, alone = ready("smg_veto:rule=llmd_baseline", 3), ready("llmd_baseline", 3)
    rng = np.random.default_rng(3)
    for _ in range(100):
        table = rows(3, waiting=rng.integers(0, 8, 3), cached_prefix=rng.integers(0, 2, 3) / 2)
        assert filtered.route(table, ALL) == alone.route(table, ALL)


def test_a_rule_with_options_is_a_mapping_or_stands_in_brackets() -> None:
    inner = {"name": "llmd_default", "queue": 3, "kv": 1}
    mapping = {"name": "smg_veto", "rule": inner, "queue": 4}
    text = "smg_veto:rule=(llmd_default:queue=3,kv=1),queue=4"
    assert rule_text(mapping) == rule_text(text) == text
    for rule in (mapping, text, rule_text(mapping)):
        router = make(rule)
        assert isinstance(router, SmgVeto)
        assert router.queue == 4
        assert router.rule == LlmdDefault(queue=3, kv=1, poll_s=10)
    assert make("smg_veto:rule=llmd_default") == SmgVeto(rule=LlmdDefault())
    assert make("smg_veto") == SmgVeto(rule=SmgLeastLoad())


def test_both_rules_see_one_poll_and_the_view_of_the_one_behind() -> None:
    router = make("smg_veto:rule=(llmd_default:view=events),poll_s=3")
    assert router.observation == ObservationConfig(
        information="metrics", signal_interval_s=3.0, prefix_view="events"
    )
    plain = SmgVeto(rule=Random()).observation
    assert plain is not None
    assert (plain.information, plain.signal_interval_s) == ("metrics", 10.0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("smg_veto:rule=lro", "unknown router 'lro'.*did you mean 'lor'"),
        ("smg_veto:rule=(llmd_default:queu=3)", "option of router 'llmd_default': 'queu'.*'queue'"),
        ("smg_veto:rule=5", "rule of smg_veto must be a Rule that asks no oracle.*got 5"),
        ("smg_veto:rule=(lor", "opens a bracket that it does not close"),
        ("smg_veto:kv=1.5", "kv of smg_veto must be a number from 0 to 1, got 1.5"),
    ],
)
def test_a_wrong_rule_behind_the_veto_is_one_sentence(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(rule)


def test_the_rule_behind_the_veto_is_introduced_and_taught() -> None:
    told: list[Any] = []

    class Pupil(SmgLeastLoad):
        """Notes what it is told."""

        def meet(self, cluster: Any) -> None:
            told.append(cluster)

        def attend(self, run: Any) -> None:
            told.append(run)

        def lessons(self, n_requests: int) -> Sequence[int]:
            return (n_requests,)

        def learn(self, lesson: Any) -> None:
            told.append(lesson)

    router: Any = SmgVeto(rule=Pupil())
    router.meet("cluster")
    router.attend("run")
    router.learn("lesson")
    assert told == ["cluster", "run", "lesson"]
    assert router.lessons(7) == (7,)


def test_a_rule_behind_a_veto_of_nobody_learns_as_if_alone(engine: EngineName) -> None:
    rng = np.random.default_rng(0)
    requests = Workload(
        np.cumsum(rng.exponential(0.05, 250)), rng.integers(1, 300, 250), rng.integers(1, 40, 250)
    )
    cluster = Cluster((Replica(FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)),) * 3)
    rules = (
        "llmd_predicted:ttft_s=0.1,poll_s=1",
        "smg_veto:rule=(llmd_predicted:ttft_s=0.1),queue=10000,kv=1,poll_s=1",
    )
    alone, behind = (
        simulate(requests, cluster, rule, engine=engine, seed=1).replica for rule in rules
    )
    np.testing.assert_array_equal(alone, behind)


def test_a_run_may_be_as_long_as_it_likes() -> None:
    router = ready("smg_veto:rule=power_of_two", 3)
    assert {router.route(rows(3), ALL) for _ in range(N_REQUESTS)} == {0, 1, 2}
