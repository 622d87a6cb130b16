"""Which rules the kernels run, without a call into Python for each request."""

from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, Outcome, Replica, Workload, simulate
from llmroute_gym.routers import Router, available, make
from llmroute_gym.sim import FormulaBatchTime

IN_KERNELS = (
    "jsq",
    "least_tokens",
    "lor",
    "lor_pending",
    "power_of_two",
    "random",
    "round_robin",
    "speed_lor",
)
IN_PYTHON = sorted(set(available()) - set(IN_KERNELS))
N = 120
MODEL = FormulaBatchTime(c0=0.01, c1=6e-5, n0=60, c2=3e-7, c3=5e-9)


def workload() -> Workload:
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.02, N))
    return Workload(arrived_at_s, rng.integers(1, 900, N), rng.integers(1, 40, N))


def cluster(n_replicas: int) -> Cluster:
    speeds = np.resize([1.0, 2.0, 0.5], n_replicas)
    return Cluster(tuple(Replica(MODEL, num_blocks=400, speed=speed) for speed in speeds))


def assert_same(one: Outcome, other: Outcome) -> None:
    np.testing.assert_array_equal(one.replica, other.replica)
    np.testing.assert_array_equal(one.preemptions, other.preemptions)
    np.testing.assert_allclose(one.finished_at_s, other.finished_at_s, rtol=1e-6)


def asked(router: type[Router], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes from now on each answer of a rule in Python."""
    answers: list[int] = []
    route = router.route

    def noted(self: Router, rows: Any, mask: Any) -> int:
        answers.append(route(self, rows, mask))
        return answers[-1]

    monkeypatch.setattr(router, "route", noted)
    return answers


@pytest.mark.parametrize("n_replicas", [1, 4, 33])
@pytest.mark.parametrize("name", IN_KERNELS)
def test_a_rule_of_the_kernels_is_never_asked_in_python(
    name: str, n_replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asked(type(make(name)), monkeypatch)
    compiled = simulate(workload(), cluster(n_replicas), name, seed=5)
    assert answers == []
    reference = simulate(workload(), cluster(n_replicas), name, seed=5, engine="reference")
    assert answers == reference.replica.tolist()
    assert_same(compiled, reference)


@pytest.mark.parametrize("name", IN_KERNELS)
def test_a_subclass_is_asked_for_each_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(type(make(name))):  # type: ignore[misc]
        """May route otherwise, so no kernel serves it."""

    answers = asked(Own, monkeypatch)
    outcome = simulate(workload(), cluster(4), Own(), seed=5)
    assert answers == outcome.replica.tolist()
    assert_same(outcome, simulate(workload(), cluster(4), name, seed=5))


@pytest.mark.parametrize("name", IN_PYTHON)
def test_a_rule_without_a_kernel_is_asked_for_each_request(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asked(type(make(name)), monkeypatch)
    outcome = simulate(workload(), cluster(4), name)
    assert answers == outcome.replica.tolist()


@pytest.mark.parametrize("name", IN_KERNELS)
def test_a_rule_is_asked_where_a_request_may_not_go_everywhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asked(type(make(name)), monkeypatch)
    mixed = Cluster((*cluster(2), Replica(MODEL, num_blocks=50, watermark_blocks=0)))
    outcome = simulate(workload(), mixed, name, seed=5)
    assert answers == outcome.replica.tolist()
    long = workload().prompt_tokens > 800
    assert long.any()
    assert (outcome.replica[long] < 2).all()
