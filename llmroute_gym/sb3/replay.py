"""Bringing an environment that cannot be copied back to where it was: by seed and actions."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np

from llmroute_gym.errors import InputError


class Replayable(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers how the current episode came about, so that another process can repeat it.

    A simulation of generators cannot be copied or pickled halfway. What it needs to get there
    again can: the state of `np_random` before the reset, and the actions since. The environment
    must draw from nothing but `np_random`. Repeating costs at most one episode.

    Put it outermost, over `Monitor` if there is one, so that the monitor is brought back too.

    Args:
        env: the environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._start: dict[str, Any] | None = None
        self._actions: list[Any] = []
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode and a new record of it."""
        self._start = {
            "seed": seed,
            "options": copy.deepcopy(options),
            "generator": self._generator(),
            "qps": self._qps(),
        }
        self._actions = []
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step and notes the action."""
        self._actions.append(copy.copy(action))
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs; it can be pickled."""
        if self._start is None:
            raise gym.error.ResetNeeded("call reset() before get_state()")
        return {
            "start": copy.deepcopy(self._start),
            "actions": list(self._actions),
            "generator": self._generator(),
            "qps": self._qps(),
            "observation": copy.deepcopy(self._observation),
        }

    def set_state(self, state: dict[str, Any]) -> Any:
        """Repeats the episode up to the moment of `get_state`, and returns the observation there.

        Raises:
            InputError: the repetition ends elsewhere, so the environment is not built alike.
        """
        start = state["start"]
        self._set_qps(start["qps"])
        self.unwrapped.np_random.bit_generator.state = start["generator"]
        observation, _ = self.reset(seed=start["seed"], options=start["options"])
        for action in state["actions"]:
            observation, *_ = self.step(action)
        if not _equal(observation, state["observation"]):
            raise InputError(
                f"repeating the {len(state['actions'])} decisions of the interrupted episode led "
                "to another observation; build the environment with the settings of the run that "
                "is resumed"
            )
        self.unwrapped.np_random.bit_generator.state = state["generator"]
        self._set_qps(state["qps"])
        return observation

    def _generator(self) -> Any:
        return copy.deepcopy(self.unwrapped.np_random.bit_generator.state)

    def _qps(self) -> float | None:
        source = getattr(self.unwrapped, "source", None)
        return getattr(source, "qps", None) if hasattr(self.unwrapped, "set_qps") else None

    def _set_qps(self, qps: float | None) -> None:
        """A curriculum may have changed the load since the episode began."""
        if qps is not None and qps != self._qps():
            self.unwrapped.set_qps(qps)  # type: ignore[attr-defined]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return set(first) == set(second) and all(_equal(first[k], second[k]) for k in first)
    return bool(np.array_equal(first, second, equal_nan=True))
