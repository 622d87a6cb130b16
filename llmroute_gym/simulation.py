"""One call from a workload, a cluster and a router to what became of every request."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.routers import Router, make
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.reference import ReferenceRun
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.submission import checked_assignment
from llmroute_gym.sim.workload import Workload

EngineName = Literal["compiled", "reference"]


def _compiled_run(*args: Any, **kwargs: Any) -> Run:
    from llmroute_gym.sim.compiled import CompiledRun  # Numba takes half a second to import

    return CompiledRun(*args, **kwargs)


ENGINES: dict[str, Callable[..., Run]] = {"compiled": _compiled_run, "reference": ReferenceRun}
"""What starts a run, by the engine's name; all take the arguments of `Run`."""


def simulate(
    workload: Workload,
    cluster: Cluster,
    router: str | Router | npt.ArrayLike,
    *,
    engine: EngineName = "compiled",
    seed: int | None = None,
) -> Outcome:
    """Serves a workload with a cluster behind a router.

    Args:
        workload: the requests.
        cluster: the replicas.
        router: a name out of `llmroute_gym.routers.available()`, a `Router` (rule or trained
            policy), or integers of shape (n_requests,) that fix each request's replica.
        engine: `compiled` (Numba) or `reference` (SimPy, readable); the numbers are the same.
        seed: seeds a router that draws random numbers.

    Returns:
        Every request, finished or rejected, in workload order.

    Raises:
        InputError: the router or engine is unknown, an assignment has the wrong shape or an
            index outside the cluster, or a request can run on no replica.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, get_args(EngineName))
    run = ENGINES[engine](workload, cluster)
    if isinstance(router, str):
        router = make(router)
    if not isinstance(router, Router):
        run.replay(checked_assignment(router, workload, cluster))
        return run.outcome()
    route_all(run, router, np.random.default_rng(seed))
    return run.outcome()


def route_all(run: Run, router: Router, rng: np.random.Generator) -> None:
    """Places every request of a run where the router says.

    Raises:
        InputError: the router names a replica that its mask forbids.
    """
    router.reset(len(run.cluster), len(run.workload), rng)
    while not run.done:
        mask = run.mask()
        replica = router.route(run.rows(), mask)
        if not (0 <= replica < len(mask) and mask[replica]):
            raise InputError(
                f"router {router!r} chose replica {replica} for request {run.next_request}; "
                f"it may choose {np.flatnonzero(mask).tolist()}"
            )
        run.place(replica)
