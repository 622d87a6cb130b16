"""A scheduler of one's own: a class and its registration, and the reference engine runs it."""

from collections.abc import Iterator

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.reference.schedulers import Batch, Scheduler
from llmroute_gym.sim.schedulers import SCHEDULERS, ReplicaSettings, SchedulerLimits, register

ONE_S = FormulaBatchTime(c0=1.0, c1=0.0, n0=0.0, c2=0.0, c3=0.0)


class ShortestFirst(Scheduler):
    """Runs one request at a time to its end, the shortest prompt first."""

    name = "shortest_first"

    @classmethod
    def longest_prompt(cls, replica: ReplicaSettings) -> int | None:
        return 50

    def _build(self) -> Batch:
        batch = Batch()
        if self.running:
            request = self.running.pop()
            self.pool.step(request)
            batch.add(request, 1)
        elif self.waiting:
            request = min(self.waiting, key=lambda one: one.prompt_tokens)
            self.waiting.remove(request)
            self.pool.admit(request)
            batch.add(request, request.prompt_tokens)
        return batch


@pytest.fixture
def replica() -> Iterator[Replica]:
    register(ShortestFirst)
    yield Replica(ONE_S, scheduler="shortest_first")
    del SCHEDULERS["shortest_first"]


def test_it_runs_on_the_reference_engine_by_its_own_rule(replica: Replica) -> None:
    workload = Workload(np.zeros(3), [30, 20, 10], [2, 2, 2])
    outcome = simulate(workload, Cluster((replica,)), "lor", engine="reference")
    assert outcome.finished_at_s.tolist() == [6.0, 4.0, 2.0]


def test_its_limits_are_those_that_it_states(replica: Replica) -> None:
    workload = Workload(np.zeros(2), [30, 60], [2, 2])
    both = Cluster((replica, Replica(ONE_S)))
    assert simulate(workload, both, "lor", engine="reference").replica[1] == 1
    with pytest.raises(InputError, match="request 1 cannot run on replica 0: 60 prompt tokens"):
        simulate(workload, Cluster((replica,)), "lor", engine="reference")


def test_the_compiled_engine_says_that_it_does_not_know_it(replica: Replica) -> None:
    with pytest.raises(InputError, match="no kernel for the scheduler 'shortest_first'"):
        simulate(Workload([0.0], [1], [1]), Cluster((replica,)), "lor")


def test_names_are_taken_once_and_unknown_ones_are_refused(replica: Replica) -> None:
    class Another(ShortestFirst):
        pass

    with pytest.raises(InputError, match="'shortest_first' is registered already"):
        register(Another)
    with pytest.raises(InputError, match="unknown scheduler 'shortest'"):
        Replica(ONE_S, scheduler="shortest")


def test_limits_without_a_rule_cannot_run() -> None:
    class Stated(SchedulerLimits):
        name = "stated_only"

    register(Stated)
    stated = Cluster((Replica(ONE_S, scheduler="stated_only"),))
    with pytest.raises(InputError, match="'stated_only' has no rule for the reference engine"):
        simulate(Workload([0.0], [1], [1]), stated, "lor", engine="reference")
    del SCHEDULERS["stated_only"]
