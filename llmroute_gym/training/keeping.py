"""Keeping the best weights of a training, by the tail on scenarios of their own."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.compare.search.measuring import Batch, Measuring, Stage
from llmroute_gym.compare.search.pools import Pool
from llmroute_gym.compare.search.scoring import score
from llmroute_gym.config import DomainsConfig, SearchingConfig
from llmroute_gym.routers import Router, make
from llmroute_gym.sb3.counters import callback_state, forget_if_new
from llmroute_gym.sb3.policy_router import router_of

log = logging.getLogger(__name__)

BATCH = Batch(Stage.CHOICE)


class KeepBest(BaseCallback):
    """Measures the policy now and then, and keeps the weights that were best.

    What is measured is what the search for a rule minimises: the weighted tail relative to the rule
    that is corrected, with a price on a TTFT P99 that exceeds `ttft_p99_at_most` times that of
    `lor`. All meet the same requests; the weights that a training starts with are a candidate too.

    Args:
        pools: what is served.
        rule: what the policy started as.
        domains: how often, and how much.
    """

    STATE = "keep_best"

    def __init__(self, pools: Sequence[Pool], rule: Router, domains: DomainsConfig) -> None:
        super().__init__()
        self._every = domains.kept_every
        self._measuring = Measuring(
            pools,
            SearchingConfig(
                metric="tail",
                ttft_p99_at_most=domains.ttft_p99_at_most,
                requests=domains.kept_requests,
                final_runs=domains.kept_runs,
            ),
        )
        self._start = self._measuring.measured(rule, BATCH)
        limited = domains.ttft_p99_at_most is not None
        self._limiting = self._measuring.measured(make("lor"), BATCH) if limited else None

    def _on_training_start(self) -> None:
        forget_if_new(self.model, self.STATE)

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        rollout = model.num_timesteps // (model.n_steps * model.n_envs)
        if rollout % self._every == 0:
            self._measure()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._measure()

    def _measure(self) -> None:
        state = callback_state(self.model, self.STATE)
        logs = self._measuring.measured(router_of(self.model), BATCH)
        found = score(self._measuring, logs, self._start, self._limiting)
        self.logger.record("validation/tail", math.exp(found.objective))
        self.logger.record("validation/ttft_p99", found.ttft_p99)
        if found.told < state.get("told", math.inf):
            weights = self.model.policy.state_dict()
            state.update(
                told=found.told,
                tail=math.exp(found.objective),
                timesteps=self.model.num_timesteps,
                weights={name: value.tolist() for name, value in weights.items()},
            )

    def restore(self) -> None:
        """Gives the policy the best weights."""
        state = callback_state(self.model, self.STATE)
        own = self.model.policy.state_dict()
        weights = state.pop("weights")
        self.model.policy.load_state_dict(
            {name: th.tensor(weights[name], dtype=own[name].dtype) for name in own}
        )
        log.info(
            "kept the weights after %d requests: weighted tail %.4f times the rule's on the "
            "scenarios of domains.kept_by",
            state["timesteps"],
            state["tail"],
        )
