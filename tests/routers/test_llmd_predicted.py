"""llm-d's rule by predicted latency: what it does with predictions, and how it comes by them."""

from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, Replica, Workload, simulate
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import LlmdPredicted, make
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.engines import EngineName
from tests.routers.hand import ask, fresh, rows


def taught(n_replicas: int, seed: int = 0, **options: float) -> LlmdPredicted:
    """A rule that has learned that TTFT is as many seconds as requests wait.

    And TPOT as many hundredths as run. It explores nothing unless told.
    """
    rule: LlmdPredicted = fresh(
        LlmdPredicted(**{"explore": 0.0, **options}), n_replicas, 4000, seed
    )
    for k in range(400):
        table = rows(n_replicas, waiting=k % 20, running=k // 20)
        rule.route(table, np.arange(n_replicas) == 0)
    number = np.arange(400)
    rule.learn(Lesson(number, number % 20 + 0.0, 0.01 * (number // 20)))
    return rule


def busy(n_replicas: int, **columns: Any) -> FloatArray:
    return rows(n_replicas, **{"in_flight": 1.0, **columns})


def test_before_its_first_lesson_it_adds_up_scores() -> None:
    """Queue (max - q) / (max - min), free memory, cached share: 1 + .5 + 0, .5 + .9 + .3, 0 + 1."""
    rule = fresh(LlmdPredicted(), 3)
    table = rows(3, waiting=[0, 2, 4], kv_usage=[0.5, 0.1, 0], cached_prefix=[0, 0.3, 0])
    assert ask(rule, table) == 1
    assert ask(rule, table, without=[1]) == 0
    assert {ask(rule, rows(3)) for _ in range(40)} == {0, 1, 2}


def test_the_least_headroom_wins_among_those_within_the_objectives() -> None:
    """TTFT 2, 5, 9 s under an objective of 7."""
    rule = taught(3, ttft_s=7.5, tpot_s=0.5)
    assert ask(rule, busy(3, waiting=[2, 5, 9], running=3)) == 1
    assert ask(rule, busy(3, waiting=[2, 5, 9], running=3), without=[1]) == 0
    # TPOT alone differs, and the second is over its objective.
    strict = taught(3, ttft_s=7.5, tpot_s=0.105)
    assert ask(strict, busy(3, waiting=2, running=[5, 15, 8])) == 2


def test_both_headrooms_are_scaled_and_weighed() -> None:
    """Headroom scaled: TTFT 1, 0, .5 and TPOT 0, 1, 0: 0.8 a + 0.2 b is .8, .2, .4."""
    table = busy(3, waiting=[2, 10, 6], running=[15, 5, 15])
    assert ask(taught(3, ttft_s=30, tpot_s=1), table) == 1
    # With equal weights .5, .5, .25.
    assert ask(taught(3, ttft_s=30, tpot_s=1, ttft_weight=0.5, tpot_weight=0.5), table) == 2


def test_equal_headroom_is_left_to_chance() -> None:
    rule = taught(3, ttft_s=30, tpot_s=1)
    tied = busy(3, waiting=[4, 4, 1], running=2)
    assert {ask(rule, tied) for _ in range(40)} == {0, 1}


def test_a_warm_replica_wins_unless_it_starts_too_late() -> None:
    """0.99 of the prompt is enough; more than 5 s behind the best is too late."""
    rule = taught(2, ttft_s=30, tpot_s=1)
    # The other one has less headroom, so without that filter it would win.
    assert ask(rule, busy(2, waiting=[8, 4], cached_prefix=[0, 0.99])) == 1
    # 10 s against 1 s is too late: the objective leaves it out, or else chance takes it.
    tight = taught(2, ttft_s=5.5, tpot_s=1)
    assert ask(tight, busy(2, waiting=[1, 10], cached_prefix=[0, 1.0])) == 0
    # 6 s against 2 s is not, although it has no headroom.
    assert [ask(tight, busy(2, waiting=[2, 6], cached_prefix=[0, 1.0])) for _ in range(9)] == [
        1
    ] * 9


def test_what_is_nearly_warm_wins_among_those_with_headroom() -> None:
    rule = taught(3, ttft_s=7.5, tpot_s=1)
    assert ask(rule, busy(3, waiting=[2, 4, 9], cached_prefix=[0.8, 0.79, 0.95])) == 0
    assert ask(rule, busy(3, waiting=[2, 4, 9], cached_prefix=[0.7, 0.79, 0.95])) == 1


def test_without_headroom_an_idle_replica_gets_it() -> None:
    rule = taught(3, ttft_s=0.5, tpot_s=1)
    table = rows(3, waiting=[3, 9, 3], in_flight=[3, 0, 3])
    assert [ask(rule, table) for _ in range(20)] == [1] * 20


def test_without_headroom_and_idle_ones_chance_favours_the_nearest() -> None:
    """TTFT 2, 6, 10 s too long by 0, .5, 1 of the range: weights 101, 51, 2."""
    rule = taught(3, ttft_s=0.5, tpot_s=1)
    table = busy(3, waiting=[2, 6, 10])
    counts = np.bincount([ask(rule, table) for _ in range(1500)], minlength=3) / 1500
    assert counts == pytest.approx(np.array([101, 51, 2]) / 154, abs=0.04)


def test_with_no_objectives_the_quickest_is_the_likeliest() -> None:
    rule = taught(2)
    counts = np.bincount([ask(rule, busy(2, waiting=[2, 10])) for _ in range(500)], minlength=2)
    assert counts[0] / 500 == pytest.approx(101 / 103, abs=0.03)


def test_it_explores_what_its_filters_leave_out() -> None:
    table = busy(2, waiting=[2, 6])
    rule = taught(2, ttft_s=4.5, tpot_s=1, explore=0.3)
    counts = np.bincount([ask(rule, table) for _ in range(1000)], minlength=2)
    assert counts[1] / 1000 == pytest.approx(0.3, abs=0.06)


def test_it_is_taught_at_growing_intervals() -> None:
    assert list(LlmdPredicted().lessons(1000)) == [100, 200, 400, 800]
    assert list(LlmdPredicted().lessons(100)) == []
    assert len(LlmdPredicted().lessons(1_000_000)) == 14


def test_a_lesson_of_one_token_outputs_teaches_nothing_yet() -> None:
    rule = fresh(LlmdPredicted(), 2)
    ask(rule, rows(2))
    before = rule.memory.copy()
    rule.learn(Lesson(np.array([0]), np.array([1.0]), np.array([np.nan])))
    np.testing.assert_array_equal(rule.memory, before)


def test_it_forgets_what_is_long_ago() -> None:
    """Of 9000 decisions it keeps the features of 8192, and learns from 5000."""
    rule = fresh(LlmdPredicted(), 2, 20000)
    for _ in range(9000):
        rule.route(rows(2), np.ones(2, dtype=np.bool_))
    number = np.arange(9000)
    ttft_s = np.where(number < 9000 - 5000, 100.0, 1.0)
    rule.learn(Lesson(number, ttft_s, np.full(9000, 0.01)))
    assert rule.memory[3] == 1.0  # where the model of TTFT starts from


MODEL = FormulaBatchTime(c0=0.01, c1=6e-5, n0=60, c2=3e-7, c3=5e-9)


def loaded(n: int) -> Workload:
    rng = np.random.default_rng(0)
    return Workload(
        np.cumsum(rng.exponential(0.05, n)), rng.integers(1, 900, n), rng.integers(1, 90, n)
    )


def test_it_learns_in_a_run_and_repeats_itself(engine: EngineName) -> None:
    cluster = Cluster((Replica(MODEL), Replica(MODEL, speed=0.5)))
    rule = make("llmd_predicted")
    assert isinstance(rule, LlmdPredicted)
    first = simulate(loaded(250), cluster, rule, seed=1, engine=engine)
    assert rule.memory[0] == 1
    again = simulate(loaded(250), cluster, rule, seed=1, engine=engine)
    np.testing.assert_array_equal(first.replica, again.replica)
    other = simulate(loaded(250), cluster, rule, seed=2, engine=engine)
    assert (first.replica != other.replica).any()


def test_both_engines_teach_it_alike() -> None:
    cluster = Cluster((Replica(MODEL), Replica(MODEL, speed=0.5)))
    fast, slow = (
        simulate(loaded(250), cluster, "llmd_predicted", seed=1, engine=engine)
        for engine in ("compiled", "reference")
    )
    np.testing.assert_array_equal(fast.replica, slow.replica)
