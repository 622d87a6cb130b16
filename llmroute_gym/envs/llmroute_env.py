"""LLMRoute-v0: one step is one routing decision."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.arguments import (
    build_config,
    checked_action,
    cluster_and_source,
    refuse_unknown,
    requested_workload,
)
from llmroute_gym.envs.metrics import episode_metrics
from llmroute_gym.envs.observation import Columns
from llmroute_gym.envs.reward import RewardTerms, term_units, term_weights, write_reward
from llmroute_gym.envs.view.viewer import Snapshot, Viewer
from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.outcome import Outcome, stacked
from llmroute_gym.sim.predictions import predicted_output_tokens
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Interval, Run
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.sim.workload import Workload

Observation = npt.NDArray[np.float32]


RECENT = 50
"""Completed requests per replica that a rendered frame shows."""


class LLMRouteEnv(gym.Env[Observation, np.int64]):
    """Route each request of an LLM service to one of N replicas.

    ## Description
    N model servers with continuous batching and a paged KV cache serve a stream of requests. At
    the arrival of each request the agent picks its replica; the simulator then runs to the next
    arrival, after the last one until everything is served. Bad picks show in the tail of latency.

    ## Action Space
    `Discrete(N)`: the replica. `info["action_mask"]` and `action_masks()` tell which may be
    chosen: those that take requests now (`info["available"]`) and could hold this one. Any other
    raises, it is never remapped.

    ## Observation Space
    `Box(N, 19)` float32: row r holds what is known about sending this request to replica r. The
    columns with units and scales stand in `llmroute_gym.envs.observation`, others than the
    nineteen are named in `observation={"columns": [...]}`; what `information="metrics"`,
    `"router"` and `"oracle"` change, in `llmroute_gym.ground.signals.Signal`.

    ## Rewards
    A weighted sum of throughput, latency, tail and imbalance, see `llmroute_gym.envs.reward`. The
    unweighted terms are in `info["reward/..."]`.

    ## Starting State
    Idle replicas and a workload drawn from the seed.

    ## Episode End
    Terminates when all requests of the episode are finished; nothing is dropped. The last step's
    `info` holds `episode_metrics/...` over all requests of the episode.

    ## Arguments
    Args:
        cluster: a `Cluster`, or the name of a profile.
        replicas: how many, where `cluster` is a name; None is 4.
        workload: a `WorkloadSource`, the name of one with shared prompts (`shared_prefix`), or that
            of a length model for `SyntheticWorkload`.
        qps: mean arrival rate, requests per second; None keeps that of the source.
        arrivals: arrival process, where `workload` is a name; None is Poisson's.
        requests_per_episode: decisions per episode.
        reward: weights, as `RewardConfig` or a mapping of its fields.
        observation: what a row tells, as `ObservationConfig` or a mapping of its fields.
        engine: `compiled` or `reference`; the numbers are the same.
        render_mode: `rgb_array`, `ansi`, `human` (a window, or text in the terminal where there
            is no display) or None.

    `reset(options={"workload": Workload(...)})` plays that workload instead of a drawn one.

    ## Vectorized environment
    `gym.make_vec("LLMRoute-v0", num_envs=64)`.

    ## References
    Little's law for the latency term: Mao et al., "Park", NeurIPS 2019.

    ## Version History
    v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium declares it so)
        "render_modes": ["rgb_array", "ansi", "human"],
        "render_fps": 8,
    }

    def __init__(
        self,
        cluster: Cluster | str = "a100-internlm-20b",
        replicas: int | None = None,
        workload: WorkloadSource | str = "azure_conv",
        qps: float | None = 2.5,
        arrivals: str | None = None,
        requests_per_episode: int = 500,
        reward: RewardConfig | Mapping[str, Any] | None = None,
        observation: ObservationConfig | Mapping[str, Any] | None = None,
        engine: str = "compiled",
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self.cluster, self.source = cluster_and_source(
            cluster, replicas, workload, qps, arrivals, requests_per_episode
        )
        self.requests_per_episode = requests_per_episode
        self.reward_config = build_config(RewardConfig, reward)
        self.observation_config = build_config(ObservationConfig, observation)
        self.engine = checked_name("engine", engine, ENGINES)
        if render_mode is not None:
            checked_name("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._columns = Columns(self.observation_config.columns)
        self.observation_space: spaces.Box = self._columns.space(len(self.cluster))  # type: ignore[assignment]
        self.action_space = spaces.Discrete(len(self.cluster))
        self._units = term_units(self.reward_config)
        self._weights = term_weights(self.reward_config)
        self._viewer: Viewer | None = None
        self._run: Run | None = None
        self._last_replica: int | None = None
        self._last_reward = self._return = 0.0

    def set_qps(self, qps: float) -> None:
        """Sets the mean arrival rate (requests per second) from the next reset on."""
        self.source = self.source.with_qps(qps)

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Returns which replicas may be chosen, shape (n_replicas,)."""
        return self._running().mask().astype(np.int8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: seeds everything that is drawn.
            options: `{"workload": Workload}` plays that workload.

        Raises:
            InputError: an option is unknown or of the wrong type, or a request of the workload
                fits on no replica.
        """
        super().reset(seed=seed)
        workload = requested_workload(options)
        if workload is None:
            workload = self._draw()
        self._run = ENGINES[self.engine](
            workload,
            self.cluster,
            observation=self.observation_config,
            predicted_output_tokens=predicted_output_tokens(
                workload, self.observation_config.predicted_output_sigma, self.np_random
            ),
            late_after_s=self.reward_config.latency_threshold,
        )
        self._last_replica = None
        self._last_reward = self._return = 0.0
        return self._observe(), self._state_info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Routes the request at hand and runs to the next arrival.

        Args:
            action: index of the replica.

        Raises:
            InputError: the action is not an integer, out of range, or masked.
        """
        run = self._running()
        if run.done:
            raise InputError("the episode is over; call reset() before step()")
        replica = checked_action(action, run)
        terms, reward = self._reward(run.place(replica))
        self._last_replica, self._last_reward = replica, reward
        self._return += reward
        info = self._state_info()
        info.update({f"reward/{name}": value for name, value in terms._asdict().items()})
        terminated = run.decision == len(run.workload)
        if terminated:
            outcomes = stacked([run.outcome()])
            metrics = episode_metrics(outcomes, len(self.cluster), self.reward_config)
            info.update({name: float(value[0]) for name, value in metrics.items()})
        if self.render_mode == "human":
            self.render()
        return self._observe(), reward, terminated, False, info

    def rows(self) -> FloatArray:
        """Returns what a router knows now, (n_replicas, N_SIGNALS), in physical units."""
        return self._running().rows()

    @property
    def run(self) -> Run:
        """The run of the episode: what a router that is an upper bound looks into."""
        return self._running()

    def set_available(self, replica: int, available: bool) -> None:
        """Says whether a replica takes requests from now on, for the rest of the episode.

        Raises:
            InputError: the index is wrong, or no replica would take requests any more.
        """
        self._running().set_available(replica, available)

    def outcome(self) -> Outcome:
        """Returns what became of the episode's requests; complete once it has ended."""
        return self._running().outcome()

    def render(self) -> Any:
        """Draws the state: an (H, W, 3) uint8 array, a string, or a window, by `render_mode`."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode; pass render_mode='rgb_array' to make()")
            return None
        if self._viewer is None:
            self._viewer = Viewer(self.metadata["render_fps"])
        draw = {
            "rgb_array": self._viewer.frame,
            "ansi": self._viewer.text,
            "human": self._viewer.show,
        }[self.render_mode]
        return draw(self._snapshot())

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    def _draw(self) -> Workload:
        """Draws the requests of an episode."""
        return self.source.sample(self.requests_per_episode, self.np_random)

    def _running(self) -> Run:
        if self._run is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._run

    def _observe(self) -> Observation:
        return self._columns.scaled(self._running().rows())

    def _reward(self, interval: Interval) -> tuple[RewardTerms, float]:
        terms = np.empty(len(RewardTerms._fields))
        reward = write_reward(
            interval.request_seconds,
            interval.late_request_seconds,
            interval.completion_rate_rps,
            interval.imbalance,
            self._units,
            self._weights,
            terms,
        )
        return RewardTerms(*terms.tolist()), float(reward)

    def _state_info(self) -> dict[str, Any]:
        run = self._running()
        return {
            "action_mask": self.action_masks(),
            "time_s": run.now_s,
            "available": run.available().astype(np.int8),
            "request": run.request,
        }

    def _snapshot(self) -> Snapshot:
        run = self._running()
        outcome = run.outcome()
        recent_e2e, recent_ttft = recent_latencies(outcome, len(self.cluster), run.now_s)
        return Snapshot(
            time_s=run.now_s,
            request=run.decision,
            n_requests=len(run.workload),
            rows=run.rows(),
            mask=run.mask(),
            last_replica=self._last_replica,
            recent_e2e_s=recent_e2e,
            recent_ttft_s=recent_ttft,
            reward=self._last_reward,
            episode_return=self._return,
            latency_threshold_s=self.reward_config.latency_threshold,
            title="LLMRoute-v0",
        )


def recent_latencies(
    outcome: Outcome, n_replicas: int, now_s: float
) -> tuple[tuple[npt.NDArray[np.float64], ...], tuple[npt.NDArray[np.float64], ...]]:
    """Returns end-to-end latency and TTFT of the last `RECENT` finished requests per replica."""
    finished = np.flatnonzero(outcome.finished_at_s <= now_s)
    order = finished[np.argsort(outcome.finished_at_s[finished], kind="stable")]
    recent: list[deque[int]] = [deque(maxlen=RECENT) for _ in range(n_replicas)]
    for request in order:
        recent[outcome.replica[request]].append(int(request))
    indices = [np.array(requests, dtype=np.int64) for requests in recent]
    return (
        tuple(outcome.e2e_s[index] for index in indices),
        tuple(outcome.ttft_s[index] for index in indices),
    )
