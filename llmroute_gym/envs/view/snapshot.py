"""What a rendered picture or text shows, and the scales it is drawn to."""

from dataclasses import dataclass
from math import expm1, isfinite

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import RATE_TIME_S, Signal
from llmroute_gym.sim.outcome import percentile

RECENT = 50
"""Completed requests per replica that a picture shows."""
NICE = (1.0, 2.0, 3.0, 5.0, 10.0)
"""Ends of axes, times a power of ten: few enough that an axis seldom changes."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of an episode at one decision.

    Attributes:
        time_s: simulated time, seconds.
        request: requests placed so far.
        n_requests: requests of the episode.
        rows: (n_replicas, N_SIGNALS), physical units, see `llmroute_gym.ground.signals.Signal`.
        mask: (n_replicas,), the replicas that may take the next request.
        last_replica: where the last request went, None before the first.
        recent_e2e_s: per replica the end-to-end latencies of its last completed requests, oldest
            first, seconds.
        recent_ttft_s: per replica their times to first token, seconds.
        reward: of the last step.
        episode_return: sum of the rewards so far.
        latency_threshold_s: latency from which a request is late, seconds.
        title: one line.
    """

    time_s: float
    request: int
    n_requests: int
    rows: FloatArray
    mask: BoolArray
    last_replica: int | None
    recent_e2e_s: tuple[FloatArray, ...]
    recent_ttft_s: tuple[FloatArray, ...]
    reward: float
    episode_return: float
    latency_threshold_s: float
    title: str

    @property
    def n_replicas(self) -> int:
        """Returns the number of replicas."""
        return len(self.rows)

    def column(self, signal: Signal) -> FloatArray:
        """Returns a signal of all replicas, shape (n_replicas,), 0 where it is not finite."""
        return np.nan_to_num(self.rows[:, signal], posinf=0.0, neginf=0.0)

    @property
    def in_system(self) -> FloatArray:
        """Returns the requests waiting or running, shape (n_replicas,)."""
        return self.column(Signal.WAITING) + self.column(Signal.RUNNING)

    def latencies_s(self, replica: int) -> FloatArray:
        """Returns the last end-to-end latencies of a replica, at most `RECENT`, oldest first."""
        return np.asarray(self.recent_e2e_s[replica][-RECENT:], dtype=np.float64)

    def e2e_p95_s(self, replica: int) -> float:
        """Returns the P95 of the end-to-end latencies shown, NaN without any."""
        return percentile(self.latencies_s(replica), 95)

    def ttft_p95_s(self, replica: int) -> float:
        """Returns the P95 of the times to first token shown, NaN without any."""
        return percentile(np.asarray(self.recent_ttft_s[replica][-RECENT:], dtype=np.float64), 95)

    def status(self, replica: int) -> str:
        """Returns a word on a replica that stands out, or an empty string."""
        if not self.rows[replica, Signal.AVAILABLE]:
            return "down"
        if not self.mask[replica]:
            return "too small"  # for the request at hand
        speed = float(self.rows[replica, Signal.SPEED])
        return f"×{speed:.3g}" if speed not in (0.0, 1.0) else ""

    def figures(self) -> list[tuple[str, str]]:
        """Returns the names and values of the cluster's figures, ready to print."""
        # The averages start at 0: what they have not seen yet is left out.
        seen = -expm1(-self.time_s / RATE_TIME_S) or 1.0
        arrivals = float(self.column(Signal.ARRIVAL_RATE).sum()) / seen
        completions = float(self.column(Signal.COMPLETION_RATE).sum()) / seen
        return [
            ("time", f"{self.time_s:.1f} s"),
            ("request", f"{self.request}/{self.n_requests}"),
            ("arrivals", f"{arrivals:.2f} /s"),
            ("completions", f"{completions:.2f} /s"),
            ("mean E2E", seconds(float(self.column(Signal.E2E_S).max()) or float("nan"))),
            ("reward", signed(self.reward)),
            ("return", signed(self.episode_return)),
        ]


class Scales:
    """Ends of the axes: they only grow within an episode, in few steps, so pictures keep still.

    Attributes:
        requests: end of the axis of requests.
        latency_s: end of the axis of latencies, seconds.
    """

    def __init__(self) -> None:
        self.requests = 0.0
        self.latency_s = 0.0
        self._seen: tuple[float, ...] = (0, 0, 0.0)

    @property
    def ends(self) -> tuple[float, float]:
        """Returns all ends."""
        return self.requests, self.latency_s

    def follow(self, snapshot: Snapshot) -> None:
        """Makes room for a snapshot; starts anew with a new episode."""
        replicas, request, time_s = self._seen
        same_cluster = replicas == snapshot.n_replicas
        if not same_cluster or snapshot.request < request or snapshot.time_s < time_s:
            self.requests = self.latency_s = 0.0
        self._seen = (snapshot.n_replicas, snapshot.request, snapshot.time_s)
        longest_s = 1.5 * snapshot.latency_threshold_s
        for replica in range(snapshot.n_replicas):
            latencies_s = snapshot.latencies_s(replica)
            longest_s = max(longest_s, *latencies_s[np.isfinite(latencies_s)], 0.0)
        self.latency_s = max(self.latency_s, nice_end(longest_s))
        self.requests = max(self.requests, nice_end(max(10.0, float(snapshot.in_system.max()))))


def nice_end(value: float) -> float:
    """Returns the least nice number that is not below a positive value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in NICE if step * power >= value * (1 - 1e-9)))


def seconds(value: float) -> str:
    """Returns a duration with three figures, a dash if there is none."""
    return f"{short(value)} s" if isfinite(value) else short(value)


def short(value: float) -> str:
    """Returns a number with about three figures."""
    if not isfinite(value):
        return "∞" if value > 0 else "–"
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def signed(value: float) -> str:
    """Returns a number with a minus sign that is as wide as a plus."""
    return short(value).replace("-", "−")
