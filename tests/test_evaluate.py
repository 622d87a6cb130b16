"""The comparison of routers: common requests, pooled percentiles, intervals, and the command."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.compare.report import write_comparison
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.statistics import METRICS, PAIRED, compare
from llmroute_gym.compare.text import table
from llmroute_gym.config import (
    ClusterConfig,
    EvaluateConfig,
    EvaluationConfig,
    ObservationConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.routers import make
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sim import Outcome, Workload
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.sources import TraceWorkload

SMALL = EvaluationConfig(runs=3, requests=40, resamples=200)


def outcome(e2e_s: np.ndarray, rejected: int = 0) -> Outcome:
    """Requests that arrive at times 0, 1, 2, ... and take what is given."""
    n = len(e2e_s)
    arrived = np.arange(n, dtype=np.float64)
    finished = arrived + e2e_s
    finished[:rejected] = np.inf
    replica = np.zeros(n, dtype=np.int64)
    replica[:rejected] = -1
    ones = np.ones(n, dtype=np.int64)
    return Outcome(arrived, arrived, finished, finished, replica, ones, ones, 0 * ones)


@pytest.fixture
def runs(rng: np.random.Generator) -> list[Outcome]:
    return [outcome(rng.exponential(2.0 + run, 50)) for run in range(4)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


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
    for name in METRICS:
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


def test_workloads_depend_on_seed_and_run_only() -> None:
    source, cluster = build_source(WorkloadConfig(), 2.5), build_cluster(ClusterConfig())
    first, again = (common_workloads(source, cluster, SMALL) for _ in range(2))
    other = common_workloads(source, cluster, replace(SMALL, seed=3))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.arrived_at_s, b.arrived_at_s)
        assert np.array_equal(a.prompt_tokens, b.prompt_tokens)
        assert not np.array_equal(a.arrived_at_s, c.arrived_at_s)
    assert not np.array_equal(first[0].prompt_tokens, first[1].prompt_tokens)


@pytest.mark.parametrize("new_times", [False, True])
def test_windows_of_a_trace_are_spread_over_it(new_times: bool) -> None:
    n = 1000
    recorded = Workload(np.arange(n) * 2.0, np.arange(1, n + 1), np.ones(n, dtype=int))
    arrivals = build_source(WorkloadConfig(), 4.0).arrivals if new_times else None
    source = TraceWorkload(recorded, 4.0, arrivals)
    workloads = common_workloads(source, build_cluster(ClusterConfig()), SMALL)
    assert [int(one.prompt_tokens[0]) for one in workloads] == [1, 481, 961]
    assert all(len(one) == 40 for one in workloads)
    if not new_times:
        assert np.allclose(np.diff(workloads[1].arrived_at_s), 0.25)
        assert workloads[2].arrived_at_s[0] == 0


def test_a_trace_shorter_than_a_run_is_refused() -> None:
    recorded = Workload(np.arange(10.0), np.ones(10, dtype=int), np.ones(10, dtype=int))
    with pytest.raises(InputError, match="more than the trace's 10"):
        common_workloads(TraceWorkload(recorded, 1.0), build_cluster(ClusterConfig()), SMALL)


def test_all_routers_serve_the_same_requests() -> None:
    cluster = build_cluster(ClusterConfig())
    workloads = common_workloads(build_source(WorkloadConfig(), 2.5), cluster, SMALL)
    for name in ("round_robin", "random"):
        outcomes, again = (
            serve(make(name), workloads, cluster, SMALL, ObservationConfig()) for _ in range(2)
        )
        for workload, one, two in zip(workloads, outcomes, again, strict=True):
            assert np.array_equal(one.arrived_at_s, workload.arrived_at_s)
            assert np.array_equal(one.replica, two.replica)
            assert np.isfinite(one.finished_at_s).all()


def test_table_and_file_hold_every_router(runs: list[Outcome], tmp_path: Path) -> None:
    config = EvaluationConfig(runs=4, requests=50, resamples=50)
    results = compare({"round_robin": runs, "lor": runs}, "round_robin", config)
    text = table(results, "round_robin", config)
    assert "over all 200 requests of 4 runs" in text
    assert "+0.0%" in text
    assert max(map(len, text.splitlines())) <= 140
    write_comparison(results, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = {row["router"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["round_robin", "lor"]
    assert float(rows["lor"]["e2e_p99_s_vs_baseline"]) == 0
    assert rows["round_robin"]["e2e_p99_s_vs_baseline"] == ""
    p99 = results[0].metrics["e2e_p99_s"]
    assert float(rows["lor"]["e2e_p99_s_low"]) == pytest.approx(p99.low, rel=1e-5)


Evaluating = Callable[..., Path]


@pytest.fixture
def evaluating(tmp_path: Path) -> Evaluating:
    def run(name: str = "run", **settings: object) -> Path:
        small = {"runs": 2, "requests": 30, "resamples": 50, "run_dir": str(tmp_path / name)}
        evaluate(EvaluateConfig(**{**small, **settings}))  # type: ignore[arg-type]
        return tmp_path / name

    return run


def test_command_writes_its_results(
    evaluating: Evaluating, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluating(routers=["round_robin", "lor", "least_tokens"])
    assert sorted(file.name for file in folder.iterdir()) == [
        "comparison.csv",
        "config.yaml",
        "latency_cdf.png",
    ]
    assert (folder / "latency_cdf.png").read_bytes().startswith(b"\x89PNG")
    assert "least_tokens" in capsys.readouterr().out


def test_a_trace_is_compared_at_its_own_times(
    evaluating: Evaluating, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    trace = Workload(np.cumsum(rng.exponential(0.2, 30)), np.full(30, 400), np.full(30, 40))
    trace.to_csv(tmp_path / "t.csv")
    own = WorkloadConfig(
        source="trace", path=str(tmp_path / "t.csv"), arrivals={"process": "trace"}, own_rate=True
    )
    folder = evaluating(workload=own, routers=["lor"])
    served = simulate(trace.rebased(), build_cluster(ClusterConfig()), "lor")
    with (folder / "comparison.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["e2e_mean_s"]) == pytest.approx(float(served.e2e_s.mean()), rel=1e-5)
    title = f"t.csv at its own rate ({trace.qps:.3g} requests/s, its own arrivals) to 4 x a100-"
    assert title in capsys.readouterr().out


def test_same_seed_same_bytes(evaluating: Evaluating) -> None:
    first, again, other = (
        (evaluating(name, seed=seed, routers=["random", "lor"]) / "comparison.csv").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_a_finished_run_is_kept(evaluating: Evaluating) -> None:
    folder = evaluating()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match="already holds a finished run"):
        evaluating(seed=2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_an_interrupted_run_leaves_no_results_and_a_usable_folder(
    evaluating: Evaluating, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.compare.report.write_comparison", fail)
        with pytest.raises(KeyboardInterrupt):
            evaluating()
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "config.yaml",
        "latency_cdf.png",
    ]
    assert (evaluating() / "comparison.csv").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"routers": ["lro"]}, "did you mean 'lor'"),
        ({"routers": []}, "name at least one"),
        ({"routers": ["lor", "lor"]}, "routers names lor twice"),
        ({"baseline": "lor", "routers": ["round_robin"]}, "unknown baseline 'lor'"),
        ({"cluster": ClusterConfig(profile="a100-internlm")}, "did you mean 'a100-internlm-20b'"),
        ({"cluster": ClusterConfig(scheduler="chunk")}, "did you mean 'chunked'"),
        ({"cluster": ClusterConfig(num_blocks=20)}, "num_blocks"),
        ({"workload": WorkloadConfig(lengths={"model": "azure"})}, "did you mean 'azure_conv'"),
        ({"workload": WorkloadConfig(lengths={})}, "workload.lengths.model is missing"),
        ({"workload": WorkloadConfig(arrivals={"process": "gamma"})}, "cv"),
        ({"workload": WorkloadConfig(source="trace", path="no.csv")}, "no file no.csv"),
        (
            {"workload": WorkloadConfig(source="trace", path="azure_conv_2023.csv")},
            "python -m llmroute_gym.fetch azure_conv_2023 downloads it",
        ),
        ({"checkpoint": "nowhere"}, "checkpoint nowhere does not exist"),
    ],
)
def test_wrong_input_leaves_no_folder(
    evaluating: Evaluating, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as error:
        evaluating(**settings)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the run folder .*run_dir=FOLDER"):
        RunFolder(tmp_path / "file" / "run")
