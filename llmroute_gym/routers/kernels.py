"""Which routers the compiled engine runs without Python, thousands of times faster."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from llmroute_gym import routers
from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers import Router
from llmroute_gym.routers.asking import ask, wrong_answer
from llmroute_gym.routers.decision import Address
from llmroute_gym.routers.gateways import Gateways
from llmroute_gym.routers.rule import Rule
from llmroute_gym.sim.compiled import CompiledRun, routing
from llmroute_gym.sim.run import Run

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
}


@runtime_checkable
class NearlyRule(Protocol):
    """A router that chooses as a rule does wherever that answers with a replica."""

    def sure_rule(self) -> Rule | None:
        """Returns the rule, None where there is none after all."""
        ...


def serve_in_kernel(run: CompiledRun, router: Router, rng: np.random.Generator) -> bool:
    """Serves the whole run where the router's rule is known to the kernels.

    Args:
        run: not started yet.
        router: one of the package is compared by its very class: a subclass may route otherwise.
        rng: the router's randomness.

    Returns:
        Whether it did; if not, nothing has happened.

    Raises:
        InputError: a rule chose a replica that its mask forbids.
    """
    serve = _SERVE.get(type(router))
    if serve is None or not run.plain or not _told_as_usual(run.observation):
        return serve_by_rule(run, router, rng)
    Gateways(run, router, rng)
    serve(run, router)
    return True


def serve_by_rule(run: Run, router: Router, rng: np.random.Generator) -> bool:
    """Serves the whole run by a `Rule`, or by one that nearly stands in for the router.

    Every decision is what `route_all` would take.

    Args:
        run: not started yet.
        router: of any class.
        rng: the router's randomness.

    Returns:
        Whether it did; if not, since run or router are of another kind, nothing has happened.

    Raises:
        InputError: the rule chose a replica that its mask forbids.
    """
    if not isinstance(run, CompiledRun) or (rule := _rule_of(router)) is None:
        return False
    gateways = Gateways(run, router, rng)
    rules = [one if isinstance(one, Rule) else copy(rule) for one in gateways.routers]
    if rule is not router:
        for one in rules:
            one.reset(len(run.cluster), len(run.workload), rng)
    draws = np.stack([one.draws for one in rules])
    memory = np.stack([one.memory for one in rules])
    for one, own in zip(rules, memory, strict=True):
        one.memory = own  # what it is taught later stands where the kernel looks
    choose, constants = Address(rule.decide), rule.constants()
    while not run.done:
        gateways.router()  # taught, if it is time
        choice = run.serve_by(choose, draws, constants, memory, until=gateways.next_lesson)
        if choice is not None and rule is router:
            raise wrong_answer(run, router, choice)
        if choice is not None:
            ask(run, gateways.router())
    return True


def _rule_of(router: Router) -> Rule | None:
    """Returns the rule that a kernel may serve by in a router's place."""
    if isinstance(router, Rule):
        return router if type(router).route is Rule.route else None
    return router.sure_rule() if isinstance(router, NearlyRule) else None


def _told_as_usual(observation: ObservationConfig) -> bool:
    """Whether rules see the engines as they are, which is what the kernels of some assume."""
    usual = ObservationConfig()
    same = replace(
        observation,
        predicted_output_sigma=usual.predicted_output_sigma,
        columns=usual.columns,
        prefix_view=usual.prefix_view,
        events_lag_s=usual.events_lag_s,
        tree_blocks=usual.tree_blocks,
    )
    return same == usual
