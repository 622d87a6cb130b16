"""One of the routers that take the decisions in turn: its books, its views, its polls."""

import math
from collections.abc import Sequence
from typing import Protocol

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import AGING, Signal
from llmroute_gym.sim.ledger import TOLD, Ledger
from llmroute_gym.sim.reference.prefix_views import PrefixView
from llmroute_gym.sim.reference.request import Request


class Told(Protocol):
    """What a gateway is told of a replica."""

    def engine_signals(self, now_s: float) -> list[float]:
        """Returns the columns that the engine itself reports, in order of `Signal`."""


class Gateway:
    """A router's knowledge.

    Args:
        views: per replica, what it takes to be in the prefix cache.
        told: what routers are told.
        index: of this one, 0 to gateways - 1.
        now_s: when the run starts, seconds.

    Attributes:
        ledger: what it counts by itself.
    """

    def __init__(
        self, views: Sequence[PrefixView], told: ObservationConfig, index: int, now_s: float
    ) -> None:
        self.ledger = Ledger(len(views), told.information, now_s)
        self._views = views
        self._read = [AGING.index(signal) for signal in TOLD[told.information]]
        """Which of the engines' signals it takes over."""
        self._interval_s = told.signal_interval_s
        self._shift_s = told.signal_interval_s * index / told.gateways
        self._read_at_s = -math.inf

    def decide(self, request: Request, replica: int | None) -> None:
        """Notes a decision about a request that arrives now; None rejects it."""
        if replica is None:
            self.ledger.rejected(request.arrived_at_s)
            return
        view, prompt = self._views[replica], request.prompt_tokens
        cached = view.cached_tokens(request)
        self.ledger.placed(request.index, replica, prompt, cached, request.arrived_at_s)
        view.sent(request)

    def poll_as_of(self, time_s: float, replicas: Sequence[Told]) -> None:
        """Reads the engines' signals if it is time, with nothing at `time_s` or later done yet."""
        ticks = math.floor((time_s - self._shift_s) / self._interval_s)
        read_s = min(ticks * self._interval_s + self._shift_s, time_s)
        if read_s > self._read_at_s:
            self.poll(read_s, replicas)

    def poll(self, now_s: float, replicas: Sequence[Told]) -> None:
        """Reads the engines' signals."""
        self._read_at_s = now_s
        for index, replica in enumerate(replicas):
            signals = replica.engine_signals(now_s)
            self.ledger.read(index, [signals[place] for place in self._read])

    def rows(self, now_s: float, replicas: Sequence[Told]) -> FloatArray:
        """Returns what it knows now, (n_replicas, N_SIGNALS), but for the request at hand."""
        if self._interval_s == 0 and self._read:
            self.poll(now_s, replicas)
        rows = self.ledger.rows(now_s)
        rows[:, Signal.VIEW_TOKENS] = [view.known_tokens() for view in self._views]
        return rows

    def write_request(self, rows: FloatArray, request: Request, now_s: float) -> None:
        """Fills the columns about the request at hand that depend on who decides."""
        rows[:, Signal.CACHED_PREFIX] = [
            view.cached_tokens(request) / request.prompt_tokens for view in self._views
        ]
        rows[:, Signal.SINCE_LAST_ARRIVAL_S] = now_s - self.ledger.previous_arrival_s
