"""Time that passes when it is told to."""

import heapq
from collections.abc import Callable
from itertools import count


class FakeTimer:
    """A call that was arranged."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Makes the calls that are arranged, each at its time, those of an instant in their order."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._order = count()
        self._heap: list[tuple[float, int, FakeTimer]] = []

    def now_s(self) -> float:
        return self._now_s

    def call_at(self, time_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._heap, (max(time_s, self._now_s), next(self._order), timer))
        return timer

    def run(self, until_s: float = float("inf")) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            self._now_s, _, timer = heapq.heappop(self._heap)
            if timer.callback is not None:
                timer.callback()
        self._now_s = max(self._now_s, until_s) if until_s < float("inf") else self._now_s
