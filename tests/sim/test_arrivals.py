"""Arrival processes: the rate, the variability and the shape that they promise."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.arrivals import (
    ARRIVAL_PROCESSES,
    BurstyArrivals,
    DiurnalArrivals,
    GammaArrivals,
    PoissonArrivals,
    RampArrivals,
    TraceArrivals,
    arrival_process,
)
from llmroute_gym.sim.workload import Workload

RECORDED = Workload(
    np.cumsum(np.random.default_rng(0).exponential(size=5000)),
    np.ones(5000, dtype=int),
    np.ones(5000, dtype=int),
)
OPTIONS: dict[str, dict[str, object]] = {
    "bursty": {"mean_calm_s": 4.0, "mean_burst_s": 1.0},
    "diurnal": {"period_s": 30.0, "amplitude": 0.9},
    "gamma": {"cv": 2.0},
    "poisson": {},
    "ramp": {},
    "trace": {"workload": RECORDED},
}


def dispersion(arrived_at_s: npt.NDArray[np.float64], window_s: float) -> float:
    """Returns variance over mean of the number of arrivals per window; 1 for Poisson."""
    counts = np.bincount((arrived_at_s // window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


def test_every_process_is_tried_here() -> None:
    assert set(OPTIONS) == set(ARRIVAL_PROCESSES)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("qps", [0.5, 40.0])
def test_times_rise_at_the_mean_rate_from_the_generator_alone(name: str, qps: float) -> None:
    process = arrival_process(name, **OPTIONS[name])
    arrived_at_s = process.sample(5000, qps, np.random.default_rng(11))
    assert arrived_at_s.shape == (5000,)
    assert arrived_at_s.dtype == np.float64
    assert arrived_at_s[0] >= 0
    assert (np.diff(arrived_at_s) >= 0).all()
    # Four standard errors of the most variable one, gamma with cv 2, over 5000 gaps.
    assert 5000 / arrived_at_s[-1] == pytest.approx(qps, rel=4 * 2 / np.sqrt(5000))
    again = process.sample(5000, qps, np.random.default_rng(11))
    assert (again == arrived_at_s).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_single_arrival_and_wrong_arguments(name: str) -> None:
    process = arrival_process(name, **OPTIONS[name])
    rng = np.random.default_rng(0)
    assert process.sample(1, 2.0, rng).shape == (1,)
    with pytest.raises(InputError, match="qps must be a finite number > 0, got 0"):
        process.sample(5, 0, rng)
    with pytest.raises(InputError, match="n_requests must be an integer >= 1, got -1"):
        process.sample(-1, 2.0, rng)


@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0, 2.5])
def test_gamma_has_the_variation_asked_for(cv: float) -> None:
    gaps = np.diff(GammaArrivals(cv).sample(200_000, 3.0, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 3, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


def test_poisson_counts_have_unit_dispersion() -> None:
    arrived_at_s = PoissonArrivals().sample(200_000, 5.0, np.random.default_rng(0))
    # Four standard errors, sqrt(2/windows) each, over 4000 windows.
    assert dispersion(arrived_at_s, 10.0) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 4000))


def test_bursty_is_overdispersed_as_theory_says() -> None:
    process = BurstyArrivals(burst_factor=5.0, mean_calm_s=8.0, mean_burst_s=2.0)
    qps, window_s = 20.0, 5.0
    arrived_at_s = process.sample(400_000, qps, np.random.default_rng(2))
    # Variance of the counts of a two-state Markov-modulated Poisson process (Heffes and
    # Lucantoni, 1986): 1 + 2 d²ab/((a+b)³ mean)·(1 - (1 - exp(-st))/st), s = a + b.
    calm, burst = process.rates(qps)
    leave_calm, leave_burst = 1 / 8.0, 1 / 2.0
    total = leave_calm + leave_burst
    swing = (burst - calm) ** 2 * leave_calm * leave_burst
    decay = (1 - np.exp(-total * window_s)) / (total * window_s)
    expected = 1 + 2 * swing / (total**3 * qps) * (1 - decay)
    assert dispersion(arrived_at_s, window_s) == pytest.approx(expected, rel=0.1)
    assert expected > 10


def test_bursty_mean_rate_is_exact_in_expectation() -> None:
    process = BurstyArrivals(burst_factor=10.0, mean_calm_s=30.0, mean_burst_s=10.0)
    calm, burst = process.rates(4.0)
    assert (30 * calm + 10 * burst) / 40 == pytest.approx(4.0)
    assert burst == pytest.approx(10 * calm)
    # From a stationary start, 4·t arrivals are expected by any time t, however short.
    rng = np.random.default_rng(5)
    counts = [int((process.sample(150, 4.0, rng) < 5.0).sum()) for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(20.0, abs=4 * np.std(counts) / np.sqrt(4000))


def test_bursty_without_contrast_is_poisson() -> None:
    arrived_at_s = BurstyArrivals(burst_factor=1.0).sample(200_000, 5.0, np.random.default_rng(0))
    assert dispersion(arrived_at_s, 10.0) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 4000))


def test_diurnal_follows_its_sine() -> None:
    process = DiurnalArrivals(amplitude=0.8, period_s=100.0, phase=0.0)
    arrived_at_s = process.sample(200_000, 10.0, np.random.default_rng(0))
    in_cycle = arrived_at_s[arrived_at_s < 19_000] % 100.0
    counts = np.histogram(in_cycle, bins=20, range=(0, 100))[0]
    middles = (np.arange(20) + 0.5) / 20
    expected = counts.mean() * (1 + 0.8 * np.sin(2 * np.pi * middles))
    np.testing.assert_allclose(counts, expected, rtol=0.08)


def test_diurnal_phase_is_fixed_or_drawn() -> None:
    peak = DiurnalArrivals(amplitude=0.9, period_s=1e5, phase=0.25)
    trough = DiurnalArrivals(amplitude=0.9, period_s=1e5, phase=0.75)
    rng = np.random.default_rng(0)
    assert 1000 / peak.sample(1000, 2.0, rng)[-1] == pytest.approx(2.0 * 1.9, rel=0.15)
    assert 1000 / trough.sample(1000, 2.0, rng)[-1] == pytest.approx(2.0 * 0.1, rel=0.25)
    rates = [1000 / DiurnalArrivals(0.9, 1e5).sample(1000, 2.0, rng)[-1] for _ in range(30)]
    assert max(rates) > 3.0
    assert min(rates) < 1.0


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (1.5, 0.5), (1.0, 1.0), (1.0, 1e-9)])
def test_ramp_is_linear_and_keeps_the_mean(start: float, end: float) -> None:
    n_requests, qps = 200_000, 10.0
    process = RampArrivals(start, end)
    arrived_at_s = process.sample(n_requests, qps, np.random.default_rng(0))
    duration_s = n_requests / qps
    counts = np.histogram(arrived_at_s, bins=10, range=(0, duration_s))[0]
    first, last = (2 * rate / (start + end) for rate in (start, end))
    middles = (np.arange(10) + 0.5) / 10
    expected = n_requests / 10 * (first + (last - first) * middles)
    # Not the last tenth: the draw ends with its last request, a little early or late.
    np.testing.assert_allclose(counts[:-1], expected[:-1], rtol=0.05)
    assert counts.sum() > 0.99 * n_requests


def test_ramp_depends_on_the_ratio_only() -> None:
    one = RampArrivals(1, 3).sample(100, 2.0, np.random.default_rng(0))
    two = RampArrivals(0.5, 1.5).sample(100, 2.0, np.random.default_rng(0))
    np.testing.assert_allclose(one, two)


def test_trace_times_are_a_rescaled_window(tmp_path: Path) -> None:
    process = TraceArrivals(RECORDED)
    whole = process.sample(5000, 7.0, np.random.default_rng(0))
    np.testing.assert_allclose(
        whole, (RECORDED.arrived_at_s - RECORDED.arrived_at_s[0]) * RECORDED.qps / 7.0
    )
    window = process.sample(100, RECORDED.qps, np.random.default_rng(0))
    gaps = np.lib.stride_tricks.sliding_window_view(np.diff(RECORDED.arrived_at_s), 99)
    assert np.isclose(gaps, np.diff(window)).all(axis=1).sum() == 1
    RECORDED.to_csv(tmp_path / "trace.csv")
    read = arrival_process("trace", path=tmp_path / "trace.csv")
    np.testing.assert_allclose(read.sample(5000, 7.0, np.random.default_rng(0)), whole)
    with pytest.raises(InputError, match="n_requests=5001 is more than the trace's 5000"):
        process.sample(5001, 7.0, np.random.default_rng(0))
    with pytest.raises(InputError, match="at the same instant"):
        TraceArrivals(RECORDED.slice(0, 1))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("poison", {}, "unknown arrival process 'poison'.*did you mean 'poisson'"),
        ("gamma", {"shape": 2}, "unknown option of arrival process 'gamma': 'shape'"),
        ("gamma", {}, r"'gamma' needs the option\(s\) cv"),
        ("gamma", {"cv": -1}, "cv must be a finite number >= 0, got -1"),
        ("gamma", {"cv": "2"}, "cv must be .* got '2'"),
        ("bursty", {"burst_factor": 0.5}, "burst_factor must be .* >= 1, got 0.5"),
        ("bursty", {"mean_burst_s": 0}, "mean_burst_s must be .* > 0, got 0"),
        ("bursty", {"mean_calm_s": float("nan")}, "mean_calm_s"),
        ("diurnal", {"amplitude": 1.0}, "amplitude must be from 0 to below 1, got 1.0"),
        ("diurnal", {"period_s": -5}, "period_s"),
        ("diurnal", {"phase": float("inf")}, "phase"),
        ("ramp", {"end": 0}, "end must be a finite number > 0, got 0"),
        ("trace", {}, "exactly one of path and workload"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        arrival_process(name, **options)
