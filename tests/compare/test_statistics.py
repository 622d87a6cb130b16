"""Pooled percentiles, paired differences and their intervals."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.compare.statistics import COLUMNS, PAIRED, Pooled, Resampling, compare
from llmroute_gym.config import SLO, EvaluationConfig
from llmroute_gym.ground.metrics import METRICS, PERCENTILES, STATISTICS
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import percentile
from tests.compare.outcomes import outcome


def test_percentiles_are_over_all_requests_together(runs: list[Outcome]) -> None:
    (result,) = compare({"one": runs}, "one", EvaluationConfig(resamples=50))
    pooled = np.concatenate([run.e2e_s for run in runs])
    for q in (50, 95, 99):
        assert result.metrics[f"e2e_p{q}_s"].value == pytest.approx(np.percentile(pooled, q))
    assert result.metrics["e2e_mean_s"].value == pytest.approx(pooled.mean())
    seconds = sum(run.finished_at_s.max() for run in runs)
    assert result.metrics["throughput_rps"].value == pytest.approx(200 / seconds)


def test_intervals_hold_the_estimate_and_follow_the_confidence(runs: list[Outcome]) -> None:
    (wide,) = compare({"one": runs}, "one", EvaluationConfig(confidence=0.99, resamples=500))
    (narrow,) = compare({"one": runs}, "one", EvaluationConfig(confidence=0.5, resamples=500))
    for name in COLUMNS:
        assert wide.metrics[name].low <= narrow.metrics[name].low <= narrow.metrics[name].high
        assert narrow.metrics[name].high <= wide.metrics[name].high
        assert wide.metrics[name].low < wide.metrics[name].value < wide.metrics[name].high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    config = EvaluationConfig(confidence=0.9, resamples=400)
    covered = 0
    for _ in range(60):
        # Requests of a run share its mean, so that only resampling whole runs is right.
        runs = [outcome(rng.normal(10 + rng.normal(), 1, 30)) for _ in range(15)]
        (result,) = compare({"one": runs}, "one", config)
        estimate = result.metrics["e2e_mean_s"]
        covered += estimate.low <= 10 <= estimate.high
    assert 0.75 <= covered / 60 <= 0.99


def test_differences_are_paired(runs: list[Outcome]) -> None:
    slower = [outcome(run.e2e_s * 1.1) for run in runs]
    same, slow = compare({"same": runs, "slow": slower}, "same", EvaluationConfig(resamples=200))
    assert same.differences == {}
    assert set(slow.differences) == set(PAIRED)
    for name in ("e2e_mean_s", "e2e_p95_s", "e2e_p99_s"):
        change = slow.differences[name]
        assert (change.value, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))


def test_rejected_requests_are_not_hidden(runs: list[Outcome]) -> None:
    unlucky = [outcome(run.e2e_s.copy(), rejected=5) for run in runs]
    (result,) = compare({"one": unlucky}, "one", EvaluationConfig(resamples=50))
    assert result.metrics["e2e_p99_s"].value == np.inf
    assert result.metrics["e2e_p99_s"].high == np.inf
    assert np.isfinite(result.metrics["e2e_p50_s"].value)
    assert result.metrics["rejected"].value == 20
    assert result.metrics["served_share"].value == 0.9
    served = np.concatenate([run.e2e_s[~run.rejected] for run in unlucky])
    assert result.served["e2e_mean_s"].value == pytest.approx(served.mean())
    assert result.served["e2e_p99_s"].value == pytest.approx(np.percentile(served, 99))
    assert set(result.served) == {key for key in result.metrics if METRICS[key].latency}


def test_served_requests_are_all_where_none_is_rejected(runs: list[Outcome]) -> None:
    (result,) = compare({"one": runs}, "one", EvaluationConfig(resamples=50))
    assert result.served == {key: result.metrics[key] for key in result.served}


@pytest.mark.parametrize("rejected", [0, 1, 9])
def test_metrics_of_one_run_are_those_of_its_summary(
    rng: np.random.Generator, rejected: int
) -> None:
    one = outcome(rng.exponential(2.0, 50), rejected)
    one = replace(one, output_tokens=rng.integers(1, 4, 50))
    config = EvaluationConfig(resamples=5, slo=SLO(e2e_s=2.0, tpot_s=1.0))
    (result,) = compare({"one": [one]}, "one", config, n_replicas=3)
    assert list(result.metrics) == list(METRICS)
    for served_only, found in ((False, result.metrics), (True, result.served)):
        summary = one.summary(slo=config.slo, n_replicas=3, served_only=served_only)
        for key, estimate in found.items():
            assert estimate.value == pytest.approx(summary[key], nan_ok=True), key


@pytest.mark.parametrize("rejected", [0, 3])
def test_bootstrap_is_that_of_repeated_requests(rng: np.random.Generator, rejected: int) -> None:
    values = rng.exponential(3.0, (6, 37))
    values[2, :rejected] = np.inf
    values[4, :5] = np.nan  # requests without this latency
    group = np.broadcast_to(np.arange(6)[:, None], values.shape)
    weights = Resampling.of_runs(6, EvaluationConfig(resamples=60)).runs
    found = Pooled.of(values, group).statistics(weights)
    assert list(found) == list(STATISTICS)
    for row, weight in enumerate(weights):
        repeated = np.repeat(values, weight, axis=0)
        repeated = repeated[~np.isnan(repeated)]
        for name, percent in PERCENTILES.items():
            assert found[name][row] == percentile(repeated, percent)
        if np.isfinite(repeated).all():
            assert found["mean"][row] == pytest.approx(repeated.mean())
            assert found["std"][row] == pytest.approx(repeated.std())
        else:
            assert found["mean"][row] == found["std"][row] == np.inf


def test_nothing_to_count_has_no_statistics() -> None:
    pooled = Pooled.of(np.full((2, 3), np.nan), np.array([[0] * 3, [1] * 3]))
    for found in pooled.statistics(np.ones((4, 2), dtype=np.int64)).values():
        assert np.isnan(found).all()
    one = Pooled.of(np.array([1.0, 2.0]), np.array([0, 1]))
    found = one.statistics(np.array([[1, 1], [0, 3], [0, 0]]))
    assert found["p50"][:2].tolist() == [1.5, 2.0]
    assert np.isnan(found["p50"][2])
