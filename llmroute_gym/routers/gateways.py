"""The routers of a run, one for each gateway, and when they are taught."""

from copy import deepcopy

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run


def at_gateways(
    router: Router,
    told: ObservationConfig,
    cluster: Cluster,
    n_requests: int,
    rng: np.random.Generator,
) -> list[Router]:
    """Returns the router of each gateway, reset; decision i of a run is the (i mod gateways)-th's.

    Args:
        router: is itself the only one; of several each is a copy, with randomness of its own.
        told: what routers are told, by how many gateways.
        cluster: what they choose from.
        n_requests: requests to come to all of them together.
        rng: all of their randomness.
    """
    gateways = told.gateways
    routers = [router] if gateways == 1 else [deepcopy(router) for _ in range(gateways)]
    streams = [rng] if gateways == 1 else rng.spawn(gateways)
    for gateway, (one, own) in enumerate(zip(routers, streams, strict=True)):
        one.meet(cluster)
        one.join(told, gateway)
        one.reset(len(cluster), n_requests, own)
    return routers


class Gateways:
    """The routers of a run of which nothing has happened yet; they forget the past.

    Args:
        run: its observation says how many gateways there are.
        router: any.
        rng: all randomness.

    Attributes:
        routers: (n_gateways,), which take turns.
    """

    def __init__(self, run: Run, router: Router, rng: np.random.Generator) -> None:
        n, n_requests = run.observation.gateways, len(run.workload)
        self.routers = at_gateways(router, run.observation, run.cluster, n_requests, rng)
        self._run = run
        for one in self.routers:
            one.attend(run)
        self._lessons = [iter(one.lessons(n_requests)) for one in self.routers]
        self._due = [self._following(gateway) for gateway in range(n)]

    def router(self) -> Router:
        """Returns the one that decides about the request at hand, taught if it is time."""
        run = self._run
        if run.decision == self.next_lesson:
            gateway = run.gateway
            placed = run.decided()[gateway :: len(self.routers)]
            self.routers[gateway].learn(Lesson.of(run.outcome(), placed))
            self._due[gateway] = self._following(gateway)
        return self.routers[run.gateway]

    @property
    def next_lesson(self) -> int | None:
        """The decision before which a router is to be taught next, None if there is none."""
        return min((due for due in self._due if due is not None), default=None)

    def _following(self, gateway: int) -> int | None:
        own = next(self._lessons[gateway], None)
        return None if own is None else own * len(self.routers) + gateway
