"""Leaving out for a while who fails again and again."""

import math

from llmroute_gym.config import BreakerConfig


class Breaker:
    """Counts failures in a row, and says for how long they leave a backend out.

    What fails together counts once: a failure counts if its request was sent after the one before.
    Each time is twice as long as the one before, until an answer has come to its end.

    Args:
        settings: how many failures, and how long.

    Attributes:
        failures: in a row.
    """

    def __init__(self, settings: BreakerConfig) -> None:
        self.failures = 0
        self._settings = settings
        self._rest_s = 0.0
        self._until_s = self._failed_s = -math.inf

    def failed(self, sent_s: float, now_s: float) -> float | None:
        """Counts a failure; returns the seconds for which it leaves the backend out, None for none.

        Args:
            sent_s: when the request was sent.
            now_s: when it failed.
        """
        if sent_s < self._failed_s:
            return None
        self._failed_s = now_s
        self.failures += 1
        settings = self._settings
        if settings.after is None or self.failures < settings.after or self.rests(now_s):
            return None
        self._rest_s = min(max(settings.first_s, 2 * self._rest_s), settings.longest_s)
        self._until_s = now_s + self._rest_s
        return self._rest_s

    def rests(self, now_s: float) -> bool:
        """Returns whether the backend is left out."""
        return now_s < self._until_s

    def close(self) -> None:
        """Leaves it out no more; its next failure does so again, for longer."""
        self._until_s = -math.inf

    def forgive(self) -> None:
        """Forgets its failures, as it has served a request."""
        self.failures, self._rest_s = 0, 0.0
