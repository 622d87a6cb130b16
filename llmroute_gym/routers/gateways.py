"""The routers of a run, one for each gateway, and when they are taught."""

import copy

import numpy as np

from llmroute_gym.routers.base import Router
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.sim.run import Run


class Gateways:
    """The routers of a run of which nothing has happened yet; they forget the past.

    Args:
        run: its observation says how many gateways there are; each but a single one gets a copy of
            the router and random numbers of its own.
        router: any.
        rng: all randomness.

    Attributes:
        routers: (n_gateways,), which take turns.
    """

    def __init__(self, run: Run, router: Router, rng: np.random.Generator) -> None:
        n = run.observation.gateways
        self.routers = [router] if n == 1 else [copy.deepcopy(router) for _ in range(n)]
        self._run = run
        for one, own in zip(self.routers, [rng] if n == 1 else rng.spawn(n), strict=True):
            one.meet(run.cluster)
            one.reset(len(run.cluster), len(run.workload), own)
            one.attend(run)
        self._lessons = [iter(one.lessons(len(run.workload))) for one in self.routers]
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
