"""LLMRoute-v0 with replicas that are drawn with the requests, and with a rule's scores."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.arguments import checked_action
from llmroute_gym.envs.llmroute_env import LLMRouteEnv, Observation
from llmroute_gym.errors import InputError
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.residual import RuleScores
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.sim.workload import Workload

FORBIDDEN = 1e6
"""The score of a replica that may not be chosen; no other is as high."""
NOBODY = -1.0
"""The score in a row that belongs to no replica; all others are at least 0."""


class Drawing(Protocol):
    """What episodes are drawn from."""

    @property
    def cluster(self) -> Cluster:
        """The replicas as they are before anything is drawn."""
        ...

    @property
    def source(self) -> WorkloadSource:
        """What the requests are drawn from."""
        ...

    def draw(self, n_requests: int, rng: np.random.Generator) -> tuple[Workload, Cluster]:
        """Draws the requests of an episode and as many replicas as in `cluster`."""
        ...


class DrawnEnv(LLMRouteEnv):
    """`LLMRouteEnv` on other replicas in each episode; as many rows as the largest of several has.

    An observation has one column more than `LLMRouteEnv`'s, the last one: how much higher the
    score of a rule is than its lowest; `FORBIDDEN` for a replica that may not be chosen, `NOBODY`
    in rows beyond those of the replicas, which are 0 else. The rule is shown every decision and
    told every choice, so that it remembers what it would remember if it decided.

    Args:
        drawing: what episodes are drawn from.
        rule: whose scores are shown.
        n_rows: of an observation, at least as many as there are replicas.
        spread: episodes last from (1 - spread) to (1 + spread) times `requests_per_episode`, so
            that those of several environments do not end together.
        requests_per_episode: see there.
        reward: weights, as for `LLMRouteEnv`, likewise the next two.
        observation: what a row tells.
        engine: `compiled` or `reference`.

    Raises:
        InputError: as `LLMRouteEnv`, or there are fewer rows than replicas.
    """

    def __init__(
        self,
        drawing: Drawing,
        rule: EstimatedLatency,
        n_rows: int,
        spread: float = 0.0,
        requests_per_episode: int = 500,
        reward: RewardConfig | Mapping[str, Any] | None = None,
        observation: ObservationConfig | Mapping[str, Any] | None = None,
        engine: str = "compiled",
    ) -> None:
        super().__init__(
            cluster=drawing.cluster,
            workload=drawing.source,
            qps=None,
            requests_per_episode=requests_per_episode,
            reward=reward,
            observation=observation,
            engine=engine,
        )
        if n_rows < len(drawing.cluster):
            raise InputError(
                f"n_rows must be at least {len(drawing.cluster)}, the number of replicas, got "
                f"{n_rows}"
            )
        self.drawing, self.rule, self.spread = drawing, rule, spread
        self.observation_space = with_scores(self._columns.space(n_rows))
        self.action_space = spaces.Discrete(n_rows)
        self._scores: list[RuleScores] = []

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Returns which rows may be chosen, shape (n_rows,)."""
        masks = np.zeros(int(self.action_space.n), dtype=np.int8)  # type: ignore[attr-defined]
        masks[: len(self.cluster)] = self._running().mask()
        return masks

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Routes the request at hand, and tells the rule so."""
        run = self._running()
        if not run.done:
            self._scores[run.gateway].chosen(checked_action(action, run))
        return super().step(action)

    def _draw(self) -> Workload:
        least, most = (1 - self.spread), (1 + self.spread)
        share = self.np_random.uniform(least, most) if self.spread else 1.0
        n_requests = max(round(share * self.requests_per_episode), 1)
        workload, self.cluster = self.drawing.draw(n_requests, self.np_random)
        told = self.observation_config
        self._scores = [
            RuleScores(self.rule, len(self.cluster), told, gateway)
            for gateway in range(told.gateways)
        ]
        return workload

    def _observe(self) -> Observation:
        run, shape = self._running(), self.observation_space.shape
        assert shape is not None
        rows, mask = run.rows(), run.mask()
        scores = self._scores[run.gateway].scores(rows, mask)
        observation = np.zeros(shape, dtype=np.float32)
        observation[:, -1] = NOBODY
        observation[: len(rows), :-1] = self._columns.scaled(rows)
        observation[: len(rows), -1] = np.minimum(scores, FORBIDDEN)
        return observation


def with_scores(space: spaces.Box) -> spaces.Box:
    """Returns the space of observations (n_rows, n_columns) with a rule's scores behind them."""
    last = (0, 0), (0, 1)
    low = np.pad(space.low, last, constant_values=NOBODY)
    high = np.pad(space.high, last, constant_values=FORBIDDEN)
    return spaces.Box(low, high, dtype=np.float32)
