"""A small environment with rows, masks and a clock, for tests that need no simulator."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor


class RowsEnv(gym.Env[Any, Any]):
    """Choosing the row with the smallest first column pays most.

    Args:
        rows: actions.
        masked: whether one row at a time is masked.
        reward_scale: multiplies all rewards.
    """

    LENGTH = 20

    def __init__(self, rows: int = 4, masked: bool = False, reward_scale: float = 1.0) -> None:
        self.rows, self.masked, self.reward_scale = rows, masked, reward_scale
        self.observation_space = spaces.Box(0.0, 5.0, (rows, 3), np.float32)
        self.action_space = spaces.Discrete(rows)

    def action_masks(self) -> Any:
        masks = np.ones(self.rows, dtype=np.int8)
        if self.masked:
            masks[self._t % self.rows] = 0
        return masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t, self._now = 0, 0.0
        self._obs = self.np_random.random((self.rows, 3)).astype(np.float32)
        return self._obs.copy(), {}

    def step(self, action: Any) -> Any:
        assert self.action_masks()[int(action)]
        reward = float(1.0 - self._obs[int(action), 0]) * self.reward_scale
        self._t += 1
        self._now += 0.5
        self._obs = self.np_random.random((self.rows, 3)).astype(np.float32)
        info = {"time_s": self._now, "reward/gain": reward}
        return self._obs.copy(), reward, self._t >= self.LENGTH, False, info


def toy_vec_env(n: int = 2, **settings: Any) -> VecMonitor:
    return VecMonitor(DummyVecEnv([lambda: RowsEnv(**settings)] * n))


SMALL: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 16,
    "n_epochs": 3,
    "seed": 3,
    "device": "cpu",
    "policy_kwargs": {"net_arch": {"pi": [16], "vf": [16]}},
}


def weights(model: Any) -> dict[str, Any]:
    return {name: one.detach().clone() for name, one in model.policy.named_parameters()}
