"""One call from a workload, a cluster and a router to what became of every request."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, checked_name, shown
from llmroute_gym.ground.checks import count
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.adapters import adapted
from llmroute_gym.routers.asking import ask
from llmroute_gym.routers.gateways import Gateways
from llmroute_gym.sim.engines import ENGINES, EngineName
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.predictions import predicted_output_tokens
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.workload import Workload


def simulate(
    workload: Workload,
    cluster: Cluster,
    router: str | Mapping[str, Any] | Router | npt.ArrayLike | Any,
    *,
    engine: EngineName = "compiled",
    seed: int | None = None,
    observation: ObservationConfig | None = None,
) -> Outcome:
    """Serves a workload with a cluster behind a router.

    Args:
        workload: the requests.
        cluster: the replicas.
        router: a name out of `llmroute_gym.routers.available()`, with options as
            `llmroute_gym.routers.make` takes them, a `Router` (which is told what it
            asks for), what an adapter makes one of (a model of Stable-Baselines3, once
            `llmroute_gym.sb3` is imported), or integers of shape (n_requests,) that fix each
            request's replica.
        engine: `compiled` (Numba) or `reference` (SimPy, readable); the numbers are the same.
        seed: an integer >= 0 that seeds a router that draws random numbers; None draws others
            each time.
        observation: what the router is told in place of what it asks for: how old that is, or by
            how many gateways decisions are taken, each of which then has a copy of the router. None
            leaves it to the router. It changes nothing where integers fix the replicas.

    Returns:
        Every request, finished or rejected, in workload order.

    Raises:
        InputError: an argument has the wrong type or is out of range, the router or engine is
            unknown, an assignment has the wrong shape or an index outside the cluster, or a
            request can run on no replica.
    """
    rng = np.random.default_rng(None if seed is None else count("seed", seed, at_least=0))
    start = ENGINES[checked_name("engine", engine, ENGINES)]
    if isinstance(router, str | Mapping):
        router = make(router)
    elif not isinstance(router, Router):
        router = adapted(router) or router
    if observation is None:
        observation = router.observation if isinstance(router, Router) else None
    elif not isinstance(observation, ObservationConfig):
        raise InputError(
            f"observation must be an ObservationConfig, got {shown(observation)}; write "
            "ObservationConfig(information=..., gateways=...)"
        )
    predicted = None
    if observation is not None and isinstance(workload, Workload):
        predicted = predicted_output_tokens(
            workload, observation.predicted_output_sigma, rng.spawn(1)[0]
        )
    run = start(workload, cluster, observation=observation, predicted_output_tokens=predicted)
    if not isinstance(router, Router):
        rule = any(hasattr(router, name) for name in ("route", "predict"))
        if rule or callable(router) or router is None or np.isscalar(router):
            raise InputError(
                f"router must be a name, a Router or one replica per request, got {shown(router)}; "
                "subclass llmroute_gym.routers.Router for a rule or a policy of your own, or "
                "import llmroute_gym.sb3 for a model of Stable-Baselines3"
            )
        run.replay(router)
        return run.outcome()
    if engine == "reference" or not _served_in_kernel(run, router, rng):
        route_all(run, router, rng)
    return run.outcome()


def _served_in_kernel(run: Run, router: Router, rng: np.random.Generator) -> bool:
    from llmroute_gym.routers.kernels import serve_in_kernel
    from llmroute_gym.sim.compiled import CompiledRun

    return isinstance(run, CompiledRun) and serve_in_kernel(run, router, rng)


def served_by_rule(run: Run, router: Router, rng: np.random.Generator) -> bool:
    """Serves a run as `route_all` does, but in one kernel call.

    Returns:
        Whether it did; if not, since run or router are of another kind, nothing has happened.

    Raises:
        InputError: as there.
    """
    from llmroute_gym.routers.kernels import serve_by_rule

    return serve_by_rule(run, router, rng)


def route_all(run: Run, router: Router, rng: np.random.Generator) -> None:
    """Places every request of a run where the router says, or its copies at several gateways.

    Raises:
        InputError: the router answers with no integer, or with a replica that its mask forbids.
    """
    gateways = Gateways(run, router, rng)
    while not run.done:
        ask(run, gateways.router())
