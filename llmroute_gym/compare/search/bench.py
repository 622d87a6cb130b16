"""One workload and the replicas that serve it, for many routers one after another."""

from collections.abc import Mapping
from typing import Any, cast

from llmroute_gym.compare.serving import randomness_of, started, told_to
from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.routers import Router
from llmroute_gym.routers.simulation import route_all, served_by_rule
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.compiled import CompiledRun


class Bench:
    """What candidates are measured on; outcomes are those of `serving.serve`.

    Candidates are all told the same, so that the run of one is taken back for the next: a new one
    costs as much as hundreds of decisions.

    Args:
        workload: the requests.
        cluster: the replicas.
        seed: of a router's own randomness.
        observation: what a router is told that does not ask for anything itself.
        view: keys of `ObservationConfig` that hold whatever the router asks for.
        keeps: whether a run is kept for the next router; its memory is then in use all the time.
    """

    def __init__(
        self,
        workload: Workload,
        cluster: Cluster,
        seed: int,
        observation: ObservationConfig,
        view: Mapping[str, Any],
        *,
        keeps: bool,
    ) -> None:
        self._workload, self._cluster, self._keeps = workload, cluster, keeps
        self._config = EvaluationConfig(seed=seed)
        self._observation, self._view = observation, view
        self._run: CompiledRun | None = None

    def serve(self, router: Router) -> Outcome:
        """Returns what becomes of the requests under a router."""
        told = told_to(router, self._observation, self._view)
        guesses, choices = randomness_of(0, self._config)
        run = self._run
        if run is not None and run.observation == told:
            run.rewind()
        else:
            config = self._config
            run = cast(CompiledRun, started(self._workload, self._cluster, told, config, guesses))
            self._run = run if self._keeps else None
        if not served_by_rule(run, router, choices):
            route_all(run, router, choices)
        return run.outcome()
