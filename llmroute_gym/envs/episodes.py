"""The running episodes of many environments: workloads, masks, and the kernels' memory."""

from collections.abc import Iterable

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.observation import HIGH, SCALE, Columns, with_states
from llmroute_gym.envs.reward import RewardTerms, term_units, term_weights
from llmroute_gym.envs.vector_step import observe_all, step_all
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import N_SIGNALS, SIGNAL_NAMES, VERSION_1, Signal
from llmroute_gym.sim.compiled.memory import Memory
from llmroute_gym.sim.compiled.runs import NoNodesError
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.submission import check_some_available, choosable, fitting
from llmroute_gym.sim.workload import Workload

_WEIGHED = {SIGNAL_NAMES[one] for one in (Signal.UNCACHED_TOKENS, Signal.UNCACHED_PAIRS)}
"""Columns that cost a look-up per decision."""
FIRST_LONGEST = 4096
"""Tokens of a request that the tables reach before a longer one has been seen."""


class Episodes:
    """One episode per environment, all with the same cluster.

    Args:
        cluster: the replicas of one environment.
        num_envs: how many environments.
        n_requests: requests per episode at the most.
        reward: weights.
        observation: what a row tells.

    Attributes:
        masks: (num_envs, n_replicas) bool, replicas that may take the requests at hand.
        available: (num_envs, n_replicas) bool, replicas that take requests now.
        terms: (4, num_envs) unweighted reward terms of the last step, in arrays of its own.
        rewards: (num_envs,) likewise.
        now_s: (num_envs,) times of decision, seconds.
        numbers: (num_envs,) numbers of the requests at hand.
        lengths: (num_envs,) requests of the episodes.
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
        self._units, self._weights = term_units(reward), term_weights(reward)
        self._columns = Columns(observation.columns)
        usual = self._columns.names == VERSION_1
        self._chosen = self._columns.signals[: 0 if usual else None]
        self._whole = np.zeros((len(cluster), N_SIGNALS), dtype=np.float32)
        self._memory = Memory(
            cluster,
            num_envs,
            n_requests,
            FIRST_LONGEST,
            observation,
            reward.latency_threshold,
            weighs=not _WEIGHED.isdisjoint(self._columns.names),
        )
        self._fits: dict[int, tuple[BoolArray, BoolArray]] = {}
        self._drained: set[int] = set()
        self._workloads: list[Workload | None] = [None] * num_envs
        self.masks = np.ones((num_envs, len(cluster)), dtype=np.bool_)
        self.available = np.ones((num_envs, len(cluster)), dtype=np.bool_)
        self.terms = np.zeros((len(RewardTerms._fields), num_envs))
        self.rewards = np.zeros(num_envs)
        self.now_s = np.zeros(num_envs)
        self.numbers = np.zeros(num_envs, dtype=np.int64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self._steps = 0
        self._started_at = np.zeros(num_envs, dtype=np.int64)

    def decisions(self) -> IntArray:
        """Returns how many requests each episode has placed, shape (num_envs,)."""
        return self._steps - self._started_at

    @property
    def all_allowed(self) -> bool:
        """Whether every replica may take every request."""
        return not (self._fits or self._drained)

    def start(self, index: int, workload: Workload, predicted_output_tokens: FloatArray) -> None:
        """Puts a new episode into environment `index`, its replicas idle and taking requests."""
        self._workloads[index] = workload
        self._fits.pop(index, None)
        self._drained.discard(index)
        self.available[index] = True
        fits = fitting(workload, self._cluster)
        if fits is not None:
            self._fits[index] = fits, choosable(fits, self._cluster)
        self._memory.start(index, workload, predicted_output_tokens)
        self.now_s[index] = workload.arrived_at_s[0]
        self.numbers[index] = 0
        self.lengths[index] = len(workload)
        self._started_at[index] = self._steps
        self._set_mask(index)

    def set_available(self, index: int, replica: int, available: bool) -> None:
        """Says whether a replica of environment `index` takes requests in this episode.

        Raises:
            InputError: no replica would take requests any more.
        """
        changed = self.available[index].copy()
        changed[replica] = available
        check_some_available(changed, replica)
        self.available[index] = changed
        self._drained.add(index)
        self._set_mask(index)

    def step(self, actions: IntArray) -> npt.NDArray[np.float32] | None:
        """Places one request per environment; the masks allow the actions.

        Args:
            actions: (num_envs,) replicas; those that reject their request are overwritten.

        Returns:
            Observations (num_envs, n_replicas, n_columns), or None if an action is no replica and
            nothing has happened.
        """
        for index, (fits, _) in self._fits.items():
            if not fits[self.numbers[index], actions[index]]:
                actions[index] = -1
        out = np.empty((*self.masks.shape, len(self._columns)), dtype=np.float32)
        terms, rewards = np.empty_like(self.terms), np.empty_like(self.rewards)
        wrong = None
        while wrong is None:
            wrong = self._stepped(actions, out, terms, rewards)
        if wrong >= 0:
            return None
        self.terms, self.rewards = terms, rewards
        self._steps += 1
        if not self.all_allowed:
            for index in {*self._fits, *self._drained}:
                self._set_mask(index)
                self._set_states(index, out[index])
        return out

    def _stepped(
        self,
        actions: IntArray,
        out: npt.NDArray[np.float32],
        terms: FloatArray,
        rewards: FloatArray,
    ) -> int | None:
        """Steps all environments, see `step_all`.

        Returns:
            What `step_all` does, or None where there was no room and all stand where they did.
        """
        arguments = (
            self._memory.clusters,
            actions,
            self._units,
            self._weights,
            self._chosen,
            SCALE,
            HIGH,
            self._whole,
            out,
            terms,
            rewards,
            self.now_s,
            self.numbers,
            -1 if self._fits else 0,
            self._memory.stores,
            self._memory.ints,
            self._memory.floats,
        )
        try:
            return step_all(*arguments)
        except NoNodesError:
            self._repeat(range(len(self._workloads)))
            return None

    def _repeat(self, indices: Iterable[int]) -> None:
        """Takes environments back to where they stand, with more room."""
        decisions = self.decisions()
        for index in indices:
            self._memory.repeat(index, self._workload(index), int(decisions[index]))

    def replay(self, index: int, actions: IntArray) -> None:
        """Places the first requests of one environment, the others stand still.

        Args:
            index: the environment, just started.
            actions: (n_steps,) replicas that the masks allowed.
        """
        memory = self._memory
        for decisions, action in enumerate(actions.tolist()):
            fits = self._fits.get(index)
            dropped = fits is not None and not fits[0][self.numbers[index], action]
            memory.place(index, -1 if dropped else action, self._workload(index), decisions)
            self.numbers[index] = self._memory.request(index)
        self._started_at[index] -= len(actions)
        self.now_s[index] = self._memory.now_s(index)
        self._set_mask(index)

    def observe(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns some environments' observations, shape (n, n_replicas, n_columns)."""
        shape = len(indices), len(self._cluster), len(self._columns)
        out = np.empty(shape, dtype=np.float32)
        observed = False
        while not observed:
            try:
                observe_all(
                    self._memory.clusters[indices],
                    self._chosen,
                    SCALE,
                    HIGH,
                    self._whole,
                    out,
                    self._memory.stores,
                    self._memory.ints,
                    self._memory.floats,
                )
                observed = True
            except NoNodesError:
                self._repeat(indices.tolist())
        for position, index in enumerate(() if self.all_allowed else indices.tolist()):
            self._set_states(index, out[position])
        return out

    def rows(self, index: int) -> FloatArray:
        """Returns the unscaled rows of one environment, shape (n_replicas, N_SIGNALS).

        What was uncached of the requests in flight is in them only if a policy's column shows it.
        """
        decisions = int(self.decisions()[index])
        rows = self._memory.rows(index, self._workload(index), decisions)
        rows[:, Signal.AVAILABLE] = self.available[index]
        rows[:, Signal.FITS] = self._fits_now(index)
        return rows

    def outcome(self, index: int) -> Outcome:
        """Returns what became of one environment's requests."""
        return self._memory.outcome(index, self._workload(index))

    def outcomes(self, indices: IntArray) -> Outcome:
        """Returns what became of requests, arrays (n, n_requests), of equally long episodes."""
        return self._memory.outcomes(indices, [self._workload(index) for index in indices])

    def _workload(self, index: int) -> Workload:
        workload = self._workloads[index]
        if workload is None:
            raise gym.error.ResetNeeded(f"environment {index} has not been reset")
        return workload

    def _fits_now(self, index: int) -> BoolArray:
        """Returns which replicas could hold the request at hand, shape (n_replicas,)."""
        fits, number = self._fits.get(index), self.numbers[index]
        if fits is None or number >= self.lengths[index]:
            return np.ones(len(self._cluster), dtype=np.bool_)
        now: BoolArray = fits[0][number]
        return now

    def _set_states(self, index: int, observation: npt.NDArray[np.float32]) -> None:
        """Tells of replicas that take nothing, or cannot hold the request at hand."""
        with_states(observation, self._columns, self.available[index], self._fits_now(index))

    def _set_mask(self, index: int) -> None:
        fits, number = self._fits.get(index), self.numbers[index]
        if fits is None or number >= self.lengths[index]:
            self.masks[index] = self.available[index]
        else:
            self.masks[index] = fits[1][number] & self.available[index]
