"""A replica whose clock is in other hands has the simulator's times."""

import math

import numpy as np
import pytest

from llmroute_gym.mock.replica import LiveReplica
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import FormulaBatchTime, Replica
from llmroute_gym.sim.reference.block_names import BlockNames, Names
from llmroute_gym.sim.reference.request import Request
from tests.sim.reference.test_abort import cases_of, requests_of
from tests.sim.strategies import seeds

ONE_S = FormulaBatchTime(c0=1.0, c1=0.0, n0=0.0, c2=0.0, c3=0.0)


def request(index: int, arrived_at_s: float, prompt: int = 4, output: int = 3) -> Request:
    return Request(index, arrived_at_s, prompt, output, BlockNames(Names(), [(index, 4)], -1))


@seeds(60)
@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
def test_it_has_the_times_of_the_simulator(seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    for case, index, replica in cases_of(seed):
        outcome = simulate(case.workload, case.cluster, case.assignment, engine="reference")
        live = LiveReplica(replica, lambda batch, now_s: None)
        requests = requests_of(case, index)
        for one in requests:
            if rng.random() < 0.5:  # told late, and in steps of any size
                live.run_before(one.arrived_at_s * rng.random())
            live.submit(one)
        live.run_before(math.inf)
        for name in ("scheduled_at_s", "first_token_at_s", "finished_at_s"):
            expected = getattr(outcome, name)[[one.index for one in requests]]
            np.testing.assert_array_equal([getattr(one, name) for one in requests], expected)
        for one in requests:
            assert one.cached_tokens == outcome.cached_tokens[one.index]
            assert one.preemptions == outcome.preemptions[one.index]
        assert live.next_s == math.inf


def test_it_tells_of_each_batch() -> None:
    told: list[tuple[list[int], float]] = []
    live = LiveReplica(
        Replica(ONE_S),
        lambda batch, now_s: told.append(([r.known_tokens for r in batch.requests], now_s)),
    )
    live.submit(request(0, 0.5))
    live.submit(request(1, 1.0, output=1))
    assert live.next_s == 0.5 + 1.0
    live.run_before(2.5)
    assert told == [([5], 1.5)]
    live.run_through(2.5)
    assert told[1:] == [([6, 5], 2.5)]
    live.run_before(9.0)
    assert told[2:] == [([7], 3.5)]
    assert live.next_s == math.inf


def test_who_leaves_is_not_served_on() -> None:
    live = LiveReplica(Replica(ONE_S), lambda batch, now_s: None)
    first, second, third = (request(index, 0.0, output=100) for index in range(3))
    live.submit(first)
    live.abort(first, 0.0)  # before its first batch
    assert live.next_s == math.inf
    live.submit(second)
    live.submit(third)
    live.abort(second, 2.5)  # during its third
    live.run_before(4.5)
    assert (second.done, third.done) == (4 + 3, 4 + 4)
    live.run_before(math.inf)
    live.abort(third, 200.0)  # it has finished
    assert third.finished_at_s == 100.0
    assert live.scheduler.pool.usage == 0
