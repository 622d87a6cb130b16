"""What an outcome tells of its requests, the rejected ones included."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.config import SLO
from llmroute_gym.errors import InputError
from llmroute_gym.ground.metrics import METRICS
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.outcome import percentile
from tests.sim.strategies import random_case


def small_outcome(rejected: int = 0) -> Outcome:
    """10 requests a second apart, the last of them rejected: request i takes i + 1 s."""
    n = 10
    arrived = np.arange(n, dtype=np.float64)
    lost = np.arange(n) >= n - rejected
    return Outcome(
        arrived_at_s=arrived,
        scheduled_at_s=np.where(lost, np.inf, arrived + 0.25),
        first_token_at_s=np.where(lost, np.inf, arrived + 0.5),
        finished_at_s=np.where(lost, np.inf, arrived + 1 + np.arange(n)),
        replica=np.where(lost, -1, 0),
        prompt_tokens=np.full(n, 7),
        output_tokens=np.array([1, *range(2, n + 1)]),
        preemptions=np.arange(n) % 2,
        cached_tokens=np.where(np.arange(n) < 2, 4, 0),
        recached_tokens=np.arange(n) % 3,
    )


def test_latencies_by_hand() -> None:
    outcome = small_outcome()
    assert len(outcome) == 10
    np.testing.assert_array_equal(outcome.queue_s, 0.25)
    np.testing.assert_array_equal(outcome.ttft_s, 0.5)
    np.testing.assert_array_equal(outcome.e2e_s, np.arange(1, 11))
    # Request 0 has no token after its first; request 3 has 3 more, in 3.5 s.
    assert math.isnan(outcome.tpot_s[0])
    assert outcome.tpot_s[3] == pytest.approx(3.5 / 3)
    np.testing.assert_array_equal(outcome.ntpot_s, 1.0)


def test_summary_by_hand() -> None:
    summary = small_outcome().summary(goodput_latency_s=4.0)
    assert summary["requests"] == 10
    assert summary["rejected"] == 0
    assert summary["preemptions"] == 5
    assert summary["cached_token_share"] == pytest.approx(8 / 70)
    assert summary["makespan_s"] == 19.0
    assert summary["throughput_rps"] == pytest.approx(10 / 19)
    assert summary["goodput_rps"] == pytest.approx(4 / 19)
    assert summary["e2e_mean_s"] == 5.5
    assert summary["e2e_p50_s"] == 5.5
    assert summary["e2e_p90_s"] == pytest.approx(9.1)
    assert summary["e2e_max_s"] == 10.0
    expected = {
        f"{metric}_{what}_s"
        for metric in ("ttft", "tpot", "ntpot", "e2e", "queue")
        for what in ("mean", "std", "p50", "p90", "p95", "p99", "p999", "max")
    }
    assert expected < set(summary) < set(METRICS)
    assert "goodput_rps" not in small_outcome().summary()
    assert summary["e2e_std_s"] == pytest.approx(np.std(np.arange(1, 11)))
    assert summary["e2e_p999_s"] == pytest.approx(np.percentile(np.arange(1, 11), 99.9))
    # The ninth of ten to finish does so 9 s after it arrived at 8 s.
    assert summary["time_to_90_s"] == 17.0
    assert summary["output_throughput_tps"] == pytest.approx(55 / 19)
    assert summary["total_throughput_tps"] == pytest.approx((55 + 70) / 19)
    assert summary["served_share"] == 1.0


def test_time_per_output_token_is_of_requests_that_have_further_ones() -> None:
    per_token = [(i + 0.5) / i for i in range(1, 10)]
    summary = small_outcome().summary()
    assert summary["tpot_mean_s"] == pytest.approx(np.mean(per_token))
    assert summary["tpot_p50_s"] == pytest.approx(np.median(per_token))
    assert summary["tpot_std_s"] == pytest.approx(np.std(per_token))
    alone = replace(small_outcome(), output_tokens=np.ones(10, dtype=np.int64)).summary()
    assert math.isnan(alone["tpot_mean_s"])
    assert math.isnan(alone["tpot_p99_s"])


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (SLO(e2e_s=4.0), 4),
        (SLO(ttft_s=0.4), 0),
        (SLO(ttft_s=0.5), 10),
        # 1.5, 1.25, 1.17, 1.125 s, ...; the request with one token has no such time.
        (SLO(tpot_s=1.2), 8),
        (SLO(tpot_s=1.2, e2e_s=5.0), 3),
        (SLO(tpot_s=1.2, e2e_s=5.0, ttft_s=0.1), 0),
    ],
)
def test_goodput_meets_all_objectives(slo: SLO, good: int) -> None:
    summary = small_outcome().summary(slo=slo)
    assert summary["goodput_rps"] == pytest.approx(good / 19)
    assert summary["goodput_share"] == good / 10
    assert small_outcome(rejected=10).summary(slo=slo)["goodput_share"] == 0.0


def test_objectives_are_checked() -> None:
    assert "goodput_rps" not in small_outcome().summary(slo=SLO())
    with pytest.raises(InputError, match=r"slo\.ttft_s must be > 0, got -1"):
        small_outcome().summary(slo=SLO(ttft_s=-1))
    with pytest.raises(InputError, match="leave one of them out"):
        small_outcome().summary(4.0, slo=SLO(ttft_s=1))


def test_fairness_is_jains_index() -> None:
    outcome = replace(small_outcome(), replica=np.arange(10) % 2)
    assert "fairness_requests" not in outcome.summary()
    for n_replicas, expected in ((2, 1.0), (4, 0.5)):
        summary = outcome.summary(n_replicas=n_replicas)
        assert summary["fairness_requests"] == pytest.approx(expected)
    even, odd = 5 * 7 + (1 + 3 + 5 + 7 + 9), 5 * 7 + (2 + 4 + 6 + 8 + 10)
    jain = (even + odd) ** 2 / (2 * (even**2 + odd**2))
    assert outcome.summary(n_replicas=2)["fairness_tokens"] == pytest.approx(jain)
    assert small_outcome().summary(n_replicas=4)["fairness_requests"] == pytest.approx(0.25)


def test_served_requests_alone() -> None:
    outcome = small_outcome(rejected=3)
    strict, served = outcome.summary(), outcome.summary(served_only=True)
    assert strict["served_share"] == served["served_share"] == 0.7
    assert (strict["e2e_mean_s"], strict["e2e_std_s"], strict["time_to_90_s"]) == (math.inf,) * 3
    assert served["e2e_mean_s"] == pytest.approx(np.mean(np.arange(1, 8)))
    assert served["e2e_p99_s"] == pytest.approx(np.percentile(np.arange(1, 8), 99))
    assert served["tpot_p50_s"] == pytest.approx(np.median([(i + 0.5) / i for i in range(1, 7)]))
    nothing = small_outcome(rejected=10).summary(served_only=True)
    assert math.isnan(nothing["e2e_mean_s"])
    assert math.isnan(nothing["e2e_p99_s"])


def test_what_is_not_finished_counts_as_infinitely_slow() -> None:
    outcome = small_outcome()
    finished_at_s = np.where(np.arange(10) < 8, outcome.finished_at_s, np.nan)
    summary = replace(outcome, finished_at_s=finished_at_s).summary(goodput_latency_s=100.0)
    assert summary["e2e_mean_s"] == summary["e2e_p95_s"] == summary["ttft_p99_s"] == math.inf
    assert summary["e2e_p50_s"] == 5.5
    assert summary["rejected"] == 0
    assert summary["served_share"] == 0.8
    assert summary["goodput_rps"] == summary["throughput_rps"] == pytest.approx(8 / 15)


def test_percentiles_do_not_hide_rejected_requests() -> None:
    summary = small_outcome(rejected=1).summary(goodput_latency_s=100.0)
    assert summary["rejected"] == 1
    assert summary["e2e_p50_s"] == 5.5
    for name in ("e2e_p95_s", "e2e_p99_s", "e2e_max_s", "e2e_mean_s", "ttft_p99_s", "queue_p99_s"):
        assert summary[name] == math.inf
    assert summary["tpot_p99_s"] == math.inf
    assert summary["makespan_s"] == 17.0
    assert summary["throughput_rps"] == pytest.approx(9 / 17)
    assert summary["goodput_rps"] == pytest.approx(9 / 17)


def test_an_outcome_with_nothing_served_is_all_infinite() -> None:
    summary = small_outcome(rejected=10).summary(goodput_latency_s=1.0)
    assert summary["rejected"] == 10
    assert summary["e2e_p50_s"] == math.inf
    assert summary["throughput_rps"] == summary["goodput_rps"] == summary["makespan_s"] == 0.0
    assert not any(math.isnan(value) for value in summary.values())


def test_finite_percentiles_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 100, 1001):
        values = rng.exponential(1.0, n)
        for q in (0, 1, 50, 90, 95, 99, 100):
            assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)


def test_percentiles_count_infinities() -> None:
    values = np.array([3.0, math.inf, 1.0, 2.0, math.inf])
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == 3.0
    assert percentile(values, 51) == math.inf  # between the finite and the infinite
    assert percentile(values, 75) == math.inf
    assert percentile(values, 100) == math.inf
    assert math.isnan(percentile(np.array([]), 50))


@pytest.mark.parametrize("rejected", [0, 3])
def test_csv_round_trip(tmp_path: Path, rejected: int) -> None:
    outcome = small_outcome(rejected)
    outcome.to_csv(tmp_path / "new" / "requests.csv")
    with (tmp_path / "new" / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, column in outcome.columns().items():
        read = np.array([row[name] for row in rows]).astype(column.dtype)
        np.testing.assert_array_equal(read, column)


def test_parquet_round_trip(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    case = random_case(1)
    outcome = simulate(case.workload, case.cluster, case.assignment)
    outcome.to_parquet(tmp_path / "requests.parquet")
    table = parquet.read_table(tmp_path / "requests.parquet")
    assert table.column_names == list(outcome.columns())
    for name, column in outcome.columns().items():
        read = table[name].to_numpy()
        assert read.dtype == column.dtype
        np.testing.assert_array_equal(read, column)


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (small_outcome().to_csv, small_outcome().to_parquet):
        with pytest.raises(InputError, match=r"cannot write .*requests"):
            write(tmp_path / "file" / "requests")
        (tmp_path / "taken").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="cannot write"):
            write(tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
