"""What all requests of a gateway share: backends, who decides, counts."""

import itertools
from typing import Protocol

import numpy as np

from llmroute_gym.config import ServeConfig
from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.choosing import Chooser
from llmroute_gym.gateway.meters import Counter, Gauge, Histogram, Meter, Sample
from llmroute_gym.gateway.prompts import TokenRates
from llmroute_gym.gateway.record import Record
from llmroute_gym.ground.arrays import BoolArray

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
OVERHEAD = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5)
RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)


class Live(Protocol):
    """A request that is under way."""

    def look(self, now_s: float) -> None:
        """Ends what has taken too long."""

    def end_now(self) -> None:
        """Ends it, as the gateway ends."""


class Shared:
    """Backends, who decides, and counts.

    Args:
        settings: of the gateway.
        backends: in the order of the router's replicas.
        chooser: decides.
        record: gets a line per request; None for none.

    Attributes:
        own_key: whether clients show a key of the gateway, which no backend gets.
        rates: tokens per byte.
        live: requests under way.
        keys: gives each a number.
        leaving: whether the gateway is about to end, so that nobody should send it requests.
    """

    def __init__(
        self,
        settings: ServeConfig,
        backends: list[Backend],
        chooser: Chooser,
        record: Record | None,
    ) -> None:
        self.settings = settings
        self.backends = backends
        self.chooser = chooser
        self.record = record
        self.own_key = settings.key_env is not None
        self.rates = TokenRates()
        self.live: set[Live] = set()
        self.keys = itertools.count()
        self.leaving = False
        self.requests = Counter(
            "llmroute_requests_total", "Requests that ended, by status.", "backend", "code"
        )
        self.retries = Counter(
            "llmroute_retries_total", "Requests that were tried elsewhere.", "reason"
        )
        self.last_resorts = Counter(
            "llmroute_last_resort_total",
            "Requests that were sent to a backend which is not up, as none was.",
            "backend",
        )
        self.stream_errors = Counter(
            "llmroute_stream_errors_total", "Answers that were cut after their start.", "reason"
        )
        self.disconnects = Counter(
            "llmroute_client_disconnects_total", "Clients that left before the end.", "phase"
        )
        self.ttft = Histogram(
            "llmroute_ttft_seconds", "Seconds to the first event of a streamed answer.", SECONDS
        )
        self.e2e = Histogram("llmroute_e2e_seconds", "Seconds to the end of an answer.", SECONDS)
        self.overhead = Histogram(
            "llmroute_overhead_seconds", "Seconds until a request is sent to a backend.", OVERHEAD
        )
        self.tokens_ratio = Histogram(
            "llmroute_prompt_tokens_error_ratio",
            "Tokens that prompts were taken to have, as a multiple of those the engine counted.",
            RATIOS,
        )

    def allowed(self, tried: set[int]) -> BoolArray:
        """Returns which backends may get a request, shape (n_backends,).

        Where none is up, those are the last resort that are only silent to probes, or left out for
        failures.

        Args:
            tried: those that had their chance.
        """
        most = self.settings.limits.in_flight_per_backend
        found = [one.usable(most) and one.index not in tried for one in self.backends]
        if not any(found) and not any(one.up for one in self.backends):
            found = [one.spare(most) and one.index not in tried for one in self.backends]
        return np.array(found, dtype=np.bool_)

    def place(self, backend: Backend, prompt_tokens: int) -> bool:
        """Counts a request that is sent to a backend; returns whether it is a trial.

        Args:
            backend: one that may get it.
            prompt_tokens: of the request.
        """
        if not backend.usable(self.settings.limits.in_flight_per_backend):
            self.last_resorts.add(backend.name)
        return backend.placed(prompt_tokens)

    @property
    def ready(self) -> bool:
        """Whether any backend takes requests, and the gateway will for a while."""
        most = self.settings.limits.in_flight_per_backend
        return not self.leaving and any(one.usable(most) for one in self.backends)

    def meters(self) -> list[Meter]:
        """Returns all that is measured."""
        return [
            self.requests,
            Gauge("llmroute_inflight", "Requests under way.", self._inflight, "backend", "phase"),
            Gauge(
                "llmroute_pending_prompt_tokens",
                "Prompt tokens of requests without first token.",
                lambda: [((one.name,), one.prompt_tokens) for one in self.backends],
                "backend",
            ),
            self.ttft,
            self.e2e,
            self.overhead,
            self.chooser.decision_seconds,
            self.retries,
            self.last_resorts,
            Gauge(
                "llmroute_backend_up",
                "Whether a backend takes requests: 1, 0.5 on trial, 0.",
                lambda: [((one.name,), one.level) for one in self.backends],
                "backend",
            ),
            Gauge(
                "llmroute_backend_draining",
                "Whether a backend gets no new requests.",
                lambda: [((one.name,), float(one.draining)) for one in self.backends],
                "backend",
            ),
            self.stream_errors,
            self.disconnects,
            self.chooser.fallbacks,
            self.chooser.disagreements,
            self.tokens_ratio,
        ]

    def _inflight(self) -> list[Sample]:
        found: list[Sample] = []
        for one in self.backends:
            found += [((one.name, "waiting"), one.waiting), ((one.name, "running"), one.running)]
        return found
