"""What one router counts by itself, and what it has been told of the engines."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import AGING, N_SIGNALS, Signal
from llmroute_gym.sim.averages import FadingAverage
from llmroute_gym.sim.reference.prefix_views import PrefixView
from llmroute_gym.sim.reference.request import Request


class Told(Protocol):
    """What a gateway is told of a replica."""

    def engine_signals(self, now_s: float) -> list[float]:
        """Returns the columns that the engine itself reports, in order of `Signal`."""


class SentRequests:
    """What a router sent to one replica, as it counts that.

    Args:
        prefixes: what it takes to be in the replica's prefix cache.
        chosen_at: number of its decision that last chose the replica.
    """

    def __init__(self, prefixes: PrefixView, chosen_at: int) -> None:
        self.prefixes = prefixes
        self.chosen_at = chosen_at
        self._prompts: dict[Request, int] = {}
        """Prompt tokens of those that have not ended, in the order in which they were sent."""
        self._uncached: dict[Request, int] = {}
        """Tokens to compute, as it thought, of those without first token."""
        self._ttft = FadingAverage()

    def send(self, request: Request) -> None:
        """Notes that a request goes to the replica."""
        self._prompts[request] = request.prompt_tokens
        self._uncached[request] = request.prompt_tokens - self.prefixes.cached_tokens(request)
        self.prefixes.sent(request)

    def _look(self) -> None:
        """Notes first tokens and ends."""
        started = [request for request in self._uncached if request.started]
        for request in sorted(started, key=lambda request: request.first_token_at_s):
            ttft_s = request.first_token_at_s - request.arrived_at_s
            self._ttft.add(ttft_s, request.first_token_at_s)
            del self._uncached[request]
        for request in [one for one in self._prompts if not math.isnan(one.finished_at_s)]:
            del self._prompts[request]

    def write(self, row: FloatArray, now_s: float, information: str) -> None:
        """Fills the columns of a row that it counts by itself, shape (N_SIGNALS,)."""
        self._look()
        silent = [(request, self._prompts[request]) for request in self._uncached]
        row[Signal.IN_FLIGHT] = len(self._prompts)
        row[Signal.UNCACHED_TOKENS] = sum(self._uncached.values())
        row[Signal.UNCACHED_PAIRS] = sum(
            self._uncached[request] * (prompt - self._uncached[request] / 2)
            for request, prompt in silent
        )
        row[Signal.VIEW_TOKENS] = self.prefixes.known_tokens()
        if information in ("router", "metrics"):
            in_prompts = sum(prompt for _, prompt in silent)
            row[Signal.PENDING_PROMPT_TOKENS] = in_prompts
            row[Signal.CONTEXT_TOKENS] = sum(self._prompts.values()) - in_prompts
            oldest_s = min((request.arrived_at_s for request, _ in silent), default=now_s)
            row[Signal.OLDEST_WAITING_S] = now_s - oldest_s
            row[Signal.TTFT_S] = self._ttft.mean(now_s)
        if information == "router":
            row[Signal.WAITING] = len(silent)
            row[Signal.RUNNING] = len(self._prompts) - len(silent)
            row[[Signal.KV_USAGE, Signal.BATCH_TIME_S, Signal.HIT_RATE]] = 0.0


class Gateway:
    """One of the routers that take the decisions in turn.

    Args:
        views: per replica, what it takes to be in the prefix cache.
        told: what routers are told.
        index: of this one, 0 to gateways - 1.
        now_s: when the run starts, seconds.
    """

    def __init__(
        self, views: Sequence[PrefixView], told: ObservationConfig, index: int, now_s: float
    ) -> None:
        n_replicas = len(views)
        self._sent = [
            SentRequests(view, replica - n_replicas) for replica, view in enumerate(views)
        ]
        self._information = told.information
        self._interval_s = told.signal_interval_s
        self._shift_s = told.signal_interval_s * index / told.gateways
        self._read_at_s = -math.inf
        self._engines: FloatArray = np.zeros((n_replicas, len(AGING)))
        self._decisions = 0
        self._previous_arrival_s = now_s
        self.arrivals = FadingAverage()
        self.latency = FadingAverage()

    def decide(self, request: Request, replica: int | None, now_s: float) -> None:
        """Notes a decision; None is a rejected request."""
        if replica is not None:
            self._sent[replica].send(request)
            self._sent[replica].chosen_at = self._decisions
        self.arrivals.add(1.0, now_s)
        self._previous_arrival_s = now_s
        self._decisions += 1

    def poll_as_of(self, time_s: float, replicas: Sequence[Told]) -> None:
        """Reads the engines' signals if it is time, with nothing at `time_s` or later done yet."""
        ticks = math.floor((time_s - self._shift_s) / self._interval_s)
        read_s = min(ticks * self._interval_s + self._shift_s, time_s)
        if read_s > self._read_at_s:
            self.poll(read_s, replicas)

    def poll(self, now_s: float, replicas: Sequence[Told]) -> None:
        """Reads the engines' signals."""
        self._read_at_s = now_s
        self._engines = np.array([replica.engine_signals(now_s) for replica in replicas])

    def rows(self, now_s: float, replicas: Sequence[Told]) -> FloatArray:
        """Returns what it knows now, (n_replicas, N_SIGNALS), but for the request at hand."""
        if self._interval_s == 0 and self._information != "router":
            self.poll(now_s, replicas)
        n = len(self._sent)
        rows = np.zeros((n, N_SIGNALS))
        rows[:, list(AGING)] = self._engines
        for row, sent in zip(rows, self._sent, strict=True):
            sent.write(row, now_s, self._information)
            row[Signal.ROUNDS_SINCE_CHOSEN] = (self._decisions - sent.chosen_at) / n
        rows[:, Signal.ARRIVAL_RATE] = self.arrivals.rate(now_s) / n
        rows[:, Signal.COMPLETION_RATE] = self.latency.rate(now_s) / n
        rows[:, Signal.E2E_S] = self.latency.mean(now_s)
        rows[:, Signal.NOW_S] = now_s
        return rows

    def write_request(self, rows: FloatArray, request: Request, now_s: float) -> None:
        """Fills the columns about the request at hand that depend on who decides."""
        rows[:, Signal.CACHED_PREFIX] = [
            sent.prefixes.cached_tokens(request) / request.prompt_tokens for sent in self._sent
        ]
        rows[:, Signal.SINCE_LAST_ARRIVAL_S] = now_s - self._previous_arrival_s
