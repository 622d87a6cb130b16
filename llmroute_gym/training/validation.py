"""Whether the policy that will route is the one that was trained, seen on a few runs at the end.

Training draws the replicas by chance, and a router takes the most probable one. A policy that is
level with round robin when drawn can be far worse by its most probable replica, and no curve of the
training shows it.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.routers import Router, make
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.policy_router import router_of
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.outcome import percentile
from llmroute_gym.sim.sources import WorkloadSource

log = logging.getLogger(__name__)

LOADS = (1.0, 1.2)
"""Multiples of the trained load."""
RUNS = 4
"""At each load, at the least."""
REQUESTS = 1000
"""At each load, at the least: the P99 of fewer says little."""
SEED = 3_000_000
"""Seeds the requests and the draws, which are those of no training and no comparison."""
APART = 0.1
"""From this share on, P99s are apart."""


class Tails(NamedTuple):
    """P99 of the end-to-end latency at one load, in seconds.

    Attributes:
        qps: the load, requests per second.
        argmax: of the policy's most probable replica.
        sampled: of a replica drawn from the policy's probabilities.
        round_robin: of round robin.
    """

    qps: float
    argmax: float
    sampled: float
    round_robin: float


@dataclass(frozen=True, eq=False)
class Validation:
    """Requests to validate a policy on, drawn before it is trained.

    Attributes:
        cluster: what they are routed to.
        observation: what the router is told.
        config: the seed, and how much is served at each load.
        workloads: by load, requests per second.
    """

    cluster: Cluster
    observation: ObservationConfig
    config: EvaluationConfig
    workloads: dict[float, list[Workload]]

    @classmethod
    def draw(
        cls,
        cluster: Cluster,
        source: WorkloadSource,
        observation: ObservationConfig,
        qps: float,
        requests: int,
    ) -> Self:
        """Draws the requests; nothing is drawn from the generators of the training.

        Args:
            cluster: what they are routed to.
            source: what they are drawn from.
            observation: what the router is told.
            qps: the trained load, requests per second.
            requests: of a run; queues may take more than an episode to grow.
        """
        config = EvaluationConfig(
            runs=max(RUNS, math.ceil(REQUESTS / requests)), requests=requests, seed=SEED
        )
        rates = [load * qps for load in LOADS]
        drawn = {rate: common_workloads(source.with_qps(rate), cluster, config) for rate in rates}
        return cls(cluster, observation, config, drawn)

    def examine(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Returns what is wrong with a policy: the names of the findings, each with a sentence."""
        tails = self.tails(checkpoint)
        log.info(
            "validation: P99 of the end-to-end latency %s",
            "; ".join(
                f"at {one.qps:.3g} requests/s {one.argmax:.3g} s by the most probable replica, "
                f"{one.sampled:.3g} s drawn as in training, round robin's {one.round_robin:.3g} s"
                for one in tails
            ),
        )
        return findings(tails)

    def tails(self, checkpoint: Checkpoint) -> list[Tails]:
        """Serves the requests, and returns the latencies at each load."""
        routers: tuple[Router, ...] = (
            router_of(checkpoint),
            router_of(checkpoint, np.random.default_rng(SEED)),
            make("round_robin"),
        )
        together = [workload for some in self.workloads.values() for workload in some]
        by_router = []
        for router in routers:
            outcomes = serve(router, together, self.cluster, self.config, self.observation)
            ends = np.concatenate([outcome.e2e_s for outcome in outcomes])
            parts = np.split(ends, len(self.workloads))
            by_router.append([percentile(part, 99) for part in parts])
        return [Tails(qps, *p99s) for qps, *p99s in zip(self.workloads, *by_router, strict=True)]


def findings(tails: Sequence[Tails]) -> dict[str, str]:
    """Returns which P99s are apart: the names of the findings, each with a sentence.

    Args:
        tails: of each load; the one where they are furthest apart is told.
    """
    found = {}
    one = max(tails, key=lambda one: abs(_change(one.argmax, one.sampled)))
    change = _change(one.argmax, one.sampled)
    if abs(change) > APART:
        found["argmax_differs"] = (
            f"at {one.qps:.3g} requests/s the P99 of the end-to-end latency is {one.argmax:.3g} s "
            f"by the policy's most probable replica and {one.sampled:.3g} s drawn as in training "
            f"({change:+.0%})"
        )
    how, p99, one = max(
        (
            (how, p99, one)
            for one in tails
            for how, p99 in (
                ("by its most probable replica", one.argmax),
                ("drawn as in training", one.sampled),
            )
        ),
        key=lambda case: _change(case[1], case[2].round_robin),
    )
    change = _change(p99, one.round_robin)
    if change > APART:
        found["worse_than_round_robin"] = (
            f"at {one.qps:.3g} requests/s the P99 of the end-to-end latency is {p99:.3g} s with "
            f"the policy {how} and {one.round_robin:.3g} s with round robin ({change:+.0%})"
        )
    return found


def _change(value: float, base: float) -> float:
    """Returns how much larger a latency is, as a share; 0 where both are infinite."""
    return 0.0 if value == base else value / base - 1
