"""Bringing a vector environment back to where it was, as `replay` does with a single one."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.vector_env import LLMRouteVectorEnv
from llmroute_gym.errors import InputError


class ReplayableVector(gym.vector.VectorWrapper):
    """Remembers the decisions in the current episodes of an `LLMRouteVectorEnv`.

    The environment knows what each of its episodes came from; with the actions since then, which
    are kept here, another process can repeat them. Episodes may begin and end at different steps.

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
        self._core.keeps_origins = True
        self._actions: list[npt.NDArray[np.int64]] = []
        self._begun = np.zeros(self.num_envs, dtype=np.int64)
        self._observations: Any = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Starts episodes and a new record of them."""
        self._observations, infos = self.env.reset(seed=seed, options=options)
        self._actions = []
        self._begun[:] = 0
        return self._observations, infos

    def step(self, actions: Any) -> Any:
        """Takes a step and notes the actions; where an episode ends, a new record begins."""
        self._observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._actions.append(np.array(actions, dtype=np.int64))
        ended = terminated | truncated
        if ended.any():
            self._begun[ended] = len(self._actions)
            forgotten = int(self._begun.min())
            del self._actions[:forgotten]
            self._begun -= forgotten
        return self._observations, rewards, terminated, truncated, infos

    def set_qps(self, qps: float) -> None:
        """Sets the mean arrival rate of the episodes that start from now."""
        self._core.set_qps(qps)

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Returns which replicas may be chosen, shape (num_envs, n_replicas)."""
        return self._core.action_masks()

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs; it can be pickled."""
        if self._observations is None:
            raise gym.error.ResetNeeded("call reset() before get_state()")
        return {
            "origins": copy.deepcopy(self._core.origins),
            "actions": np.array(self._actions, dtype=np.int64).reshape(-1, self.num_envs),
            "begun": self._begun.copy(),
            "qps": self._core.source.qps,
            "observations": self._observations.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> Any:
        """Repeats the episodes up to the moment of `get_state`; returns the observations there.

        Raises:
            InputError: the repetition ends elsewhere, so the environment is not built alike, or
                the state is of an earlier version.
        """
        if "origins" not in state:
            raise InputError(
                "the interrupted run is of an earlier version, whose episodes cannot be repeated; "
                "start it anew"
            )
        if len(state["origins"]) != self.num_envs:
            raise InputError(
                f"the interrupted run had {len(state['origins'])} environments, got "
                f"{self.num_envs}; build as many"
            )
        self._core.reset(seed=0)
        self._actions, self._begun = list(state["actions"]), state["begun"].copy()
        for index, origin in enumerate(state["origins"]):
            self._core.repeat(index, origin, state["actions"][self._begun[index] :, index])
        self._core.set_qps(state["qps"])
        self._observations = self._core.observe()
        if not np.array_equal(self._observations, state["observations"]):
            raise InputError(
                f"repeating {len(self._actions)} steps of the interrupted episodes led to other "
                "observations; build the environment with the settings of the run that is resumed"
            )
        return self._observations
