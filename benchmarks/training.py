"""Measures how much of PPO's speed the environment costs.

    python benchmarks/training.py            # measure
    python benchmarks/training.py --write    # and report it in benchmarks/README.md
    python benchmarks/training.py --quick    # see that it works

The same PPO learns, turn by turn, on LLMRoute and on an environment that costs nothing. The whole
default pipeline is timed as the command of the README.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from measuring import load_average, origin, seconds, table, write_section
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from llmroute_gym.envs import LLMRouteVectorEnv
from llmroute_gym.sb3.vec_env import RouterVecEnv

NUM_ENVS = 64
PPO_SETTINGS: dict[str, Any] = {"n_steps": 256, "batch_size": 2048, "n_epochs": 4}
BAR = 0.85
PIPELINE = ("llmroute_gym.train", "+exp=latency_tuned")
PIPELINE_BAR_S = 180


class Sizes(NamedTuple):
    """How much to measure."""

    rounds: int
    rollouts: int
    """Rollouts, each with its update, in one timed stretch."""
    pipelines: int
    """Runs of the whole pipeline."""
    settings: tuple[str, ...]
    """Further settings of it."""


FULL = Sizes(rounds=9, rollouts=10, pipelines=3, settings=())
QUICK = Sizes(rounds=3, rollouts=1, pipelines=1, settings=("training.ppo_requests=512",))


class FreeVecEnv(VecEnv):
    """An environment that costs nothing: it returns the same arrays at every step.

    Args:
        num_envs: how many.
        observation_space: of one environment, bounded.
        action_space: of one environment.
    """

    def __init__(
        self, num_envs: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> None:
        self.render_mode = None
        super().__init__(num_envs, observation_space, action_space)
        observation_space.seed(0)
        self._observations = np.stack([observation_space.sample() for _ in range(num_envs)])
        self._rewards = np.zeros(num_envs, dtype=np.float32)
        self._dones = np.zeros(num_envs, dtype=np.bool_)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]

    def reset(self) -> Any:
        """Returns the observations."""
        return self._observations

    def step_async(self, actions: Any) -> None:
        """Ignores the actions."""

    def step_wait(self) -> VecEnvStepReturn:
        """Returns the same arrays every time."""
        return self._observations, self._rewards, self._dones, self._infos

    def close(self) -> None:
        """Has nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of this object, once for each index."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of this object."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Has no methods."""
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]


def make_env() -> VecMonitor:
    """Returns the environments that are trained on."""
    env = VecMonitor(RouterVecEnv(LLMRouteVectorEnv(num_envs=NUM_ENVS)))
    env.seed(0)
    return env


def make_free_env() -> VecEnv:
    """Returns as many environments with the same spaces that cost nothing."""
    twin = LLMRouteVectorEnv(num_envs=NUM_ENVS)
    return FreeVecEnv(NUM_ENVS, twin.single_observation_space, twin.single_action_space)


def measure(sizes: Sizes) -> dict[str, list[float]]:
    """Returns PPO's steps/s in each stretch on each environment, in turns."""
    models = {
        name: PPO("MlpPolicy", env, seed=0, device="cpu", **PPO_SETTINGS)
        for name, env in (("LLMRoute", make_env()), ("free", make_free_env()))
    }
    rollout = NUM_ENVS * PPO_SETTINGS["n_steps"]
    for model in models.values():
        model.learn(rollout)  # compiles the kernels and warms up
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(sizes.rounds):
        for name, model in models.items():
            steps = sizes.rollouts * rollout
            duration_s = seconds(lambda: model.learn(steps, reset_num_timesteps=False))  # noqa: B023
            speeds[name].append(steps / duration_s)
            print(f"{name}: {speeds[name][-1]:,.0f} steps/s", flush=True)
    return speeds


def pipeline_seconds(settings: Sequence[str]) -> float:
    """Returns how long the whole default pipeline takes, from the shell and back."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *PIPELINE, *settings]
        return seconds(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True))


def section(speeds: dict[str, list[float]], pipelines_s: Sequence[float], load: float) -> str:
    """Returns the README's section."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    # Of neighbours in time: the machine may slow down from round to round.
    share = statistics.median(
        ours / free for ours, free in zip(speeds["LLMRoute"], speeds["free"], strict=True)
    )
    rows = [
        [name, *(f"{value:,.0f}" for value in values), f"**{medians[name]:,.0f}**"]
        for name, values in speeds.items()
    ]
    rounds = [f"round {number + 1}" for number in range(len(rows[0]) - 2)]
    settings = ", ".join(f"{key} {value}" for key, value in PPO_SETTINGS.items())
    return "\n".join(
        [
            "## Training",
            "",
            origin("python benchmarks/training.py", load),
            "",
            f"Steps/s of Stable-Baselines3's PPO (MlpPolicy, {NUM_ENVS} environments, {settings}, "
            f"{torch.get_num_threads()} torch thread) on LLMRoute-v0 with its defaults through "
            "`VecMonitor(RouterVecEnv(...))`, and on an environment with the same spaces that "
            "costs nothing, which bounds what any environment can reach. The stretches are "
            "measured in turns.",
            "",
            f"**{share:.1%} of the learner-only speed** (median of the rounds; bar {BAR:.0%}).",
            "",
            table(["environment", *rounds, "median"], rows),
            "",
            f"`python -m {' '.join(PIPELINE)}`, the whole default pipeline (demonstrations, "
            "cloning, stabilisation, PPO for 20,000 requests, comparison, pictures) as one command "
            f"with the kernels on disk: {', '.join(f'{one:.1f}' for one in pipelines_s)} s (bar "
            f"{PIPELINE_BAR_S} s).",
        ]
    )


def main() -> int:
    """Measures, prints, and writes if asked; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short stretches")
    parser.add_argument("--write", action="store_true", help="report in benchmarks/README.md")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick only shows that the benchmark works; leave out --write")
    load = load_average()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else FULL
    speeds = measure(sizes)
    text = section(speeds, [pipeline_seconds(sizes.settings) for _ in range(sizes.pipelines)], load)
    print(text)
    if options.write:
        write_section("training", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
