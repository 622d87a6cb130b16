"""Latencies of the requests that left last, over all environments of a vector environment."""

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
        """Returns end-to-end latencies in seconds of requests that left lately, unordered.

        That of a rejected one is infinite.
        """
        return np.concatenate(
            [
                np.concatenate([self._past[index], self._left(index)])[-RECENT:]
                for index in range(self.num_envs)
            ]
        )

    def _start(self, index: int) -> None:
        if self._running:
            known = [self._past[index], self._left(index)]
            self._past[index] = np.concatenate(known)[-RECENT:]
        super()._start(index)

    def _left(self, index: int) -> FloatArray:
        e2e = self.outcome(index).e2e_s
        return e2e[~np.isnan(e2e)]


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
