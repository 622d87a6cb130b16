"""The running episodes of many environments: workloads, masks, and the kernels' memory."""

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.observation import HIGH, SCALE
from llmroute_gym.envs.reward import RewardTerms, term_units, term_weights
from llmroute_gym.envs.vector_step import observe_all, step_all
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import N_SIGNALS
from llmroute_gym.sim.compiled.memory import Memory
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.submission import choosable, fitting
from llmroute_gym.sim.workload import Workload

FIRST_LONGEST = 4096
"""Tokens of a request that the tables reach before a longer one has been seen."""


class Episodes:
    """One episode per environment, all with the same cluster and number of requests.

    Args:
        cluster: the replicas of one environment.
        num_envs: how many environments.
        n_requests: requests per episode.
        reward: weights.
        observation: what a row tells.

    Attributes:
        masks: (num_envs, n_replicas) bool, replicas that may take the requests at hand.
        terms: (num_envs, 4) unweighted reward terms of the last step.
        rewards: (num_envs,) of the last step.
        now_s: (num_envs,) times of decision, seconds.
        numbers: (num_envs,) numbers of the requests at hand.
    """

    def __init__(
        self,
        cluster: Cluster,
        num_envs: int,
        n_requests: int,
        reward: RewardConfig,
        observation: ObservationConfig,
    ) -> None:
        self._cluster = cluster
        self._n_requests = n_requests
        self._units, self._weights = term_units(reward), term_weights(reward)
        self._memory = Memory(
            cluster, num_envs, n_requests, FIRST_LONGEST, observation, reward.latency_threshold
        )
        self._fits: dict[int, tuple[BoolArray, BoolArray]] = {}
        self._workloads: list[Workload | None] = [None] * num_envs
        self.masks = np.ones((num_envs, len(cluster)), dtype=np.bool_)
        self.terms = np.zeros((num_envs, len(RewardTerms._fields)))
        self.rewards = np.zeros(num_envs)
        self.now_s = np.zeros(num_envs)
        self.numbers = np.zeros(num_envs, dtype=np.int64)

    @property
    def all_allowed(self) -> bool:
        """Whether every replica may take every request."""
        return not self._fits

    def start(self, index: int, workload: Workload, predicted_output_tokens: FloatArray) -> None:
        """Puts a new episode into environment `index`, its replicas idle."""
        self._workloads[index] = workload
        self._fits.pop(index, None)
        fits = fitting(workload, self._cluster)
        if fits is not None:
            self._fits[index] = fits, choosable(fits, self._cluster)
        self._memory.start(index, workload, predicted_output_tokens)
        self.now_s[index] = workload.arrived_at_s[0]
        self.numbers[index] = 0
        self._set_mask(index, 0)

    def step(self, actions: IntArray) -> npt.NDArray[np.float32]:
        """Places one request per environment; the masks allow the actions.

        Args:
            actions: (num_envs,) replicas; those that reject their request are overwritten.

        Returns:
            Observations (num_envs, n_replicas, N_SIGNALS).
        """
        for index, (fits, _) in self._fits.items():
            if not fits[self.numbers[index], actions[index]]:
                actions[index] = -1
            self._set_mask(index, int(self.numbers[index]) + 1)
        out = np.empty((*self.masks.shape, N_SIGNALS), dtype=np.float32)
        step_all(
            self._memory.clusters,
            actions,
            self.masks,
            self._units,
            self._weights,
            SCALE,
            HIGH,
            out,
            self.terms,
            self.rewards,
            self.now_s,
            self.numbers,
            self._memory.ints,
            self._memory.floats,
        )
        return out

    def observe(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns some environments' observations, shape (n, n_replicas, N_SIGNALS)."""
        out = np.empty((len(indices), self.masks.shape[1], N_SIGNALS), dtype=np.float32)
        observe_all(
            self._memory.clusters[indices],
            self.masks[indices],
            SCALE,
            HIGH,
            out,
            self._memory.ints,
            self._memory.floats,
        )
        return out

    def rows(self, index: int) -> FloatArray:
        """Returns the unscaled rows of one environment, shape (n_replicas, N_SIGNALS)."""
        return self._memory.rows(index, self.masks[index])

    def outcome(self, index: int) -> Outcome:
        """Returns what became of one environment's requests."""
        return self._memory.outcome(index, self._workload(index))

    def outcomes(self, indices: IntArray) -> Outcome:
        """Returns what became of some environments' requests, arrays (n, n_requests)."""
        return self._memory.outcomes(indices, [self._workload(index) for index in indices])

    def _workload(self, index: int) -> Workload:
        workload = self._workloads[index]
        if workload is None:
            raise gym.error.ResetNeeded(f"environment {index} has not been reset")
        return workload

    def _set_mask(self, index: int, request: int) -> None:
        fits = self._fits.get(index)
        if fits is None or request >= self._n_requests:
            self.masks[index] = True
        else:
            self.masks[index] = fits[1][request]
