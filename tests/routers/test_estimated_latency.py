"""The estimated latency against rules that it contains, and against unannounced slowness."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.config import ClusterConfig, WorkloadConfig
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers import make
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.build import build_cluster, build_source
from tests.routers.hand import ask, fresh, rows


def requests(qps: float, n: int = 600) -> Workload:
    return build_source(WorkloadConfig(), qps).sample(n, np.random.default_rng(3))


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [0.5, 2.0, 1.0]])
def test_as_it_starts_it_is_speed_lor(speeds: list[float]) -> None:
    cluster = build_cluster(ClusterConfig(replicas=3, speeds=speeds))
    workload = requests(4.0)
    own = simulate(workload, cluster, "estimated_latency", seed=0)
    assert own.replica.tolist() == simulate(workload, cluster, "speed_lor", seed=0).replica.tolist()


def test_constants_are_numbered_as_the_decision_reads_them() -> None:
    names = list(constants_of(EstimatedLatency))
    assert names[11:14] == ["remembered_s", "speed_by_prompt", "speed_by_output"]
    assert names[14:17] == ["in_flight", "in_flight_by_prompt", "in_flight_by_output"]
    assert names[35:] == ["slowness", "slowness_by_prompt", "slowness_by_output", "poll_s"]


def test_slowness_is_seen_that_nobody_announces() -> None:
    equal = build_cluster(ClusterConfig(replicas=4))
    slow = replace(equal[1], slowdowns=((0.0, 3.0),))
    cluster, workload = Cluster((equal[0], slow, *tuple(equal)[2:])), requests(2.5)
    shares, means = [], []
    for rule in (make("estimated_latency"), make("estimated_latency:slowness=1")):
        outcome = simulate(workload, cluster, rule, seed=0)
        shares.append((outcome.replica == 1).mean())
        means.append(outcome.e2e_s.mean())
    assert shares[1] < 0.7 * shares[0]
    assert means[1] < means[0]
    equal_shares = np.bincount(
        simulate(workload, equal, make("estimated_latency:slowness=1"), seed=0).replica
    )
    assert equal_shares.min() > 0.15 * len(workload)


def test_little_s_law_by_hand() -> None:
    rule = make("estimated_latency:slowness=1,remembered_s=10")
    rule.reset(2, 10, np.random.default_rng(0))
    rows = np.ones((2, N_SIGNALS))
    for now_s, in_flight in ((5.0, (0, 0)), (15.0, (1, 0)), (25.0, (0, 1))):
        rows[:, Signal.NOW_S], rows[:, Signal.IN_FLIGHT] = now_s, in_flight
        chosen = rule.route(rows, np.ones(2, dtype=np.bool_))
        rows[chosen, Signal.IN_FLIGHT] += 1
    first, second = np.reshape(rule.memory[9:], (2, 3))
    # The first had one request from 5 to 15 s, and until some time before 25 s.
    assert first[1:] == pytest.approx([10 * np.exp(-1) + 5, 1])
    # The second got the request of 15 s, which is there still, and had none before.
    assert second[1:] == pytest.approx([10, 0])
    assert chosen == 0


def test_long_outputs_may_weigh_speed_more_and_the_queue_less() -> None:
    rule = EstimatedLatency(speed_by_output=1.0, in_flight_by_output=-0.5, in_flight=0.5)
    # A fast replica with more requests than its speed makes up for, beside a slow one.
    busy = {"prompt_tokens": 1000, "speed": [2.0, 1.0], "in_flight": [7, 2]}
    for predicted, choice in ((0, 1), (20, 1), (100, 1), (1000, 0)):
        table = rows(2, predicted_output_tokens=predicted, **busy)
        assert ask(fresh(rule, 2), table) == choice, predicted


def test_an_estimate_below_nothing_is_nothing_and_leaves_the_rest_to_decide() -> None:
    # 1 s of output, and 4 * 3 * 8 s * (1 - 1.5) of prefill: below 0 on all, so the load decides.
    rule = EstimatedLatency(cached=1.5, prefill=4.0, own_prefill=3.0, in_flight=1.0)
    table = rows(3, prompt_tokens=8000, cached_prefix=1.0, in_flight=[5, 1, 0])
    assert ask(fresh(rule, 3), table) == 2
    cold = rows(3, prompt_tokens=8000, cached_prefix=[0.0, 0.0, 1.0], in_flight=[0, 0, 1])
    assert ask(fresh(rule, 3), cold) == 2
