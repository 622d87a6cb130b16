"""Latencies of the requests that left the system last, across the ends of episodes."""

from typing import Any

import gymnasium as gym
import numpy as np

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.outcome import Outcome


class RecentLatencies(gym.Wrapper[Any, Any, Any, Any]):
    """Gives LLMRoute-v0 the method `recent_e2e_s()`, which RouterMonitor pools over environments.

    The memory is for monitoring only; a resumed run starts with the current episode's.

    Args:
        env: with a method `outcome()`.
        size: how many requests are remembered.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int = 1000) -> None:
        super().__init__(env)
        self.size = size
        self._past: FloatArray = np.empty(0)
        self._ended = True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; at an episode's end its latencies are kept."""
        result = self.env.step(action)
        if result[2] or result[3]:
            self._past = np.concatenate([self._past, self._left()])[-self.size :]
        self._ended = result[2] or result[3]
        return result

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._ended = False
        return self.env.reset(**kwargs)

    def recent_e2e_s(self) -> FloatArray:
        """Returns end-to-end latencies in seconds of the latest requests that left, oldest first.

        A rejected request leaves as it arrives, with an infinite latency.
        """
        current = np.empty(0) if self._ended else self._left()
        return np.concatenate([self._past, current])[-self.size :]

    def _left(self) -> FloatArray:
        outcome: Outcome = self.env.unwrapped.outcome()  # type: ignore[attr-defined]
        left_at = np.where(outcome.rejected, outcome.arrived_at_s, outcome.finished_at_s)
        order = np.argsort(left_at, kind="stable")
        e2e: FloatArray = outcome.e2e_s[order]
        return e2e[~np.isnan(e2e)]
