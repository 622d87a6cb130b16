"""An average and a rate that forget exponentially in time."""

import math

from llmroute_gym.ground.signals import FADED, RATE_TIME_S


class FadingAverage:
    """Weights each value by exp(-age / time constant); the order of additions does not matter.

    Args:
        time_constant_s: seconds.
    """

    def __init__(self, time_constant_s: float = RATE_TIME_S) -> None:
        self.time_constant_s = time_constant_s
        self._weight = 0.0
        self._total = 0.0
        self._at_s = 0.0

    def add(self, value: float, at_s: float) -> None:
        """Adds a value seen at `at_s` (seconds, not before the latest)."""
        self._fade_to(at_s)
        self._weight += 1.0
        self._total += value

    def mean(self, now_s: float) -> float:
        """Returns the weighted mean, 0 where nothing is remembered."""
        self._fade_to(now_s)
        return self._total / self._weight if self._weight > FADED else 0.0

    def rate(self, now_s: float) -> float:
        """Returns the additions per second."""
        self._fade_to(now_s)
        return self._weight / self.time_constant_s

    def _fade_to(self, now_s: float) -> None:
        factor = math.exp((self._at_s - now_s) / self.time_constant_s)
        self._weight *= factor
        self._total *= factor
        self._at_s = now_s
