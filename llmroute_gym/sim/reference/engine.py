"""The readable engine: one SimPy process per replica, batch by batch, token by token."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import BATCH_TIME_WEIGHT, NO_NAME, Signal
from llmroute_gym.sim.averages import FadingAverage
from llmroute_gym.sim.ledger import Ledger
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.reference.batches import ReplicaBatches
from llmroute_gym.sim.reference.block_names import block_names
from llmroute_gym.sim.reference.gateway import Gateway
from llmroute_gym.sim.reference.pending import PendingArrivals
from llmroute_gym.sim.reference.prefix_views import prefix_views
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.run import Interval, Run
from llmroute_gym.sim.submission import output_of


class Clock(simpy.Environment):
    """SimPy's clock, which can be set to the very time of an arrival."""

    def move_to(self, time_s: float) -> None:
        """Moves to a time before which nothing is left to happen.

        `run(until=...)` adds a difference to the present time, which may miss by a rounding.
        """
        self._now = time_s


class ReplicaProcess(ReplicaBatches):
    """A replica at work: builds a batch, waits its time, counts it, at once builds the next.

    Args:
        environment: the clock.
        replica: its limits and speed.
        told: what a router is told of it.
        first_tokens: shared by the cluster; requests that have their first token are appended.
        completions: the same of finished ones.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        replica: Replica,
        told: ObservationConfig,
        first_tokens: list[Request],
        completions: list[Request],
    ) -> None:
        super().__init__(replica)
        self.environment = environment
        self.prefixes = prefix_views(told, replica, self.scheduler.pool, environment)
        """Each gateway's view of the replica's prefix cache."""
        self.in_system: dict[int, Request] = {}
        self.ttft = FadingAverage()
        self.batch_time_s = 0.0
        self._first_tokens, self._completions = first_tokens, completions
        self._work = environment.event()
        environment.process(self._serve())

    def submit(self, request: Request) -> None:
        """Puts a request into the waiting queue; an idle replica wakes at this instant."""
        request.output_tokens = self.replica.output_of(request.prompt_tokens, request.output_tokens)
        self.in_system[request.index] = request
        self.scheduler.waiting.append(request)
        if not self._work.triggered:
            self._work.succeed()

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.scheduler.waiting and not self.scheduler.running:
                self._work = self.environment.event()
                yield self._work
            batch_s = self.start_batch(self.environment.now)
            yield self.environment.timeout(batch_s)
            self._end_batch(batch_s)

    def _end_batch(self, batch_s: float) -> None:
        now_s = self.environment.now
        awaited = [request for request in self.scheduler.batch.requests if not request.started]
        for request in self.scheduler.end_batch(now_s):
            del self.in_system[request.index]
            self._completions.append(request)
        for request in awaited:
            if request.started:
                self.ttft.add(now_s - request.arrived_at_s, now_s)
                self._first_tokens.append(request)
        weight = BATCH_TIME_WEIGHT if self.batch_time_s else 1.0
        self.batch_time_s += weight * (batch_s - self.batch_time_s)

    def remaining_tokens(self) -> int:
        """Returns the true tokens still to process, prompt and output."""
        return sum(r.prompt_tokens + r.output_tokens - r.done for r in self.in_system.values())

    def engine_signals(self, now_s: float) -> list[float]:
        """Returns the columns that the engine itself reports, in order of `Signal`."""
        waiting, admitted = self.scheduler.waiting, self.scheduler.admitted()
        pending = sum(r.prompt_tokens - r.done for r in (*waiting, *admitted) if not r.prefilled)
        return [
            len(waiting),
            len(admitted),
            self.scheduler.pool.usage,
            pending,
            sum(r.done for r in admitted),
            now_s - min((r.arrived_at_s for r in waiting), default=now_s),
            self.batch_time_s,
            self.ttft.mean(now_s),
            self.found_tokens / max(self.admitted_tokens, 1),
        ]


class ReferenceRun(Run):
    """A run on the SimPy engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = Clock()
        self._first_tokens: list[Request] = []
        self._completions: list[Request] = []
        self._order: list[int] = []
        self._requests = [
            Request(index, arrived_at_s, prompt, output, names)
            for index, (arrived_at_s, prompt, output, names) in enumerate(
                zip(
                    self.workload.arrived_at_s.tolist(),
                    self.workload.prompt_tokens.tolist(),
                    self.workload.output_tokens.tolist(),
                    block_names(self.workload),
                    strict=True,
                )
            )
        ]
        self._replicas = [
            ReplicaProcess(
                self._environment,
                replica,
                self.observation,
                self._first_tokens,
                self._completions,
            )
            for replica in self.cluster
        ]
        self._pending = PendingArrivals(self.workload)
        self._pending.pop()
        self._replica_of = np.full(len(self.workload), -1, dtype=np.int64)
        self._rejected = np.zeros(len(self.workload), dtype=np.bool_)
        self._gateways = [
            Gateway(
                [process.prefixes[index] for process in self._replicas],
                self.observation,
                index,
                self.now_s,
            )
            for index in range(self.observation.gateways)
        ]
        self._turn = [0] * len(self.workload)
        """Which decision placed each request."""
        self._latency = FadingAverage()
        while self._environment.peek() < self.now_s:
            self._environment.step()
        self._environment.move_to(self.now_s)
        self._poll()

    def _place(self, replica: int, rejected: bool) -> Interval:
        start_s, request = self.now_s, self._requests[self.request]
        self._order.append(self.request)
        self._submit(request, replica, rejected)
        imbalance = self._imbalance()
        in_system = [r for process in self._replicas for r in process.in_system.values()]
        self._advance()
        return Interval(
            duration_s=self.now_s - start_s,
            request_seconds=sum(self._overlap_s(r, start_s, 0.0) for r in in_system),
            late_request_seconds=sum(
                self._overlap_s(r, start_s, self.late_after_s) for r in in_system
            ),
            completion_rate_rps=self._latency.rate(self.now_s),
            imbalance=imbalance,
        )

    def _submit(self, request: Request, replica: int, rejected: bool) -> None:
        self._turn[request.index] = self.decision
        self._gateways[self.gateway].decide(request, None if rejected else replica)
        if rejected:
            self._rejected[request.index] = True
            self._release(request, self.now_s)
        else:
            self._replica_of[request.index] = replica
            self._replicas[replica].submit(request)

    def _release(self, request: Request, ended_at_s: float) -> float:
        """Lets those arrive that waited for a request's end; returns when the first one does."""
        first_s = math.inf
        for index, arrived_at_s in self._pending.release(request.index, ended_at_s):
            self._requests[index].arrived_at_s = arrived_at_s
            first_s = min(first_s, arrived_at_s)
        return first_s

    def _replay(self, replicas: IntArray, rejected: BoolArray | None) -> None:
        refused = np.zeros(len(replicas), dtype=np.bool_) if rejected is None else rejected
        for request in self._requests:
            self._run_to(request.arrived_at_s)
            self._submit(request, int(replicas[request.index]), bool(refused[request.index]))
        self._run_to(math.inf)
        self._end()

    def _overlap_s(self, request: Request, start_s: float, age_s: float) -> float:
        """Seconds of [start, now] that the request spends in the system, older than `age_s`."""
        since_s = max(request.arrived_at_s + age_s, start_s)
        until_s = self.now_s if math.isnan(request.finished_at_s) else request.finished_at_s
        return max(until_s - since_s, 0.0)

    def _imbalance(self) -> float:
        work = [process.remaining_tokens() / process.replica.speed for process in self._replicas]
        mean = sum(work) / len(work)
        if mean == 0:
            return 0.0
        return math.sqrt(sum((w - mean) ** 2 for w in work) / len(work)) / mean

    def _advance(self) -> None:
        """Runs to the next arrival, or until all is drained."""
        self._run_to(self._pending.next_at_s)
        if self._pending:
            self.now_s, self.request = self._pending.pop()
        else:
            self.request = len(self._requests)
            self._end()

    def _end(self) -> None:
        """Sets the clock to the last finish."""
        finished_at_s = [r.finished_at_s for r in self._requests if not math.isnan(r.finished_at_s)]
        self.now_s = max([self.now_s, *finished_at_s])
        self._poll()

    def _poll(self) -> None:
        """Lets every gateway read the engines' signals now if it does not read them each time."""
        if self.observation.signal_interval_s > 0:
            for gateway in self._gateways:
                gateway.poll(self.now_s, self._replicas)

    def _run_to(self, time_s: float) -> None:
        """Runs all that happens before `time_s`, or before an earlier arrival that it brings."""
        clock, seen = self._environment, len(self._completions)
        while (next_s := min(clock.peek(), time_s)) < math.inf:
            if self.observation.signal_interval_s > 0:
                for gateway in self._gateways:
                    gateway.poll_as_of(next_s, self._replicas)
            if next_s == time_s:
                break
            clock.step()
            for finished in self._completions[seen:]:
                time_s = min(time_s, self._release(finished, finished.finished_at_s))
            seen = len(self._completions)
        if time_s < math.inf:
            clock.move_to(time_s)
        self._tell_gateways()

    def _tell_gateways(self) -> None:
        """Tells each gateway of the requests that it sent what has happened."""

        def ledger(request: Request) -> Ledger:
            return self._gateways[self._turn[request.index] % len(self._gateways)].ledger

        # Of one instant in the order in which they were sent, in which averages add them up.
        self._first_tokens.sort(key=lambda one: (one.first_token_at_s, self._turn[one.index]))
        for one in self._first_tokens:
            ledger(one).first_token(one.index, one.first_token_at_s)
        for one in self._completions:
            self._latency.add(one.finished_at_s - one.arrived_at_s, one.finished_at_s)
            ledger(one).ended(one.index, one.finished_at_s)
        self._first_tokens.clear()
        self._completions.clear()

    def _decided(self) -> IntArray:
        return np.array(self._order, dtype=np.int64)

    def rows(self) -> FloatArray:
        """Returns what a router knows now, shape (n_replicas, N_SIGNALS), physical units."""
        gateway = self._gateways[self.gateway]
        rows = gateway.rows(self.now_s, self._replicas)
        for row, process in zip(rows, self._replicas, strict=True):
            if self.observation.information == "oracle":
                row[Signal.REMAINING_TOKENS] = process.remaining_tokens()
            row[Signal.SPEED] = 1.0 if self.observation.speed_hidden else process.replica.speed
        rows[:, Signal.AVAILABLE] = self.available()
        rows[:, Signal.FITS] = self.fits()
        rows[:, [Signal.SESSION, Signal.PROMPT_HEAD]] = NO_NAME
        if not self.done:
            gateway.write_request(rows, self._requests[self.request], self.now_s)
            rows[:, Signal.PROMPT_TOKENS] = self.workload.prompt_tokens[self.request]
            rows[:, Signal.PREDICTED_OUTPUT_TOKENS] = self.predicted_output_tokens[self.request]
            rows[:, [Signal.SESSION, Signal.PROMPT_HEAD]] = self.identities[self.request]
        return rows

    def outcome(self) -> Outcome:
        """Returns what became of every request; complete once `done`."""

        def times(name: str) -> FloatArray:
            values = np.array([getattr(request, name) for request in self._requests])
            return np.where(self._rejected, np.inf, values)

        def counts(name: str) -> IntArray:
            return np.array([getattr(request, name) for request in self._requests], dtype=np.int64)

        return Outcome(
            arrived_at_s=np.array([request.arrived_at_s for request in self._requests]),
            scheduled_at_s=times("scheduled_at_s"),
            first_token_at_s=times("first_token_at_s"),
            finished_at_s=times("finished_at_s"),
            replica=self._replica_of.copy(),
            prompt_tokens=self.workload.prompt_tokens,
            output_tokens=output_of(self.workload, self.cluster, self._replica_of),
            preemptions=counts("preemptions"),
            cached_tokens=counts("cached_tokens"),
            recached_tokens=counts("recached_tokens"),
        )
