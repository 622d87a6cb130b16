"""What one router counts by itself, event by event, and what it has been told of the engines.

The reference engine tells it what happens in a run, a real router what happens to its requests: the
rows of both are the same function of the same events.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import AGING, N_SIGNALS, PUBLISHED, Signal
from llmroute_gym.sim.averages import FadingAverage

TOLD: Final[dict[str, tuple[Signal, ...]]] = {
    "engine": AGING,
    "oracle": AGING,
    "metrics": PUBLISHED,
    "router": (),
}
"""`ObservationConfig.information` to the columns that engines tell; the others are counted."""


@dataclass(slots=True)
class _Sent:
    """A request in flight.

    Attributes:
        replica: that it was sent to.
        prompt_tokens: of it.
        uncached: tokens to compute, as the router thought.
        arrived_at_s: at the router, seconds.
        sent_at_s: to this replica, seconds.
    """

    replica: int
    prompt_tokens: int
    uncached: int
    arrived_at_s: float
    sent_at_s: float


class Ledger:
    """The books of one router. An event costs the same whatever is in flight.

    Requests go by keys, any integers. Times are in seconds and never run back.

    Args:
        n_replicas: that it chooses from.
        information: what routers are told, as `ObservationConfig` has it.
        now_s: when it begins.

    Attributes:
        arrivals: of requests that it has decided about.
        latency: end-to-end, of those served.
        previous_arrival_s: when the last of these arrived.
    """

    def __init__(self, n_replicas: int, information: str, now_s: float) -> None:
        self._told = list(TOLD[information])
        self._counts_waiting = information == "router"
        self._counts_work = information in ("router", "metrics")
        self._rows: FloatArray = np.zeros((n_replicas, N_SIGNALS))
        """What holds whatever the time is."""
        self._pairs = [0] * n_replicas
        """Twice `UNCACHED_PAIRS`, which is whole."""
        self._sent: dict[int, _Sent] = {}
        self._silent: list[OrderedDict[int, float]] = [OrderedDict() for _ in range(n_replicas)]
        """Of each replica those without first token, and when they were sent there."""
        self._oldest_s: FloatArray = np.full(n_replicas, math.inf)
        self._to_send_again: dict[int, float] = {}
        """Requests that were withdrawn, and when they arrived."""
        self._ttft = [FadingAverage() for _ in range(n_replicas)]
        self._decisions = 0
        self._chosen_at: IntArray = np.arange(n_replicas) - n_replicas
        """Number of the decision that last chose each replica."""
        self.arrivals = FadingAverage()
        self.latency = FadingAverage()
        self.previous_arrival_s = now_s

    @property
    def in_flight(self) -> IntArray:
        """Requests sent to each replica that have not ended, shape (n_replicas,)."""
        counts: IntArray = self._rows[:, Signal.IN_FLIGHT].astype(np.int64)
        return counts

    def placed(
        self, key: int, replica: int, prompt_tokens: int, cached_tokens: int, now_s: float
    ) -> None:
        """Notes that a request goes to a replica; one that was withdrawn goes there anew.

        Args:
            key: of the request, which is not in flight.
            replica: its index.
            prompt_tokens: of the request.
            cached_tokens: of these, what the router takes to be cached there.
            now_s: when.

        Raises:
            InputError: the request is in flight.
        """
        if key in self._sent:
            raise InputError(
                f"request {key} is in flight at replica {self._sent[key].replica}, got it placed "
                f"at {replica}; tell of its end or withdraw it before"
            )
        arrived_at_s = self._to_send_again.pop(key, None)
        if arrived_at_s is None:
            arrived_at_s = now_s
            self._note_arrival(now_s)
        uncached = prompt_tokens - cached_tokens
        self._sent[key] = _Sent(replica, prompt_tokens, uncached, arrived_at_s, now_s)
        self._silent[replica][key] = now_s
        if len(self._silent[replica]) == 1:
            self._oldest_s[replica] = now_s
        self._rows[replica, Signal.IN_FLIGHT] += 1
        self._count_silent(replica, prompt_tokens, uncached, 1)
        self._chosen_at[replica] = self._decisions
        self._decisions += 1

    def rejected(self, now_s: float) -> None:
        """Notes that a request arrived and went nowhere."""
        self._note_arrival(now_s)
        self._decisions += 1

    def first_token(self, key: int, now_s: float) -> None:
        """Notes the first token of a request in flight; a second time changes nothing."""
        sent = self._sent.get(key)
        if sent is not None and self._end_silence(key, sent):
            self._ttft[sent.replica].add(now_s - sent.sent_at_s, now_s)
            if self._counts_work:
                self._rows[sent.replica, Signal.CONTEXT_TOKENS] += sent.prompt_tokens
            if self._counts_waiting:
                self._rows[sent.replica, Signal.RUNNING] += 1

    def ended(self, key: int, now_s: float, *, served: bool = True) -> None:
        """Notes the end of a request; of one that is not in flight nothing is left then.

        Args:
            key: of the request.
            now_s: when.
            served: whether it has had all that it asked for, so that its latency counts.
        """
        self._to_send_again.pop(key, None)
        sent = self._take(key)
        if sent is not None and served:
            self.latency.add(now_s - sent.arrived_at_s, now_s)

    def withdrawn(self, key: int) -> None:
        """Notes that a replica has nothing of a request any more, which is to go elsewhere or end.

        It has arrived once, and waits for its replica since it was sent there.
        """
        sent = self._take(key)
        if sent is not None:
            self._to_send_again[key] = sent.arrived_at_s

    def read(self, replica: int, signals: Sequence[float]) -> None:
        """Takes over what an engine tells.

        Args:
            replica: its index.
            signals: those of `TOLD`, in order.
        """
        if self._told:
            self._rows[replica, self._told] = signals

    def rows(self, now_s: float) -> FloatArray:
        """Returns what the router knows now, (n_replicas, N_SIGNALS), but for the next request."""
        rows = self._rows.copy()
        n = len(rows)
        if self._counts_work:
            rows[:, Signal.OLDEST_WAITING_S] = now_s - np.minimum(self._oldest_s, now_s)
            rows[:, Signal.TTFT_S] = [average.mean(now_s) for average in self._ttft]
        rows[:, Signal.ROUNDS_SINCE_CHOSEN] = (self._decisions - self._chosen_at) / n
        rows[:, Signal.ARRIVAL_RATE] = self.arrivals.rate(now_s) / n
        rows[:, Signal.COMPLETION_RATE] = self.latency.rate(now_s) / n
        rows[:, Signal.E2E_S] = self.latency.mean(now_s)
        rows[:, Signal.NOW_S] = now_s
        return rows

    def _note_arrival(self, now_s: float) -> None:
        self.arrivals.add(1.0, now_s)
        self.previous_arrival_s = now_s

    def _take(self, key: int) -> _Sent | None:
        """Takes a request out of the books; returns what stood there."""
        sent = self._sent.pop(key, None)
        if sent is None:
            return None
        row = self._rows[sent.replica]
        row[Signal.IN_FLIGHT] -= 1
        if not self._end_silence(key, sent):
            if self._counts_work:
                row[Signal.CONTEXT_TOKENS] -= sent.prompt_tokens
            if self._counts_waiting:
                row[Signal.RUNNING] -= 1
        return sent

    def _end_silence(self, key: int, sent: _Sent) -> bool:
        """Counts a request no longer as one without first token; says whether it was one."""
        silent = self._silent[sent.replica]
        if silent.pop(key, None) is None:
            return False
        self._oldest_s[sent.replica] = next(iter(silent.values()), math.inf)
        self._count_silent(sent.replica, sent.prompt_tokens, sent.uncached, -1)
        return True

    def _count_silent(self, replica: int, prompt_tokens: int, uncached: int, sign: int) -> None:
        """Adds a request to the counts of those without first token, or takes it out."""
        row = self._rows[replica]
        self._pairs[replica] += sign * uncached * (2 * prompt_tokens - uncached)
        row[Signal.UNCACHED_PAIRS] = self._pairs[replica] / 2
        row[Signal.UNCACHED_TOKENS] += sign * uncached
        if self._counts_work:
            row[Signal.PENDING_PROMPT_TOKENS] += sign * prompt_tokens
        if self._counts_waiting:
            row[Signal.WAITING] += sign
