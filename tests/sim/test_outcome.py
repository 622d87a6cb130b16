"""What an outcome tells of its requests, the rejected ones included."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.errors import InputError
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
    )


def test_latencies_by_hand() -> None:
    outcome = small_outcome()
    assert len(outcome) == 10
    np.testing.assert_array_equal(outcome.queue_s, 0.25)
    np.testing.assert_array_equal(outcome.ttft_s, 0.5)
    np.testing.assert_array_equal(outcome.e2e_s, np.arange(1, 11))
    # Request 0 has no token after its first; request 3 has 3 more, in 3.5 s.
    assert outcome.tpot_s[0] == 0.0
    assert outcome.tpot_s[3] == pytest.approx(3.5 / 3)


def test_summary_by_hand() -> None:
    summary = small_outcome().summary(goodput_latency_s=4.0)
    assert summary["requests"] == 10
    assert summary["rejected"] == 0
    assert summary["preemptions"] == 5
    assert summary["makespan_s"] == 19.0
    assert summary["throughput_rps"] == pytest.approx(10 / 19)
    assert summary["goodput_rps"] == pytest.approx(4 / 19)
    assert summary["e2e_mean_s"] == 5.5
    assert summary["e2e_p50_s"] == 5.5
    assert summary["e2e_p90_s"] == pytest.approx(9.1)
    assert summary["e2e_max_s"] == 10.0
    expected = {
        f"{metric}_{what}_s"
        for metric in ("ttft", "tpot", "e2e", "queue")
        for what in ("mean", "p50", "p90", "p95", "p99", "max")
    }
    assert expected < set(summary)
    assert "goodput_rps" not in small_outcome().summary()


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
