import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from llmroute_gym.envs.vector_env import LLMRouteVectorEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    ReplayableVector,
    RouterPPO,
    SaveTrainingState,
    load_training_state,
    remaining_timesteps,
)
from llmroute_gym.sb3.vec_env import RouterVecEnv
from llmroute_gym.sim import Workload
from tests.sb3.toy import SMALL, weights


def make(num_envs=3, **settings):
    settings = {"replicas": 2, "requests_per_episode": 20, **settings}
    return ReplayableVector(LLMRouteVectorEnv(num_envs, **settings))


@pytest.mark.parametrize("steps", [0, 7, 20, 53])
@pytest.mark.parametrize("seed", [3, None])
def test_episodes_are_repeated_exactly_and_go_on_alike(steps, seed):
    rng = np.random.default_rng(0)
    env, other = make(), make()
    if seed is None:
        env.reset(seed=4)
    env.reset(seed=seed)
    for step in range(steps):
        if step == 30:
            env.set_qps(4.0)
        env.step(rng.integers(2, size=3))
    state = pickle.loads(pickle.dumps(env.get_state()))
    observations = other.set_state(state)
    np.testing.assert_array_equal(observations, env.get_state()["observations"])
    for _ in range(45):
        actions = rng.integers(2, size=3)
        for first, second in zip(env.step(actions)[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(first, second)


class Shortened:
    """A source of episodes of unequal length."""

    qps = 2.5

    def sample(self, n_requests, rng):
        n = int(rng.integers(3, n_requests + 1))
        return Workload(np.sort(rng.random(n)) * n, rng.integers(1, 900, n), rng.integers(1, 90, n))

    def with_qps(self, qps):
        return self


@pytest.mark.parametrize("steps", [0, 2, 25, 61])
def test_episodes_that_end_at_different_steps_are_repeated_exactly(steps):
    rng = np.random.default_rng(0)
    env, other = (make(4, workload=Shortened(), qps=None) for _ in range(2))
    env.reset(seed=5)
    ends = np.zeros(4, dtype=bool)
    for _ in range(steps):
        ended = env.step(rng.integers(2, size=4))[2]
        ends |= ended & ~ended.all()
    assert steps < 25 or ends.any()
    other.set_state(pickle.loads(pickle.dumps(env.get_state())))
    for _ in range(45):
        actions = rng.integers(2, size=4)
        for first, second in zip(env.step(actions)[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(first, second)


def test_an_ended_episode_alone_has_its_metrics_in_stable_baselines():
    env = RouterVecEnv(make(4, workload=Shortened(), qps=None).env)
    env.seed(0)
    env.reset()
    alone = 0
    for _ in range(60):
        *_, dones, infos = env.step(np.zeros(4, dtype=int))
        alone += bool(dones.any() and not dones.all())
        for done, info in zip(dones, infos, strict=True):
            assert ("episode_metrics/e2e_p99_s" in info) == ("terminal_observation" in info) == done
    assert alone


def test_another_environment_is_noticed():
    env = make()
    with pytest.raises(gym.error.ResetNeeded):
        env.get_state()
    env.reset(seed=3)
    env.step([0, 1, 0])
    with pytest.raises(InputError, match="settings of the run"):
        make(cluster="a30-qwen2-7b").set_state(env.get_state())
    with pytest.raises(InputError, match="takes an LLMRouteVectorEnv"):
        ReplayableVector(gym.make_vec("CartPole-v1", num_envs=2))


def test_a_training_on_the_vector_environment_resumes_exactly(tmp_path):
    def env():
        return VecMonitor(RouterVecEnv(make()))

    class Kill(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 3 * 80

    whole = RouterPPO("MlpPolicy", env(), **SMALL).learn(3 * 128)
    RouterPPO("MlpPolicy", env(), **SMALL).learn(
        3 * 128, [SaveTrainingState(tmp_path / "state.zip"), Kill()]
    )
    model = load_training_state(tmp_path / "state.zip", env(), RouterPPO, device="cpu")
    assert model.num_timesteps == 3 * 64
    model.learn(remaining_timesteps(model), reset_num_timesteps=False)
    for name, value in weights(whole).items():
        assert th.equal(value, weights(model)[name]), name
