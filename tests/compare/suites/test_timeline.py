"""What a timeline shows is what happened."""

from functools import cache

import numpy as np
import pytest

from llmroute_gym.compare.suites.timeline import (
    CACHED_OVER_S,
    Timeline,
    _cached_share,
    side_by_side,
    timeline,
)
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.engines import ENGINES
from tests.compare.suites.some import ORACLE, some_suite

ROUTERS = ("random", "lor")


@pytest.fixture(scope="module")
def workload() -> Workload:
    rng = np.random.default_rng(2)
    arrived = np.sort(rng.uniform(0, 100, 150))
    return Workload(arrived, rng.integers(50, 900, 150), rng.integers(20, 200, 150))


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster.from_profile("a100-internlm-20b", replicas=3)


@cache
def served(name: str, workload: Workload, cluster: Cluster) -> Outcome:
    return simulate(workload, cluster, name, seed=3)


def recorded(workload: Workload, cluster: Cluster, **window: float) -> Timeline:
    outcomes = {name: served(name, workload, cluster) for name in ROUTERS}
    return timeline("one", "of three replicas", outcomes, workload, cluster, **window)


def test_decisions_are_those_of_the_run(workload: Workload, cluster: Cluster) -> None:
    found = recorded(workload, cluster, start_s=20.0, duration_s=30.0)
    first = workload.arrived_at_s[0]
    window = (workload.arrived_at_s >= first + 20) & (workload.arrived_at_s <= first + 50)
    assert [course.router for course in found.courses] == list(ROUTERS)
    for course in found.courses:
        outcome = served(course.router, workload, cluster)
        np.testing.assert_array_equal(course.replica, outcome.replica[window])
        np.testing.assert_allclose(course.at_s, workload.arrived_at_s[window] - first - 20)


def test_signals_are_the_engines_own(workload: Workload, cluster: Cluster) -> None:
    course = recorded(workload, cluster, start_s=0.0, duration_s=1e3).courses[1]
    run = ENGINES["compiled"](workload, cluster)
    outcome = served("lor", workload, cluster)
    for decision in range(len(workload)):
        rows = run.rows()
        np.testing.assert_array_equal(course.waiting[decision], rows[:, Signal.WAITING])
        np.testing.assert_array_equal(course.running[decision], rows[:, Signal.RUNNING])
        np.testing.assert_array_equal(course.kv_usage[decision], rows[:, Signal.KV_USAGE])
        run.place(int(outcome.replica[run.request]))


def test_requests_that_wait_for_others_and_rejected_ones_are_shown() -> None:
    after = np.array([-1, 0, -1])
    workload = Workload(
        np.array([0.0, 0.0, 1.0]),
        np.array([100, 100, 10**6]),
        np.array([20, 20, 20]),
        after=after,
        gap_s=np.array([0.0, 2.0, 0.0]),
    )
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=2, oversize="reject")
    outcome = simulate(workload, cluster, "lor", seed=0)
    (course,) = timeline("one", "", {"lor": outcome}, workload, cluster, start_s=0.0).courses
    order = np.argsort(outcome.arrived_at_s, kind="stable")
    np.testing.assert_array_equal(course.at_s, outcome.arrived_at_s[order])
    np.testing.assert_array_equal(course.replica, outcome.replica[order])


def test_baseline_and_best_stand_side_by_side() -> None:
    scenario = some_suite().scenarios[0]
    means = {one.router: one.metrics["e2e_mean_s"].value for one in scenario.results}
    del means[ORACLE], means["round_robin"]
    assert side_by_side(scenario) == ("round_robin", min(means, key=means.__getitem__))
    assert side_by_side(some_suite().scenarios[-1]) == ()


def test_a_window_is_in_the_middle_unless_told(workload: Workload, cluster: Cluster) -> None:
    found = recorded(workload, cluster, duration_s=40.0)
    assert found.start_s == pytest.approx((np.ptp(workload.arrived_at_s) - 40) / 2)
    whole = recorded(workload, cluster, duration_s=1e3)
    assert whole.start_s == 0
    assert all(len(course.at_s) == len(workload) for course in whole.courses)


def test_cached_share_counts_what_came_lately() -> None:
    arrived = np.array([0.0, 1.0, 2.0, 30.0])
    tokens, cached = np.array([10, 30, 50, 8]), np.array([5, 0, 25, 8])
    replica = np.array([0, 0, 1, 0])
    later = arrived + 1
    outcome = Outcome(
        *(arrived, later, later, later, replica, tokens, tokens, 0 * tokens), cached_tokens=cached
    )
    times = np.array([0.5, 2.0, 2.0 + CACHED_OVER_S, 30.0])
    found = _cached_share(outcome, times, 3)
    expected = [[0.5, np.nan], [5 / 40, 0.5], [np.nan, np.nan], [1.0, np.nan]]
    np.testing.assert_array_equal(found[:, :2], expected)
    assert np.isnan(found[:, 2]).all()


def test_an_empty_window_is_refused(workload: Workload, cluster: Cluster) -> None:
    with pytest.raises(InputError, match="no request of one arrives between 500 and 560 s"):
        recorded(workload, cluster, start_s=500.0)
    with pytest.raises(InputError, match="duration_s must be a finite number > 0"):
        recorded(workload, cluster, duration_s=0.0)


def test_the_last_decision_by_a_time(workload: Workload, cluster: Cluster) -> None:
    course = recorded(workload, cluster, duration_s=40.0).courses[0]
    times = np.array([-1.0, course.at_s[3], course.at_s[4] - 1e-9, 1e9])
    assert course.latest(times).tolist() == [0, 3, 3, len(course.at_s) - 1]
