"""The arrivals that are known by now: those with a time, and those whose turn has come."""

import heapq
import math

from llmroute_gym.sim.workload import Workload


class PendingArrivals:
    """Requests that are still to arrive, earliest first, equal times by their index.

    Args:
        workload: the requests; one that waits for another is known once that has ended.
    """

    def __init__(self, workload: Workload) -> None:
        times_s = workload.arrived_at_s.tolist()
        self._gap_s = [] if workload.gap_s is None else workload.gap_s.tolist()
        self._waiting: dict[int, list[int]] = {}
        self._heap: list[tuple[float, int]] = []
        after = [-1] * len(times_s) if workload.after is None else workload.after.tolist()
        for request, awaited in enumerate(after):
            if awaited < 0:
                self._heap.append((times_s[request], request))
            else:
                self._waiting.setdefault(awaited, []).append(request)

    def __bool__(self) -> bool:
        """Returns whether an arrival is known."""
        return bool(self._heap)

    @property
    def next_at_s(self) -> float:
        """Time of the next arrival in seconds, infinity where none is known."""
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> tuple[float, int]:
        """Takes the next arrival; returns its time in seconds and its request."""
        return heapq.heappop(self._heap)

    def release(self, request: int, ended_at_s: float) -> list[tuple[int, float]]:
        """Adds the arrivals that waited for a request's end.

        Args:
            request: that has finished, or has been rejected.
            ended_at_s: when, seconds.

        Returns:
            Requests and their times of arrival.
        """
        released = [(one, ended_at_s + self._gap_s[one]) for one in self._waiting.pop(request, ())]
        for one, arrived_at_s in released:
            heapq.heappush(self._heap, (arrived_at_s, one))
        return released
