"""The rule that ships: its constants, what it sees, and that it earns its name."""

import pickle
from dataclasses import fields, replace
from importlib import resources

import numpy as np
import pytest

from llmroute_gym.config import ClusterConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.shipped import shipped_options
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.build import build_cluster, build_source

SHIPPED = ("frontier", "frontier_prefix")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_rule_is_its_family_with_the_constants_of_its_file(name: str) -> None:
    rule, options = make(name), dict(shipped_options(name))
    family = make({**options})
    assert isinstance(rule, EstimatedLatency)
    assert rule.name == name
    assert family.name == options.pop("name")
    assert [one.name for one in fields(rule)] == [one.name for one in fields(EstimatedLatency)]
    assert constants_of(rule) == constants_of(family)
    assert np.array_equal(rule.constants(), family.constants())
    assert {key: getattr(rule, key) for key in options} == options


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_rule_sees_what_a_gateway_sees(name: str) -> None:
    told = make(name).observation
    assert told is not None
    assert told.information == "metrics"
    assert told.signal_interval_s >= 1
    assert told.predicted_output_sigma is None
    size = resources.files("llmroute_gym.routers").joinpath(f"{name}.yaml").read_bytes()
    assert len(size) < 2**20


def test_options_change_a_shipped_rule_within_the_ranges_of_its_family() -> None:
    rule = make("frontier:slowness=0.25,poll_s=0")
    assert isinstance(rule, EstimatedLatency)
    assert (rule.slowness, rule.poll_s) == (0.25, 0.0)
    assert rule.prefill == make("frontier").prefill  # type: ignore[attr-defined]
    assert replace(rule, slowness=0.5) != rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    with pytest.raises(InputError, match="slowness of frontier must be a number from -2 to 2"):
        make("frontier:slowness=9")


def latencies(rule: str | Router, cluster_of: ClusterConfig, qps: float) -> FloatArray:
    cluster, source = build_cluster(cluster_of), build_source(WorkloadConfig(), qps)
    found = [
        simulate(source.sample(1000, np.random.default_rng([5, run])), cluster, rule, seed=run)
        for run in range(6)
    ]
    return np.concatenate([one.e2e_s for one in found])


def test_where_replicas_differ_it_wins_a_fifth_of_the_tail_and_elsewhere_loses_nothing() -> None:
    mixed = ClusterConfig(replicas=4, speeds=[0.5, 2.0, 1.0, 1.0])
    tails = {
        rule: np.percentile(latencies(rule, mixed, 3.5), 99)
        for rule in ("frontier", "speed_lor", "round_robin")
    }
    assert tails["frontier"] < 0.8 * tails["speed_lor"] < 0.8 * tails["round_robin"]
    equal = ClusterConfig(replicas=4)
    own, other = (latencies(rule, equal, 3.5) for rule in ("frontier", "lor"))
    assert np.percentile(own, 99) < 1.02 * np.percentile(other, 99)


def test_several_gateways_wait_less_than_those_that_poll_twenty_times_as_often() -> None:
    cluster, source = build_cluster(ClusterConfig(replicas=8)), build_source(WorkloadConfig(), 8.4)
    workloads = [source.sample(1000, np.random.default_rng([5, run])) for run in range(6)]
    tails = {}
    for name in ("frontier_prefix", "llmd_baseline", "lor"):
        told = make(name).observation or ObservationConfig(information="router")
        told = replace(told, gateways=2)
        found = [simulate(one, cluster, name, seed=0, observation=told).ttft_s for one in workloads]
        tails[name] = np.percentile(np.concatenate(found), 99)
    assert tails["frontier_prefix"] < 0.93 * tails["llmd_baseline"] < 0.93 * tails["lor"]


def test_weights_by_prompt_stand_still_beyond_the_longest_prompt() -> None:
    rows = np.zeros((2, N_SIGNALS))
    rows[:, Signal.SPEED] = 1.0
    rows[0, Signal.IN_FLIGHT], rows[1, Signal.WAITING] = 2.0, 3.0
    mask = np.ones(2, dtype=np.bool_)

    def scores(rule: str, prompt: float) -> FloatArray:
        rows[:, Signal.PROMPT_TOKENS] = prompt
        router = make(rule)
        assert isinstance(router, EstimatedLatency)
        router.reset(2, 1, np.random.default_rng(0))
        router.route(rows, mask)
        return router.memory[-2:].copy()

    rule = "estimated_latency:in_flight_by_prompt=0.5,queue_by_prompt=1"
    longer = scores(rule, 8000)
    assert scores(rule, 4000)[0] != longer[0]
    assert np.array_equal(scores(f"{rule},longest_prompt=8000", 64_000), longer)
    assert np.array_equal(scores(f"{rule},longest_prompt=4000", 4000), scores(rule, 4000))
