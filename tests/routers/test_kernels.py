"""Which rules the kernels run, without a call into Python for each request."""

from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, Outcome, Replica, Workload, simulate
from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers import Router, available, make
from llmroute_gym.routers.decision import Decision
from llmroute_gym.routers.rule import Rule
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.engines import EngineName

COMPETITORS = tuple(name for name in available() if not make(name).upper_bound)
"""An upper bound knows what no router can, and may take its time."""
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
    kind, name = (Decision, "__call__") if issubclass(router, Rule) else (router, "route")
    answer = getattr(kind, name)

    def noted(self: object, *told: Any) -> int:
        answers.append(answer(self, *told))
        return answers[-1]

    monkeypatch.setattr(kind, name, noted)
    return answers


def mixed() -> Cluster:
    """Three replicas, the last of which cannot hold the longest prompts."""
    return Cluster((*cluster(2), Replica(MODEL, num_blocks=50, watermark_blocks=0)))


@pytest.mark.parametrize("several", [cluster(1), cluster(4), cluster(33), mixed()])
@pytest.mark.parametrize("name", COMPETITORS)
def test_a_rule_is_never_asked_in_python(
    name: str, several: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asked(type(make(name)), monkeypatch)
    compiled = simulate(workload(), several, name, seed=5)
    assert answers == []
    reference = simulate(workload(), several, name, seed=5, engine="reference")
    assert answers == reference.replica.tolist()
    assert_same(compiled, reference)
    if len(several) == 3:
        long = workload().prompt_tokens > 800
        assert long.any()
        assert (compiled.replica[long] < 2).all()


def test_least_tokens_goes_by_its_own_count_unless_it_is_told_of_the_engines(
    engine: EngineName,
) -> None:
    # A prompt of 600 tokens has 88 left for the engine after the first batch of 512, for the
    # router 600 until its first token.
    requests = Workload(np.array([0.0, 0.0, 0.06]), np.array([600, 300, 50]), np.full(3, 2))
    batch_s = 0.05, 9.0
    two = Cluster(tuple(Replica(FormulaBatchTime(s, 0, 0, 0, 0, 0)) for s in batch_s))
    for told, chosen in ((None, 1), (ObservationConfig(), 0)):
        outcome = simulate(requests, two, "least_tokens", engine=engine, observation=told)
        assert outcome.replica.tolist() == [0, 1, chosen]


@pytest.mark.parametrize("name", COMPETITORS)
def test_a_subclass_is_asked_for_each_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(type(make(name))):  # type: ignore[misc]
        """May route otherwise, so no kernel serves it."""

        def route(self, rows: Any, mask: Any) -> int:
            return int(super().route(rows, mask))

    answers = asked(Own, monkeypatch)
    outcome = simulate(workload(), cluster(4), Own(), seed=5)
    assert answers == outcome.replica.tolist()
    assert_same(outcome, simulate(workload(), cluster(4), name, seed=5))
