"""Arrival processes: when requests arrive."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import count, number, positive
from llmroute_gym.sim.registry import build
from llmroute_gym.sim.traces import recorded_workload
from llmroute_gym.sim.workload import Workload


@dataclass(frozen=True, eq=False)
class ArrivalProcess(ABC):
    """A point process scaled to a mean rate; subclasses draw in ``_draw``."""

    def sample(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        """Draws arrival times.

        Args:
            n_requests: number of arrivals, >= 1.
            qps: mean rate in requests/s, > 0.
            rng: the only source of randomness.

        Returns:
            Shape (n_requests,), seconds, rising from the process's start at time 0.

        Raises:
            InputError: ``n_requests`` is not an integer >= 1, or ``qps`` not a finite number > 0.
        """
        return self._draw(count("n_requests", n_requests), positive("qps", qps), rng)

    @abstractmethod
    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        """Draws arrival times for arguments known to be in range."""


@dataclass(frozen=True, eq=False)
class PoissonArrivals(ArrivalProcess):
    """Independent exponential gaps: many users who know nothing of each other."""

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        return _unit_poisson(n_requests, rng) / qps


@dataclass(frozen=True, eq=False)
class GammaArrivals(ArrivalProcess):
    """Independent gamma gaps of a given coefficient of variation.

    Attributes:
        cv: standard deviation of a gap over its mean, >= 0: 0 is evenly spaced, 1 is Poisson,
            above 1 arrivals clump.
    """

    cv: float

    def __post_init__(self) -> None:
        """Checks the parameter.

        Raises:
            InputError: ``cv`` is not a finite number >= 0.
        """
        number("cv", self.cv, at_least=0)

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        if self.cv == 0:
            return np.arange(1, n_requests + 1) / qps
        gaps = rng.gamma(self.cv**-2, self.cv**2 / qps, n_requests)
        return np.cumsum(gaps)


@dataclass(frozen=True, eq=False)
class BurstyArrivals(ArrivalProcess):
    """Two-state Markov-modulated Poisson process: calm and burst phases, exponential dwell times.

    The rates follow from the mean: with c and b the mean dwell times and f the factor, the calm
    rate is qps·(c + b)/(c + f·b) and the burst rate f times that. The first phase is drawn from
    the stationary distribution, so the expected number of arrivals in any time t is qps·t.

    Attributes:
        burst_factor: rate in a burst over the rate in a calm phase, >= 1.
        mean_calm_s: mean duration of a calm phase in seconds, > 0.
        mean_burst_s: mean duration of a burst in seconds, > 0.
    """

    burst_factor: float = 5.0
    mean_calm_s: float = 40.0
    mean_burst_s: float = 10.0

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            InputError: one is out of range; the message names it.
        """
        number("burst_factor", self.burst_factor, at_least=1)
        positive("mean_calm_s", self.mean_calm_s)
        positive("mean_burst_s", self.mean_burst_s)

    def rates(self, qps: float) -> tuple[float, float]:
        """Returns the calm and the burst rate in requests/s for a mean rate."""
        dwell_s = self.mean_calm_s + self.mean_burst_s
        calm = qps * dwell_s / (self.mean_calm_s + self.burst_factor * self.mean_burst_s)
        return calm, self.burst_factor * calm

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        # Time change: arrivals of a unit-rate process, read on a clock that runs at the
        # current rate. Knots are the ends of phases, in seconds and in expected arrivals.
        expected = _unit_poisson(n_requests, rng)
        calm, burst = self.rates(qps)
        dwell_s = self.mean_calm_s + self.mean_burst_s
        first_is_burst = rng.random() < self.mean_burst_s / dwell_s
        means_s, rates = np.array([self.mean_calm_s, self.mean_burst_s]), np.array([calm, burst])
        if first_is_burst:
            means_s, rates = means_s[::-1], rates[::-1]
        ends_s, ends_expected = [np.zeros(1)], [np.zeros(1)]
        while (missing := expected[-1] - ends_expected[-1][-1]) > 0:
            pairs = 1 + math.ceil(missing / (qps * dwell_s))
            phases_s = rng.exponential(means_s, (pairs, 2))
            ends_s.append(ends_s[-1][-1] + np.cumsum(phases_s))
            ends_expected.append(ends_expected[-1][-1] + np.cumsum(phases_s * rates))
        return np.interp(expected, np.concatenate(ends_expected), np.concatenate(ends_s))


