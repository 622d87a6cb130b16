"""Many LLMRoute-v0 environments stepped together on the compiled engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.arguments import (
    build_config,
    cluster_and_source,
    masked_error,
    range_error,
    refuse_unknown,
)
from llmroute_gym.envs.metrics import episode_metrics
from llmroute_gym.envs.observation import Columns
from llmroute_gym.envs.reward import RewardTerms
from llmroute_gym.errors import InputError, checked_name, unknown_name
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import count
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.predictions import predicted_output_tokens
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.sim.submission import replica_index

if TYPE_CHECKING:
    from llmroute_gym.envs.episodes import Episodes

Infos = dict[str, Any]

_TERMS = tuple(f"reward/{name}" for name in RewardTerms._fields)
_EVERYWHERE = ("action_mask", "available", "time_s", "request")
"""What the information holds of every environment after any call, beside the terms of a step."""


class Origin(NamedTuple):
    """What an episode came from: with its actions, all it takes to repeat it."""

    generator: Mapping[str, Any]
    """State of the environment's generator before the episode was drawn."""
    qps: float
    """Mean arrival rate, requests per second."""


class LLMRouteVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `LLMRouteEnv`, in one kernel call per step.

    The same seed gives environment i the same episodes, observations and rewards as
    `LLMRouteEnv.reset(seed=seed + i)`. An episode that ends starts the next one in the same step:
    the observation is the new episode's, the last one of the old is in `infos["final_obs"]` and its
    info in `infos["final_info"]`. Episodes may differ in length (as a source gives them).

    Args:
        num_envs: how many, at least 1.
        cluster: as for `LLMRouteEnv`, likewise the next seven.
        replicas: how many, where `cluster` is a name.
        workload: a source, or its name, or that of a length model.
        qps: mean arrival rate, requests per second.
        arrivals: arrival process, where `workload` is a name.
        requests_per_episode: decisions per episode.
        reward: weights.
        observation: what a row tells.
        engine: only `compiled`.
        max_episode_steps: truncates longer episodes.
        render_mode: only None; a single `LLMRouteEnv` draws.

    Attributes:
        keeps_origins: whether the following is kept; it is false.
        origins: what the present episodes came from.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium declares it so)
        "render_modes": [],
        "autoreset_mode": gym.vector.AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        cluster: Cluster | str = "a100-internlm-20b",
        replicas: int | None = None,
        workload: WorkloadSource | str = "azure_conv",
        qps: float | None = 2.5,
        arrivals: str | None = None,
        requests_per_episode: int = 500,
        reward: RewardConfig | Mapping[str, Any] | None = None,
        observation: ObservationConfig | Mapping[str, Any] | None = None,
        engine: str = "compiled",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self), unknown)
        if render_mode is not None:
            raise InputError(
                f"the vector environment draws nothing, got render_mode={render_mode!r}; render a "
                "single environment of gym.make('LLMRoute-v0', render_mode=...)"
            )
        num_envs = count("num_envs", num_envs)
        checked_name("engine of the vector environment", engine, ["compiled"])
        self.num_envs = num_envs
        self.cluster, self.source = cluster_and_source(
            cluster, replicas, workload, qps, arrivals, requests_per_episode
        )
        self.requests_per_episode = requests_per_episode
        self.max_episode_steps = requests_per_episode
        if max_episode_steps is not None:
            self.max_episode_steps = count("max_episode_steps", max_episode_steps)
        self.reward_config = build_config(RewardConfig, reward)
        self.observation_config = build_config(ObservationConfig, observation)
        n_replicas = len(self.cluster)
        self.single_observation_space = Columns(self.observation_config.columns).space(n_replicas)
        self.single_action_space = gym.spaces.Discrete(n_replicas)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._every = np.ones(num_envs, dtype=np.bool_)
        self._every.flags.writeable = False
        self._all_take = np.ones((num_envs, n_replicas), dtype=np.int8)
        self._all_take.flags.writeable = False
        self._has_any = {f"_{name}": self._every for name in _EVERYWHERE}
        self._has_terms = {f"_{name}": self._every for name in _TERMS}
        self._until_an_end = 0
        self._episodes: Episodes | None = None
        self._generators: list[np.random.Generator] = []
        self.keeps_origins = False
        self.origins: list[Origin | None] = [None] * num_envs

    def set_qps(self, qps: float) -> None:
        """Sets the mean arrival rate (requests per second) of the episodes that start from now."""
        self.source = self.source.with_qps(qps)

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Returns which replicas may be chosen, shape (num_envs, n_replicas)."""
        return self._started().masks.astype(np.int8)

    def set_available(self, index: int, replica: int, available: bool) -> None:
        """Says whether a replica of environment `index` takes requests in its present episode.

        Raises:
            InputError: an index is wrong, or no replica would take requests any more.
        """
        counts = {"environment": (index, self.num_envs), "replica": (replica, len(self.cluster))}
        for name, (value, n) in counts.items():
            if replica_index(value, n) is None:
                raise InputError(f"{name} must be an integer from 0 to {n - 1}, got {value!r}")
        self._started().set_available(index, replica, available)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[npt.NDArray[np.float32], Infos]:
        """Starts an episode in every environment.

        Args:
            seed: environment i gets seed + i, or the i-th of a sequence.
            options: none are known.

        Raises:
            InputError: an option is given, or the seeds are not one per environment.
        """
        for key in options or {}:
            raise unknown_name("reset option of the vector environment", key, [])
        self._seed(seed)
        if self._episodes is None:
            self._episodes = _load_episodes()(
                self.cluster,
                self.num_envs,
                self.requests_per_episode,
                self.reward_config,
                self.observation_config,
            )
        for index in range(self.num_envs):
            self._start(index)
        self._look_for_an_end()
        return self._episodes.observe(np.arange(self.num_envs)), self._infos()

    def step(
        self, actions: npt.ArrayLike
    ) -> tuple[
        npt.NDArray[np.float32], FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.bool_], Infos
    ]:
        """Routes one request in every environment.

        Args:
            actions: (num_envs,) replicas.

        Raises:
            InputError: the shape or type is wrong, or a replica is out of range or masked.
        """
        episodes = self._started()
        observations = episodes.step(self._checked(actions))
        if observations is None:
            raise self._out_of_range(np.asarray(actions))
        rewards = episodes.rewards
        infos = self._infos()
        infos.update(zip(_TERMS, episodes.terms, strict=True))
        infos.update(self._has_terms)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self._until_an_end -= 1
        if self._until_an_end == 0:
            decisions = episodes.decisions()
            terminated = decisions >= episodes.lengths
            truncated = ~terminated & (decisions >= self.max_episode_steps)
            ended = np.flatnonzero(terminated | truncated)
            self._restart(ended, observations, infos, self._metrics(np.flatnonzero(terminated)))
            self._look_for_an_end()
        return observations, rewards, terminated, truncated, infos

    def repeat(self, index: int, origin: Origin, actions: npt.NDArray[np.int64]) -> None:
        """Starts the episode of an origin in environment `index` and takes decisions in it alone.

        Args:
            index: the environment.
            origin: as `origins` holds it.
            actions: (n_steps,) replicas, as they were taken from its start on.
        """
        self.set_qps(origin.qps)
        self._generators[index].bit_generator.state = origin.generator
        self._start(index)
        self._started().replay(index, actions)
        self._look_for_an_end()

    def observe(self) -> npt.NDArray[np.float32]:
        """Returns the present observations, shape (num_envs, n_replicas, n_columns)."""
        return self._started().observe(np.arange(self.num_envs))

    def outcome(self, index: int) -> Outcome:
        """Returns what became of the requests of environment `index`'s present episode."""
        return self._started().outcome(index)

    def _started(self) -> "Episodes":
        if self._episodes is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._episodes

    def _seed(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None:
            seeds: Sequence[int | None] = [None] * self.num_envs
        elif isinstance(seed, Sequence):
            seeds = seed
        else:
            seeds = [int(seed) + index for index in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise InputError(f"{self.num_envs} environments need as many seeds, got {len(seeds)}")
        generators = []
        for index, one in enumerate(seeds):
            kept = one is None and self._generators
            generators.append(self._generators[index] if kept else seeding.np_random(one)[0])
        self._generators = generators

    def _start(self, index: int) -> None:
        generator = self._generators[index]
        if self.keeps_origins:
            self.origins[index] = Origin(generator.bit_generator.state, self.source.qps)
        workload = self.source.sample(self.requests_per_episode, generator)
        predicted = predicted_output_tokens(
            workload, self.observation_config.predicted_output_sigma, generator
        )
        self._started().start(index, workload, predicted)

    def _look_for_an_end(self) -> None:
        """Counts the steps until the next episode ends."""
        episodes = self._started()
        ends = np.minimum(episodes.lengths, self.max_episode_steps) - episodes.decisions()
        self._until_an_end = int(ends.min())

    def _restart(
        self,
        ended: npt.NDArray[np.int64],
        observations: npt.NDArray[np.float32],
        infos: Infos,
        metrics: Infos,
    ) -> None:
        """Starts the next episodes; what was last seen goes to `infos`, with the metrics.

        Args:
            ended: the environments.
            observations: (num_envs, ...) of the last step; theirs are overwritten.
            infos: of the last step.
            metrics: of those of them that came to their end.
        """
        over = self._every
        if len(ended) < self.num_envs:
            over = np.zeros(self.num_envs, dtype=np.bool_)
            over[ended] = True
        final_info: Infos = {**infos, **metrics}
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in ended.tolist():
            final_obs[index] = observations[index].copy()
            self._start(index)
        infos.update(self._infos())
        infos.update(final_obs=final_obs, _final_obs=over)
        infos.update(final_info=final_info, _final_info=over)
        observations[ended] = self._started().observe(ended)

    def _metrics(self, over: npt.NDArray[np.int64]) -> Infos:
        """Returns the metrics of episodes that are over, 0 in the places of the others."""
        episodes, n_replicas = self._started(), len(self.cluster)
        lengths = episodes.lengths[over]
        if len(over) == self.num_envs and (lengths == lengths[0]).all():
            metrics = episode_metrics(episodes.outcomes(over), n_replicas, self.reward_config)
            return {**metrics, **{f"_{key}": self._every for key in metrics}}
        metrics = {}
        for length in np.unique(lengths):
            alike = over[lengths == length]
            found = episode_metrics(episodes.outcomes(alike), n_replicas, self.reward_config)
            for key, values in found.items():
                metrics.setdefault(key, np.zeros(self.num_envs))[alike] = values
        present = np.zeros(self.num_envs, dtype=np.bool_)
        present[over] = True
        return {**metrics, **{f"_{key}": present for key in metrics}}

    def _infos(self) -> Infos:
        episodes = self._started()
        available = masks = self._all_take
        if not episodes.all_allowed:
            available, masks = episodes.available.astype(np.int8), self.action_masks()
        return {
            "action_mask": masks,
            "available": available,
            "time_s": episodes.now_s.copy(),
            "request": episodes.numbers.copy(),
            **self._has_any,
        }

    def _checked(self, actions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise InputError(
                f"actions must be integers of shape ({self.num_envs},), got {array.dtype} of shape "
                f"{array.shape}"
            )
        episodes = self._started()
        if not episodes.all_allowed:  # else only the range is left, which the kernel looks at
            self._check_masks(array, episodes)
        return array.astype(np.int64)

    def _out_of_range(self, actions: npt.NDArray[np.integer]) -> InputError:
        n_replicas = len(self.cluster)
        wrong = int(np.flatnonzero((actions < 0) | (actions >= n_replicas))[0])
        return range_error(int(actions[wrong]), n_replicas, f" in environment {wrong}")

    def _check_masks(self, actions: npt.NDArray[np.integer], episodes: "Episodes") -> None:
        if (actions < 0).any() or (actions >= len(self.cluster)).any():
            raise self._out_of_range(actions)
        allowed = episodes.masks[np.arange(self.num_envs), actions]
        if not allowed.all():
            wrong = int(np.flatnonzero(~allowed)[0])
            raise masked_error(
                int(actions[wrong]),
                int(episodes.numbers[wrong]),
                episodes.masks[wrong],
                episodes.rows(wrong),
                f" in environment {wrong}",
            )


def _load_episodes() -> type["Episodes"]:
    """Imports the kernels only when they are needed: Numba takes half a second."""
    from llmroute_gym.sim.compiled.stale import drop_stale_kernels

    folder = Path(__file__).parent
    drop_stale_kernels(folder, folder / "reward.py", folder / "vector_step.py")

    from llmroute_gym.envs.episodes import Episodes

    return Episodes
