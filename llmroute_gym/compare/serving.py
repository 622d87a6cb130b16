"""Serving the common requests with a router."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np

from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.routers import Router
from llmroute_gym.routers.simulation import route_all, served_by_rule
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.predictions import predicted_output_tokens
from llmroute_gym.sim.run import Run


class RoutesMany(Protocol):
    """A router without a memory of its own, which can decide in several clusters at once."""

    def route_many(self, rows: FloatArray, masks: BoolArray) -> IntArray:
        """Returns replicas (n,) for rows (n, n_replicas, n_columns), masks (n, n_replicas)."""
        ...


def serve(
    router: Router,
    workloads: Sequence[Workload],
    cluster: Cluster | Sequence[Cluster],
    config: EvaluationConfig,
    observation: ObservationConfig,
    on_run: Callable[[], object] = lambda: None,
    *,
    first: int = 0,
    view: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """Serves every workload with one router.

    Args:
        router: reset before each run.
        workloads: from `common_workloads`.
        cluster: the replicas, common to all workloads or of each.
        config: the seed of a router's own randomness, and the engine.
        observation: what a router is told that does not ask for anything itself.
        on_run: called after each run.
        first: number of the first of the workloads among all runs of the comparison.
        view: keys of `ObservationConfig` that hold whatever the router asks for.

    Returns:
        One outcome per workload.
    """
    runs: list[Run] = []
    randomness = []
    told = told_to(router, observation, view)
    each = [cluster] * len(workloads) if isinstance(cluster, Cluster) else cluster
    for index, (workload, replicas) in enumerate(zip(workloads, each, strict=True), first):
        guesses, choices = randomness_of(index, config)
        runs.append(started(workload, replicas, told, config, guesses))
        randomness.append(choices)
    left = []
    for run, rng in zip(runs, randomness, strict=True):
        if served_by_rule(run, router, rng):
            on_run()
        elif hasattr(router, "route_many"):
            left.append(run)
        else:
            route_all(run, router, rng)
            on_run()
    if left:
        _route_together(left, cast(RoutesMany, router), on_run)
    return [run.outcome() for run in runs]


def told_to(
    router: Router, observation: ObservationConfig, view: Mapping[str, Any] | None
) -> ObservationConfig:
    """Returns what a router is told; arguments as for `serve`."""
    return replace(router.observation or observation, **(view or {}))


def randomness_of(
    index: int, config: EvaluationConfig
) -> tuple[np.random.Generator, np.random.Generator]:
    """Returns what predicted lengths of a run are drawn from, and the randomness of its router."""
    guesses, choices = np.random.default_rng([config.seed, index, 1]).spawn(2)
    return guesses, choices


def started(
    workload: Workload,
    cluster: Cluster,
    told: ObservationConfig,
    config: EvaluationConfig,
    guesses: np.random.Generator,
) -> Run:
    """Returns a run of which nothing has happened yet."""
    predicted = predicted_output_tokens(workload, told.predicted_output_sigma, guesses)
    start = ENGINES[config.engine]
    return start(workload, cluster, observation=told, predicted_output_tokens=predicted)


def _route_together(runs: Sequence[Run], router: RoutesMany, on_run: Callable[[], object]) -> None:
    """Takes the runs one decision further at a time: a network decides many as fast as one."""
    while going := [run for run in runs if not run.done]:
        rows = np.stack([run.rows() for run in going])
        masks = np.stack([run.mask() for run in going])
        for run, replica in zip(going, router.route_many(rows, masks).tolist(), strict=True):
            run.place(replica)
            if run.done:
                on_run()
