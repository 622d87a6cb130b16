"""What gym.make and gym.make_vec accept: all that makes sense, and one sentence for the rest."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmroute_gym  # noqa: F401  (registers the environment)
from llmroute_gym.envs import LLMRouteEnv, LLMRouteVectorEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.arrivals import arrival_process
from llmroute_gym.sim.lengths import length_model
from llmroute_gym.sim.sources import SyntheticWorkload

ODD: list[Any] = [
    *(5, -1, 0, 2.5, True, float("nan"), float("inf"), "x", b"x", "", [], {}, [1], {"a": 1}),
    *(("x",), {1}, object(), int, np.array([1, 2]), np.float64(2.5), len),
    *({"columns": 5}, {"columns": "waiting"}, {"columns": [5]}, {"columns": []}),
    *({"information": ["a"]}, {"signal_interval_s": "1"}, {"latency_weight": None}),
    *({"latency_weight": True}, {"predicted_output_sigma": -1}, {5: 5}),
]
SENSIBLE = {
    "num_envs": (5,),
    "replicas": (5,),
    "qps": (5, 2.5, np.float64(2.5)),
    "requests_per_episode": (5,),
    "max_episode_steps": (5,),
    "reward": ({},),
    "observation": ({},),
}
KINDS = [LLMRouteEnv, LLMRouteVectorEnv]


def names(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name != "unknown"]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in [*names(kind), "replica"]]
)
def test_an_odd_value_is_refused_in_one_sentence_or_makes_sense(kind: Any, name: str) -> None:
    for value in ODD:
        sensible = any(type(value) is type(one) and value == one for one in SENSIBLE.get(name, ()))
        if sensible:
            kind(**{name: value})
        else:
            with pytest.raises(InputError) as refused:
                kind(**{name: value})
            assert "\n" not in str(refused.value)


def test_an_unknown_argument_is_named_with_what_was_meant() -> None:
    with pytest.raises(InputError, match=r"unknown argument of LLMRouteEnv 'replica'.*'replicas'"):
        gym.make("LLMRoute-v0", replica=3)
    with pytest.raises(InputError, match=r"unknown argument of LLMRouteVectorEnv 'rewards'"):
        gym.make_vec("LLMRoute-v0", num_envs=2, rewards={})


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_meaning_beside_the_rest_is_refused(kind: Any) -> None:
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=3)
    source = SyntheticWorkload(length_model("azure_conv"), arrival_process("poisson"), 1.0)
    assert len(kind(cluster=cluster, workload=source).cluster) == 3
    with pytest.raises(InputError, match="replicas=4 has no meaning beside a Cluster, which has 3"):
        kind(cluster=cluster, replicas=4)
    with pytest.raises(InputError, match="arrivals='gamma' has no meaning beside a WorkloadSource"):
        kind(workload=source, arrivals="gamma")
