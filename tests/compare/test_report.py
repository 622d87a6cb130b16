"""A comparison's files, its table and its picture."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from llmroute_gym.compare.pictures import plot_latencies
from llmroute_gym.compare.report import write_all_metrics, write_comparison
from llmroute_gym.compare.statistics import compare
from llmroute_gym.compare.text import table
from llmroute_gym.config import EvaluationConfig
from llmroute_gym.ground.metrics import METRICS
from llmroute_gym.sim import Outcome
from tests.compare.outcomes import outcome


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


def test_every_metric_has_its_line(runs: list[Outcome], tmp_path: Path) -> None:
    config = EvaluationConfig(runs=4, requests=50, resamples=50)
    unlucky = [outcome(run.e2e_s.copy(), rejected=5) for run in runs]
    results = compare({"lor": runs, "odd": unlucky}, "lor", config, n_replicas=2)
    write_all_metrics(results, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = [key for key in METRICS if not key.startswith("goodput")]
    latencies = [key for key in known if METRICS[key].latency]
    expected = [(router, key) for router in ("lor", "odd") for key in [*known, *latencies]]
    assert [(row["router"], row["metric"]) for row in rows] == expected
    found = {(row["router"], row["metric"], row["requests"]): row for row in rows}
    strict, served = (found["odd", "e2e_mean_s", which] for which in ("all", "served"))
    assert strict["value"] == "inf"
    assert float(served["value"]) == pytest.approx(results[1].served["e2e_mean_s"].value, rel=1e-5)
    assert float(served["low"]) <= float(served["value"]) <= float(served["high"])
    assert (served["unit"], served["title"]) == ("s", "E2E mean")
    assert found["odd", "served_share", "all"]["value"] == "0.9"
    assert found["lor", "fairness_requests", "all"]["value"] == "0.5"


def test_table_tells_of_rejected_requests(runs: list[Outcome]) -> None:
    config = EvaluationConfig(runs=4, requests=50, resamples=50)
    unlucky = [outcome(run.e2e_s.copy(), rejected=5) for run in runs]
    results = compare({"lor": unlucky, "jsq": unlucky, "odd": runs}, "lor", config)
    text = table(results, "lor", config)
    lines = text.splitlines()
    served = [line for line in lines if line.startswith("  90.00% served")]
    assert len(served) == 2
    assert f"{results[0].served['e2e_mean_s'].value:.2f}" in served[0]
    assert f"{results[0].served['e2e_p99_s'].value:.2f}" in served[0]
    assert "n/a" in next(line for line in lines if line.startswith("jsq"))
    assert "nan" not in text
    assert "Rejected requests count as infinitely slow" in text
    assert "ejected" not in table(compare({"lor": runs}, "lor", config), "lor", config)


def test_picture_tells_of_rejected_requests(
    runs: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    unlucky = [outcome(run.e2e_s.copy(), rejected=5) for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_latencies({"lor": runs, "odd": unlucky}, tmp_path / "picture.png", "title")
    panel = drawn[0].axes[0]
    assert panel.get_xlabel() == "End-to-end latency (s)"
    legend = [text.get_text() for text in panel.get_legend().get_texts()]
    assert legend == ["lor", "odd (90.00% served)"]
    seconds, slower = panel.lines[1].get_data()
    # The last one that was served is slower than all but the rejected ones.
    assert slower[np.isfinite(seconds)].min() == pytest.approx(0.1 + 1 / 200)
