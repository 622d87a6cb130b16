"""The bridge to Stable-Baselines3: same numbers as single environments, all algorithms train."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import llmroute_gym  # noqa: F401  (registers the environment)
from llmroute_gym.envs import LLMRouteEnv, LLMRouteVectorEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.vec_env import RouterVecEnv

EPISODE = 25


def bridged(num_envs: int = 3, **kwargs: Any) -> RouterVecEnv:
    return RouterVecEnv(
        gym.make_vec("LLMRoute-v0", num_envs, requests_per_episode=EPISODE, **kwargs)
    )


def single(num_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: LLMRouteEnv(requests_per_episode=EPISODE, **kwargs)] * num_envs)


def test_steps_like_single_environments() -> None:
    ours, theirs = bridged(), single()
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(2 * EPISODE + 3):
        actions = rng.integers(4, size=3)
        obs, rewards, dones, infos = ours.step(actions)
        obs2, rewards2, dones2, infos2 = theirs.step(actions)
        np.testing.assert_array_equal(obs, obs2)
        np.testing.assert_array_equal(rewards, rewards2)
        np.testing.assert_array_equal(dones, dones2)
        assert rewards.dtype == np.float32
        for info, info2 in zip(infos, infos2, strict=True):
            assert info.keys() == info2.keys()
            for key, value in info2.items():
                np.testing.assert_array_equal(info[key], value, err_msg=key)


def weights(env: Any, seed: int = 3) -> dict[str, torch.Tensor]:
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=48, n_epochs=2, seed=seed, device="cpu")
    model.learn(3 * 32 * 3)
    return model.policy.state_dict()


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_trains_to_the_weights_of_single_environments(engine: str) -> None:
    ours = weights(VecNormalize(VecMonitor(bridged())))
    theirs = weights(VecNormalize(VecMonitor(single(engine=engine))))
    for name, value in theirs.items():
        if engine == "compiled":
            assert torch.equal(ours[name], value), name
        else:  # the engines' times agree to rounding only
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_truncation_is_told_apart_from_the_end() -> None:
    env = RouterVecEnv(LLMRouteVectorEnv(2, requests_per_episode=EPISODE, max_episode_steps=10))
    env.reset()
    for step in range(1, 11):
        _, _, dones, infos = env.step(np.zeros(2, dtype=int))
        assert dones.all() == (step == 10)
    for info in infos:
        assert info["TimeLimit.truncated"]
        assert info["terminal_observation"].shape == env.observation_space.shape
        assert not any(key.startswith("episode_metrics/") for key in info)


def test_masks_reach_maskable_ppo() -> None:
    env = VecMonitor(bridged())
    env.reset()
    masks = env.env_method("action_masks")
    assert env.has_attr("action_masks")
    assert [mask.shape for mask in masks] == [(4,)] * 3
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    assert model.learn(16 * 3 * 2).num_timesteps == 96


def test_recurrent_ppo_trains() -> None:
    model = RecurrentPPO(
        "MlpLstmPolicy", VecMonitor(bridged()), n_steps=16, batch_size=16, n_epochs=1, device="cpu"
    )
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    assert model.learn(16 * 3 * 2).num_timesteps == 96
    for name, value in model.policy.named_parameters():
        assert value.isfinite().all(), name
        assert not torch.equal(value, before[name]), name


def test_other_autoreset_modes_are_refused() -> None:
    env = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(InputError, match="SAME_STEP"):
        RouterVecEnv(env)
    with pytest.raises(InputError, match=r"a vector environment, got .*; make it with gym.make_v"):
        RouterVecEnv(gym.make("LLMRoute-v0"))  # type: ignore[arg-type]


def test_load_can_be_raised_in_training() -> None:
    def ends_s(qps: float) -> float:
        env = VecMonitor(bridged(num_envs=2))
        env.seed(0)
        env.env_method("set_qps", qps)
        env.reset()
        *_, infos = [env.step(np.zeros(2, dtype=int))[3] for _ in range(10)]
        return float(infos[0]["time_s"])

    assert ends_s(9.0) == pytest.approx(ends_s(3.0) / 3)