@dataclass(frozen=True, eq=False)
class DiurnalArrivals(ArrivalProcess):
    """Poisson process whose rate follows a sine: qps·(1 + amplitude·sin(2π(t/period + phase))).

    The mean over a whole period is ``qps``; with a random phase it is so at every moment.

    Attributes:
        amplitude: swing of the rate relative to its mean, from 0 to below 1.
        period_s: length of a cycle in seconds, > 0.
        phase: where in the cycle time 0 falls, as a fraction of it (0 rising through the mean,
            0.25 at the peak); None draws it anew for each workload.
    """

    amplitude: float = 0.5
    period_s: float = 86_400.0
    phase: float | None = None

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            InputError: one is out of range; the message names it.
        """
        if number("amplitude", self.amplitude, at_least=0) >= 1:
            raise InputError(f"amplitude must be from 0 to below 1, got {self.amplitude!r}")
        positive("period_s", self.period_s)
        if self.phase is not None:
            number("phase", self.phase)

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        # Thinning (Lewis and Shedler, 1979): candidates at the peak rate, each kept with
        # probability rate/peak.
        phase = rng.random() if self.phase is None else self.phase
        peak = 1 + self.amplitude
        kept: list[FloatArray] = []
        missing, start_s = n_requests, 0.0
        while missing > 0:
            candidates = start_s + _unit_poisson(math.ceil(missing * peak) + 16, rng) / (qps * peak)
            angle = 2 * math.pi * (candidates / self.period_s + phase)
            rate = 1 + self.amplitude * np.sin(angle)
            kept.append(candidates[rng.random(candidates.size) * peak < rate][:missing])
            missing -= kept[-1].size
            start_s = float(candidates[-1])
        return np.concatenate(kept)


@dataclass(frozen=True, eq=False)
class RampArrivals(ArrivalProcess):
    """Poisson process whose rate changes linearly over the workload.

    The rate goes from 2·start/(start + end)·qps at time 0 to 2·end/(start + end)·qps at time
    n_requests/qps, so that n_requests arrivals are expected by then; afterwards it stays.

    Attributes:
        start: relative rate at the beginning, > 0.
        end: relative rate at the end, > 0; only the ratio of the two counts.
    """

    start: float = 0.5
    end: float = 1.5

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            InputError: one is not a finite number > 0.
        """
        positive("start", self.start)
        positive("end", self.end)

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        # In units of n_requests arrivals and n_requests/qps seconds, u of the arrivals are
        # expected by time x with first·x + (last - first)·x²/2 = u.
        first = 2 * self.start / (self.start + self.end)
        last = 2 - first
        expected = _unit_poisson(n_requests, rng) / n_requests
        within = np.minimum(expected, 1.0)
        squared = np.maximum(first**2 + 2 * (last - first) * within, 0.0)
        elapsed = 2 * within / (first + np.sqrt(squared))
        elapsed += np.maximum(expected - 1.0, 0.0) / last
        return np.asarray(elapsed * (n_requests / qps))


@dataclass(frozen=True, eq=False)
class TraceArrivals(ArrivalProcess):
    """The times of a recorded workload: a random window of it, rescaled, first arrival at 0.

    One factor rescales the whole trace, so a window keeps its own bursts and lulls.

    Attributes:
        workload: the recorded requests.
    """

    workload: Workload

    def __post_init__(self) -> None:
        """Checks that the trace has a rate.

        Raises:
            InputError: all its requests arrive at the same instant.
        """
        if not math.isfinite(self.workload.qps):
            raise InputError(
                f"a trace of {len(self.workload)} request(s) at the same instant has no arrival "
                "times to follow; give at least two distinct times"
            )

    def _draw(self, n_requests: int, qps: float, rng: np.random.Generator) -> FloatArray:
        times_s = self.workload.arrived_at_s
        if n_requests > times_s.size:
            raise InputError(
                f"n_requests={n_requests} is more than the trace's {times_s.size} arrivals; ask "
                "for fewer or use another arrival process"
            )
        start = int(rng.integers(times_s.size - n_requests + 1))
        window_s = times_s[start : start + n_requests]
        return np.asarray((window_s - window_s[0]) * (self.workload.qps / qps))


def trace(
    *, path: str | os.PathLike[str] | None = None, workload: Workload | None = None
) -> TraceArrivals:
    """Arrival times of a recorded workload, given itself or as a trace file.

    Args:
        path: a file that ``load_trace`` reads; excludes ``workload``.
        workload: the recorded requests; excludes ``path``.

    Raises:
        InputError: both or none are given, or the file is no trace.
    """
    return TraceArrivals(recorded_workload(path, workload))


ARRIVAL_PROCESSES: dict[str, Callable[..., ArrivalProcess]] = {
    "bursty": BurstyArrivals,
    "diurnal": DiurnalArrivals,
    "gamma": GammaArrivals,
    "poisson": PoissonArrivals,
    "ramp": RampArrivals,
    "trace": trace,
}


def arrival_process(name: str, **options: Any) -> ArrivalProcess:
    """Builds an arrival process by name.

    Args:
        name: ``bursty``, ``diurnal``, ``gamma``, ``poisson``, ``ramp`` or ``trace``.
        **options: the process's own parameters.

    Raises:
        InputError: the name or an option is unknown, missing or out of range.
    """
    return build("arrival process", ARRIVAL_PROCESSES, name, options)


def _unit_poisson(n_requests: int, rng: np.random.Generator) -> FloatArray:
    """Returns the first arrivals of a Poisson process of rate 1."""
    return np.cumsum(rng.exponential(size=n_requests))
