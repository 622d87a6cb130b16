"""Which routers the compiled engine runs without Python, thousands of times faster."""

from collections.abc import Callable

import numpy as np

from llmroute_gym import routers
from llmroute_gym.routers import Router
from llmroute_gym.sim.compiled import CompiledRun, routing

Serve = Callable[[CompiledRun, Router], None]


def _in_turn(run: CompiledRun, router: Router) -> None:
    n_requests, n_replicas = len(run.workload), len(run.cluster)
    rounds = -(-n_requests // n_replicas)
    run.replay(np.tile(np.arange(n_replicas), rounds)[:n_requests])


def _at_random(run: CompiledRun, router: Router) -> None:
    assert isinstance(router, routers.Random)
    run.replay((router.draws[:, 0] * len(run.cluster)).astype(np.int64))


def _better_of_two(run: CompiledRun, router: Router) -> None:
    assert isinstance(router, routers.PowerOfTwo)
    if len(run.cluster) == 1:
        _in_turn(run, router)
    else:
        run.serve_better_of_two(router.draws)


def _least(rule: int, *, lazily: bool) -> Serve:
    return lambda run, router: run.serve_least(rule, lazily=lazily)


_SERVE: dict[type[Router], Serve] = {
    routers.RoundRobin: _in_turn,
    routers.Random: _at_random,
    routers.PowerOfTwo: _better_of_two,
    routers.LeastOutstanding: _least(routing.IN_FLIGHT, lazily=True),
    routers.SpeedLeastOutstanding: _least(routing.IN_FLIGHT_BY_SPEED, lazily=True),
    routers.JoinShortestQueue: _least(routing.WAITING, lazily=False),
    routers.LeastPending: _least(routing.WAITING, lazily=False),
    routers.LeastTokens: _least(routing.PROMPT_TOKENS, lazily=False),
}


def serve_in_kernel(run: CompiledRun, router: Router, rng: np.random.Generator) -> bool:
    """Serves the whole run where the router's rule is known to the kernels.

    Args:
        run: not started yet.
        router: compared by its very class: a subclass may route otherwise.
        rng: the router's randomness.

    Returns:
        Whether it did; if not, nothing has happened.
    """
    serve = _SERVE.get(type(router))
    seen = run.observation
    if serve is None or not run.plain or seen.signal_interval_s > 0 or seen.gateways > 1:
        return False
    router.reset(len(run.cluster), len(run.workload), rng)
    serve(run, router)
    return True
