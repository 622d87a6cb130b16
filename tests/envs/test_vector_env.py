"""The vector environment is the single one, many times over."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmroute_gym  # noqa: F401  (registers the environment)
from llmroute_gym.config import RewardConfig
from llmroute_gym.envs import LLMRouteEnv, LLMRouteVectorEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, Replica
from llmroute_gym.sim.arrivals import arrival_process
from llmroute_gym.sim.batch_time import FormulaBatchTime
from llmroute_gym.sim.lengths import length_model
from llmroute_gym.sim.sources import SyntheticWorkload
from llmroute_gym.sim.workload import Workload
from tests.sim.strategies import random_case

EPISODE = 20
N_RANDOM = 320
SEED = 5000
"""Apart from the seeds of the engines' own tests."""
FAST = FormulaBatchTime(c0=0.01, c1=0.0, n0=0.0, c2=1e-6, c3=0.0)
CASES: list[dict[str, Any]] = [
    {},
    {"observation": {"information": "router", "signal_interval_s": 0.4}},
    {"observation": {"information": "oracle", "predicted_output_sigma": 0.4}, "qps": 6.0},
    {"cluster": "a100-llama-2-7b", "replicas": 7, "qps": 30.0, "arrivals": "bursty"},
]


@pytest.mark.parametrize("kwargs", CASES)
def test_each_environment_is_the_single_one(kwargs: dict[str, Any]) -> None:
    ours = gym.make_vec("LLMRoute-v0", num_envs=3, requests_per_episode=EPISODE, **kwargs)
    theirs = [LLMRouteEnv(requests_per_episode=EPISODE, **kwargs) for _ in range(3)]
    assert_alike(ours, theirs, steps=2 * EPISODE + 5)


class Recorded:
    """A source of one workload."""

    qps = 1.0

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        assert n_requests == len(self.workload)
        return self.workload

    def with_qps(self, qps: float) -> "Recorded":
        return self


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@pytest.mark.parametrize("seed", range(N_RANDOM))
def test_each_environment_is_the_reference_engine_on_a_random_case(seed: int) -> None:
    case = random_case(SEED + seed)
    settings: dict[str, Any] = {
        "cluster": case.cluster,
        "workload": Recorded(case.workload),
        "requests_per_episode": len(case.workload),
        "reward": RewardConfig(latency_threshold=case.options["late_after_s"]),
        "observation": replace(case.options["observation"], predicted_output_sigma=0.3),
    }
    ours = LLMRouteVectorEnv(2, qps=None, **settings)
    theirs = [LLMRouteEnv(qps=None, engine="reference", **settings) for _ in range(2)]
    # Numbers that both engines round differently, as float32.
    assert_alike(ours, theirs, len(case.workload), rtol=max(10 * case.rtol, 1e-6), atol=1e-6)


def test_masks_are_those_of_the_single_one() -> None:
    mixed = Cluster(
        (Replica(FAST, num_blocks=40, oversize="reject"), Replica(FAST, oversize="reject"))
    )
    lengths = length_model("uniform", prompt_min=1, prompt_max=1500, output_min=1, output_max=9)
    source = SyntheticWorkload(lengths, arrival_process("poisson"), 8.0)
    ours = LLMRouteVectorEnv(4, mixed, workload=source, requests_per_episode=EPISODE)
    theirs = [
        LLMRouteEnv(mixed, workload=source, qps=2.5, requests_per_episode=EPISODE) for _ in range(4)
    ]
    assert_alike(ours, theirs, steps=3 * EPISODE)
    ours.reset(seed=0)
    while ours.action_masks().all():
        ours.step(np.ones(4, dtype=int))
    wrong = int(np.flatnonzero(ours.action_masks()[:, 0] == 0)[0])
    with pytest.raises(InputError, match=f"replica 0 in environment {wrong} is masked"):
        ours.step(np.zeros(4, dtype=int))


def assert_alike(
    ours: Any, theirs: list[LLMRouteEnv], steps: int, rtol: float = 0.0, atol: float = 0.0
) -> None:
    def assert_equal(one: Any, other: Any, what: str = "") -> None:
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=what)

    rng = np.random.default_rng(1)
    observations, infos = ours.reset(seed=9)
    for index, env in enumerate(theirs):
        observation, info = env.reset(seed=9 + index)
        assert_equal(observations[index], observation)
        np.testing.assert_array_equal(infos["action_mask"][index], info["action_mask"])
    for _ in range(steps):
        masks = ours.unwrapped.action_masks()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observations, rewards, terminated, truncated, infos = ours.step(actions)
        assert not truncated.any()
        for index, env in enumerate(theirs):
            observation, reward, done, _, info = env.step(int(actions[index]))
            assert_equal(np.float32(rewards[index]), np.float32(reward), "reward")
            assert terminated[index] == done
            source = infos["final_info"] if done else infos
            for key, value in info.items():
                assert_equal(source[key][index], value, key)
            if done:
                assert_equal(infos["final_obs"][index], observation)
                observation, _ = env.reset()
            assert_equal(observations[index], observation)


def test_results_are_not_overwritten_by_the_next_step() -> None:
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    env.reset(seed=0)
    first = env.step(np.array([0, 1]))
    kept = [np.copy(first[0]), np.copy(first[1]), np.copy(first[4]["time_s"])]
    env.step(np.array([2, 3]))
    for now, then in zip((first[0], first[1], first[4]["time_s"]), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_spaces_are_batched() -> None:
    env = gym.make_vec("LLMRoute-v0", num_envs=5, replicas=2)
    assert env.single_action_space == gym.spaces.Discrete(2)
    assert env.observation_space.shape == (5, *env.single_observation_space.shape)
    assert env.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)


def test_long_requests_extend_the_tables_on_the_way() -> None:
    lengths = length_model("fixed", prompt_tokens=9000, output_tokens=3)
    source = SyntheticWorkload(lengths, arrival_process("poisson"), 1.0)
    ours = LLMRouteVectorEnv(2, workload=source, requests_per_episode=EPISODE)
    theirs = [LLMRouteEnv(workload=source, requests_per_episode=EPISODE) for _ in range(2)]
    assert_alike(ours, theirs, steps=EPISODE)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], "shape"),
        ([0.0, 1.0], "integers"),
        ([0, 4], "environment 1 must be an integer from 0 to 3, got 4"),
        ([-1, 0], "environment 0"),
    ],
)
def test_wrong_actions_get_one_sentence(actions: list[Any], message: str) -> None:
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(actions)


def test_wrong_settings_get_one_sentence() -> None:
    with pytest.raises(InputError, match="num_envs"):
        LLMRouteVectorEnv(0)
    with pytest.raises(InputError, match="compiled"):
        LLMRouteVectorEnv(2, engine="reference")
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0, 0])
    with pytest.raises(InputError, match="seeds"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(InputError, match="reset option"):
        env.reset(options={"workload": None})
