"""Bringing a vector environment back to where it was, as `replay` does with a single one."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.vector_env import LLMRouteVectorEnv
from llmroute_gym.errors import InputError


class ReplayableVector(gym.vector.VectorWrapper):
    """Remembers how the current episodes of an `LLMRouteVectorEnv` came about.

    Its episodes have one length and so all begin and end in the same step. What it takes to repeat
    them are the generators as they were before their start, and the actions since.

    Args:
        env: the environment.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, LLMRouteVectorEnv):
            raise InputError(
                f"ReplayableVector takes an LLMRouteVectorEnv, got {type(env.unwrapped).__name__}; "
                "wrap single environments in Replayable"
            )
        self._core = env.unwrapped
        self._before: dict[str, Any] | None = None
        self._now: dict[str, Any] = {}
        self._actions: list[Any] = []
        self._observations: Any = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Starts episodes and a new record of them."""
        self._before = {**self._circumstances(), "seed": seed}
        self._observations, infos = self.env.reset(seed=seed, options=options)
        self._begin()
        return self._observations, infos

    def step(self, actions: Any) -> Any:
        """Takes a step and notes the actions; when episodes end, a new record begins."""
        qps = self._core.source.qps
        self._observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = terminated | truncated
        if ended.any():
            if not ended.all():
                raise InputError("the episodes of a ReplayableVector must end together")
            # Generators are drawn from at the start of an episode only.
            self._before = {"generators": self._now["generators"], "qps": qps, "seed": None}
            self._begin()
        else:
            self._actions.append(np.array(actions))
        return self._observations, rewards, terminated, truncated, infos

    def set_qps(self, qps: float) -> None:
        """Sets the mean arrival rate of the episodes that start from now."""
        self._core.set_qps(qps)

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Returns which replicas may be chosen, shape (num_envs, n_replicas)."""
        return self._core.action_masks()

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs; it can be pickled."""
        if self._before is None:
            raise gym.error.ResetNeeded("call reset() before get_state()")
        return {
            "before": copy.deepcopy(self._before),
            "actions": np.array(self._actions, dtype=np.int64),
            "qps": self._core.source.qps,
            "observations": self._observations.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> Any:
        """Repeats the episodes up to the moment of `get_state`; returns the observations there.

        Raises:
            InputError: the repetition ends elsewhere, so the environment is not built alike.
        """
        before = state["before"]
        if len(before["generators"]) not in (0, self.num_envs):
            raise InputError(
                f"the interrupted run had {len(before['generators'])} environments, got "
                f"{self.num_envs}; build as many"
            )
        self._core.set_qps(before["qps"])
        # The first reset makes the generators whose states are then set.
        self._core.reset(seed=0)
        for generator, known in zip(self._core._generators, before["generators"], strict=False):
            generator.bit_generator.state = copy.deepcopy(known)
        self.reset(seed=before["seed"])
        for actions in state["actions"]:
            self.step(actions)
        if not np.array_equal(self._observations, state["observations"]):
            raise InputError(
                f"repeating {len(state['actions'])} steps of the interrupted episodes led to other "
                "observations; build the environment with the settings of the run that is resumed"
            )
        self._core.set_qps(state["qps"])
        return self._observations

    def _circumstances(self) -> dict[str, Any]:
        generators = [copy.deepcopy(one.bit_generator.state) for one in self._core._generators]
        return {"generators": generators, "qps": self._core.source.qps}

    def _begin(self) -> None:
        self._now = self._circumstances()
        self._actions = []
