"""Raising the load in stages."""

import logging
from itertools import accumulate
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.config import CurriculumConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.counters import callback_state, forget_if_new

log = logging.getLogger(__name__)


class QPSCurriculum(BaseCallback):
    """Moves from stage to stage of arrival rates at the ends of rollouts.

    A new rate holds for the episodes that start after it was set. The stage is kept with the model,
    so that a resumed training goes on in it; `curriculum/stage` (from 0), and `curriculum/qps`, the
    rate of the episodes that began last, are logged with each rollout.

    A stage ends at the first rollout's end after its requests, or, with `advance="plateau"`, when
    the P95 of end-to-end latency, the mean of that of the episodes which ended together, has not
    improved by more than `plateau_tolerance` for `plateau_episodes` of them. Episodes that began in
    the stage before do not count.

    Args:
        config: the stages, at least one.
        total: requests of the whole training.
        verbose: as in all callbacks.
    """

    STATE = "curriculum"
    P95 = "episode_metrics/e2e_p95_s"

    def __init__(self, config: CurriculumConfig, total: int, verbose: int = 0) -> None:
        super().__init__(verbose)
        config.validate()
        if not config.stages:
            raise InputError("a curriculum needs at least one stage; set curriculum.stages")
        self.config, self.total = config, total
        n_stages = len(config.stages)
        shares = config.requests or [total // n_stages] * (n_stages - 1)
        self.ends = list(accumulate(shares))

    @property
    def stage(self) -> int:
        """The stage at hand, from 0."""
        return int(self._state.get("stage", 0))

    @property
    def qps(self) -> float:
        """The arrival rate of the stage at hand, requests per second."""
        return self.config.stages[self.stage]

    @property
    def _state(self) -> dict[str, Any]:
        return callback_state(self.model, self.STATE)

    def _on_training_start(self) -> None:
        forget_if_new(self.model, self.STATE)
        self._enter(self.stage)

    def _on_step(self) -> bool:
        ended = [info[self.P95] for info in self.locals["infos"] if self.P95 in info]
        if ended:
            self._state["running_qps"] = self.qps
            self._add(float(np.mean(ended)))
        return True

    def _on_rollout_end(self) -> None:
        self.logger.record("curriculum/stage", self.stage)
        self.logger.record("curriculum/qps", self._state.get("running_qps", self.qps))
        following = self._following()
        if following > self.stage and self.num_timesteps < self.total:
            self._enter(following)
            log.info(
                "curriculum: stage %d of %d after %d requests, %g requests/s from the next "
                "episode on",
                following + 1,
                len(self.config.stages),
                self.num_timesteps,
                self.qps,
            )

    def _following(self) -> int:
        last = len(self.config.stages) - 1
        if self.config.advance == "requests":
            over = self.stage < last and self.num_timesteps >= self.ends[self.stage]
            return self.stage + over
        stale = int(self._state.get("stale", 0))
        return min(self.stage + (stale >= self.config.plateau_episodes), last)

    def _add(self, p95: float) -> None:
        """Compares the P95 of ended episodes with the best of the stage."""
        state = self._state
        if state.pop("first_is_old", False):
            return
        best = state.get("best_p95_s")
        if best is None or p95 < best * (1 - self.config.plateau_tolerance):
            state["best_p95_s"], state["stale"] = p95, 0
        else:
            state["stale"] = int(state.get("stale", 0)) + 1

    def _enter(self, stage: int) -> None:
        if stage != self.stage:
            running = self._state.get("running_qps", self.qps)
            self._state.clear()
            self._state.update(first_is_old=True, running_qps=running)
        self._state["stage"] = stage
        self.training_env.env_method("set_qps", self.qps)
