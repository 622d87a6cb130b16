"""Latencies of the requests that finished last, over all environments of a vector environment."""

from typing import Any

import numpy as np

from llmroute_gym.envs.vector_env import LLMRouteVectorEnv
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sb3.replay_vector import ReplayableVector
from llmroute_gym.sb3.vec_env import RouterVecEnv

RECENT = 1000
"""Requests that are remembered of each environment's ended episodes."""


class RememberingVectorEnv(LLMRouteVectorEnv):
    """Keeps the latencies of an episode when the next one takes its place.

    The memory is for monitoring only; a resumed run starts with the current episodes'.
    """

    def reset(self, **kwargs: Any) -> Any:
        """Starts episodes and forgets the past."""
        self._past: list[FloatArray] = [np.empty(0)] * self.num_envs
        self._running = False
        result = super().reset(**kwargs)
        self._running = True
        return result

    def recent_e2e_s(self) -> FloatArray:
        """Returns end-to-end latencies in seconds of requests that finished lately, unordered."""
        return np.concatenate(
            [
                np.concatenate([self._past[index], self._finished(index)])[-RECENT:]
                for index in range(self.num_envs)
            ]
        )

    def _start(self, index: int) -> None:
        if self._running:
            known = [self._past[index], self._finished(index)]
            self._past[index] = np.concatenate(known)[-RECENT:]
        super()._start(index)

    def _finished(self, index: int) -> FloatArray:
        e2e = np.asarray(self.outcome(index).e2e_s)
        finished: FloatArray = e2e[np.isfinite(e2e)]
        return finished


class MonitoredVecEnv(RouterVecEnv):
    """`RouterVecEnv` over a `RememberingVectorEnv`, with what `RouterMonitor` pools.

    Args:
        env: the environment, wrapped so that a training can be resumed.
    """

    def __init__(self, env: RememberingVectorEnv) -> None:
        super().__init__(ReplayableVector(env))
        self._remembering = env

    def recent_e2e_s(self) -> FloatArray:
        """Returns the recent end-to-end latencies of all environments in seconds."""
        return self._remembering.recent_e2e_s()
