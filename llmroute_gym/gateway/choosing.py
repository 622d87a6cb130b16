"""Who decides: a rule, a policy, or one with the other beside it on paper; and who steps in."""

import logging
from time import perf_counter

import numpy as np

from llmroute_gym.gateway.deciding import Arrival, Decider
from llmroute_gym.gateway.meters import Counter, Histogram
from llmroute_gym.ground.arrays import BoolArray, FloatArray

log = logging.getLogger(__name__)

DECISION_BOUNDS = (2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)


class Chooser:
    """Takes decisions, and keeps the books of all who could.

    Args:
        main: decides.
        shadow: decides too, and only what it would have done is counted; None for nobody.
        slowest_s: a decision that takes longer is replaced.

    Attributes:
        decision_seconds: how long decisions take.
        fallbacks: decisions that the fewest in flight took instead, by reason.
        disagreements: decisions in which the shadow would have done something else.
    """

    def __init__(self, main: Decider, shadow: Decider | None, slowest_s: float) -> None:
        self._main, self._shadow = main, shadow
        self._deciders = (main,) if shadow is None else (main, shadow)
        self._slowest_s = slowest_s
        self._told: set[str] = set()
        self.decision_seconds = Histogram(
            "llmroute_decision_seconds", "Seconds of a decision, with its rows.", DECISION_BOUNDS
        )
        self.fallbacks = Counter(
            "llmroute_policy_fallbacks_total",
            "Decisions that the fewest in flight took instead.",
            "reason",
        )
        self.disagreements = Counter(
            "llmroute_shadow_disagreements_total",
            "Decisions in which the policy in the shadow would have chosen another backend.",
        )

    @property
    def reads_blocks(self) -> bool:
        """Whether blocks of prompts, or their heads, are of any use."""
        return any(decider.reads_prompts for decider in self._deciders)

    @property
    def read_at_s(self) -> FloatArray:
        """When each engine's metrics were read, (n_backends,) of `perf_counter`."""
        return self._main.read_at_s

    @property
    def in_flight(self) -> int:
        """Requests in the books."""
        return int(sum(decider.in_flight.sum() for decider in self._deciders))

    def choose(self, arrival: Arrival, allowed: BoolArray, now_s: float) -> int:
        """Returns the backend for a request; never fails.

        Args:
            arrival: the request.
            allowed: (n_backends,) which may be chosen, at least one.
            now_s: when, of `perf_counter`.
        """
        choice = self._ask(self._main, arrival, allowed, now_s, "")
        taken_s = perf_counter() - now_s
        self.decision_seconds.add(taken_s)
        if choice is not None and taken_s > self._slowest_s:
            self.fallbacks.add("slow")
            choice = None
        if choice is None:
            in_flight = self._main.in_flight
            choice = int(np.argmin(np.where(allowed, in_flight, np.iinfo(np.int64).max)))
        if self._shadow is not None:
            paper = self._ask(self._shadow, arrival, allowed, now_s, "shadow_")
            if paper is not None and paper != choice:
                self.disagreements.add()
        return choice

    def placed(self, key: int, arrival: Arrival, backend: int, now_s: float) -> None:
        """Notes where a request goes."""
        for decider in self._deciders:
            decider.placed(key, arrival, backend, now_s)

    def rejected(self, now_s: float) -> None:
        """Notes a request for which there was no backend."""
        for decider in self._deciders:
            decider.rejected(now_s)

    def first_token(self, key: int, now_s: float) -> None:
        """Notes the first token of a request."""
        for decider in self._deciders:
            decider.first_token(key, now_s)

    def withdrawn(self, key: int, now_s: float) -> None:
        """Notes that its backend has nothing of a request."""
        for decider in self._deciders:
            decider.withdrawn(key, now_s)

    def ended(self, key: int, now_s: float, *, served: bool) -> None:
        """Notes the end of a request."""
        for decider in self._deciders:
            decider.ended(key, now_s, served=served)

    def read(
        self,
        backend: int,
        waiting: float,
        running: float,
        kv_usage: float,
        hit_rate: float,
        at_s: float,
        batch_time_s: float,
    ) -> None:
        """Notes what an engine publishes."""
        for decider in self._deciders:
            decider.read(
                backend, waiting, running, kv_usage, hit_rate, at_s, batch_time_s=batch_time_s
            )

    def _ask(
        self, decider: Decider, arrival: Arrival, allowed: BoolArray, now_s: float, who: str
    ) -> int | None:
        try:
            return decider.decide(arrival, allowed, now_s)
        except FloatingPointError:
            reason = f"{who}not_finite"
        except Exception:
            reason = f"{who}error"
            if reason not in self._told:
                log.exception("a decision failed; further ones are only counted")
                self._told.add(reason)
        self.fallbacks.add(reason)
        return None
