"""A replica at work between arrivals that nobody knows before they come."""

import math
from collections.abc import Callable

from llmroute_gym.sim.reference.batches import ReplicaBatches
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import Batch
from llmroute_gym.sim.replica import Replica


class LiveReplica(ReplicaBatches):
    """The simulator's replica, whose clock is in the hands of its caller.

    Requests that are submitted at the times of a workload have the times that the simulator gives
    them, however late or in what steps it is told how far time has gone.

    Args:
        replica: its limits and speed.
        on_batch: called with each batch that has ended and when, in seconds; the next one has been
            started by then.

    Attributes:
        next_s: when a batch starts or ends next, infinite while it is idle.
    """

    def __init__(self, replica: Replica, on_batch: Callable[[Batch, float], object]) -> None:
        super().__init__(replica)
        self.next_s = math.inf
        self._on_batch = on_batch

    def submit(self, request: Request) -> None:
        """Puts a request into the waiting queue, after all that happens before its arrival."""
        self.run_before(request.arrived_at_s)
        self.scheduler.waiting.append(request)
        if self.next_s == math.inf:
            self.next_s = request.arrived_at_s

    def abort(self, request: Request, now_s: float) -> None:
        """Drops a request that has not finished by now, after all that happens before.

        Args:
            request: that was submitted.
            now_s: seconds.
        """
        self.run_before(now_s)
        if not request.finished:
            self.scheduler.abort(request)
        if not self._has_work():
            self.next_s = math.inf

    def run_before(self, time_s: float) -> None:
        """Does all that happens before a time, in seconds."""
        while self.next_s < time_s:
            self._step()

    def run_through(self, time_s: float) -> None:
        """Does all that happens until a time, in seconds, and at that time."""
        while self.next_s <= time_s:
            self._step()

    def _has_work(self) -> bool:
        scheduler = self.scheduler
        return bool(scheduler.batch.requests or scheduler.waiting or scheduler.running)

    def _step(self) -> None:
        """Ends the batch at hand, if there is one, and starts the next, if there is any."""
        now_s, batch = self.next_s, self.scheduler.batch
        if batch.requests:
            self.scheduler.end_batch(now_s)
        self.next_s = now_s + self.start_batch(now_s) if self._has_work() else math.inf
        if batch.requests:
            self._on_batch(batch, now_s)
