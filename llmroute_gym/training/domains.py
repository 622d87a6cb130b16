"""What a policy that corrects a rule is trained on: one scenario, or several at once."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from llmroute_gym.compare.search.pools import Pool, named_pool
from llmroute_gym.config import ObservationConfig, RewardConfig, TrainConfig
from llmroute_gym.envs.drawn_env import DrawnEnv
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.residual import scored_rule
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sb3 import RecentLatencies, Replayable
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource

log = logging.getLogger(__name__)

RUNS = 8
"""Of a scenario, that the mean latency of the rule is taken from."""
SEED = 4_000_000
"""Seeds them, as no training and no comparison."""


@dataclass(frozen=True)
class Domains:
    """The scenarios of a training.

    Attributes:
        pools: what episodes are drawn from.
        rewards: of each pool.
        rule: whose scores the observations show.
    """

    pools: Sequence[Pool]
    rewards: Sequence[RewardConfig]
    rule: EstimatedLatency

    @classmethod
    def of(cls, settings: TrainConfig, cluster: Cluster, source: WorkloadSource) -> Self:
        """Builds what the settings name: the scenarios, else the one of cluster and source.

        Raises:
            InputError: a scenario or the rule is wrong.
        """
        assert settings.model.rule is not None
        rule, given = scored_rule(settings.model.rule), settings.domains
        pools = named_pools(settings, given.scenarios)
        pools = pools or [Pool("as in the settings", cluster, source, settings.observation)]
        rewards = [settings.reward] * len(pools)
        if given.late_after is not None:
            rewards = [
                replace(reward, latency_threshold=given.late_after * mean_s(pool, rule, settings))
                for pool, reward in zip(pools, rewards, strict=True)
            ]
            for pool, reward in zip(pools, rewards, strict=True):
                log.info("%s: late after %.3g s", pool.title, reward.latency_threshold)
        return cls(pools, rewards, rule)

    def environments(self, settings: TrainConfig) -> VecNormalize:
        """Builds the training environments, in which the scenarios take turns."""
        n_rows = max(len(pool.cluster) for pool in self.pools)

        def made(index: int) -> Replayable:
            pool = self.pools[index % len(self.pools)]
            env = DrawnEnv(
                pool,
                self.rule,
                n_rows,
                spread=settings.domains.spread,
                requests_per_episode=settings.env.requests_per_episode,
                reward=self.rewards[index % len(self.pools)],
                observation=told(pool, settings.observation),
                engine=settings.env.engine,
            )
            return Replayable(RecentLatencies(env))

        num_envs = settings.env.num_envs
        env = DummyVecEnv([partial(made, index) for index in range(num_envs)])
        env.seed(settings.seed)
        return VecNormalize(VecMonitor(env), norm_obs=False, gamma=settings.training.gamma)


def named_pools(settings: TrainConfig, scenarios: Sequence[object]) -> list[Pool]:
    """Returns what scenarios are drawn from.

    Args:
        settings: of the whole run.
        scenarios: as settings name them.

    Raises:
        InputError: one of them is wrong.
    """
    requests = math.ceil((1 + settings.domains.spread) * settings.env.requests_per_episode)
    named = settings.observation, settings.domains.traces, requests
    return [named_pool(one, *named) for one in scenarios]  # type: ignore[arg-type]


def told(pool: Pool, observation: ObservationConfig) -> ObservationConfig:
    """Returns what a router is told in a scenario."""
    return replace(observation, **pool.scenario.view)


def mean_s(pool: Pool, rule: EstimatedLatency, settings: TrainConfig) -> float:
    """Returns the mean end-to-end latency of a rule in a scenario, seconds, rejected ones aside."""
    found = []
    for run in range(RUNS):
        rng = np.random.default_rng([SEED, run])
        workload, cluster = pool.draw(settings.env.requests_per_episode, rng)
        seen = told(pool, settings.observation)
        found.append(simulate(workload, cluster, rule, seed=run, observation=seen).e2e_s)
    latencies = np.concatenate(found)
    return float(latencies[np.isfinite(latencies)].mean())
