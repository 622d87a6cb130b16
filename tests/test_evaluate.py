"""The command that compares routers: what it writes, keeps, repeats and refuses."""

import csv
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmroute_gym.config import (
    ClusterConfig,
    EvaluateConfig,
    EvaluationConfig,
    ModelConfig,
    ObservationConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate, main
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster
from tests.config.test_config import composed
from tests.training.runs import rows

pytestmark = pytest.mark.cli

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
        "comparison_full.csv",
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


@pytest.mark.parametrize("workload", ["shared_prefix", "multi_turn", "trace"])
def test_what_prompts_share_is_remembered_and_counted(tmp_path: Path, workload: str) -> None:
    given = ["cluster=h100-llama-3.1-8b", f"workload={workload}", "workload.qps=8"]
    if workload == "shared_prefix":
        given += ["workload.prompts.groups=3", "workload.prompts.output_tokens=40"]
    if workload == "trace":
        path = tmp_path / "t.jsonl"
        size = {"input_length": 900, "output_length": 9}
        recorded = [{"timestamp": 100 * i, **size, "hash_ids": [i % 3, 9 + i]} for i in range(40)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in recorded))
        given.append(f"workload.path={path}")
    small = ("runs=2", "requests=30", "resamples=50", "routers=[lor]")
    evaluate(replace(composed("evaluate", *given, *small), run_dir=str(tmp_path / "run")))
    metrics = {row["metric"]: row for row in rows(tmp_path / "run" / "comparison_full.csv")}
    assert 0 < float(metrics["cached_token_share"]["value"]) < 1


def test_the_group_evaluation_may_be_left_out(evaluating: Evaluating) -> None:
    full = EvaluationConfig(runs=3, routers=["lor"], seed=7)
    left_out, given, both = (
        evaluating("a", runs=3, routers=["lor"], seed=7),
        evaluating("b", runs=None, evaluation=replace(full, requests=30, resamples=50)),
        evaluating("c", runs=3, evaluation=full),
    )
    for folder in (given, both):
        for name in ("comparison.csv", "config.yaml"):
            text = (folder / name).read_text().replace(str(folder), str(left_out))
            assert text == (left_out / name).read_text()
    written = yaml.safe_load((left_out / "config.yaml").read_text())
    assert written["evaluation"]["runs"] == 3
    assert "runs" not in written


def test_every_key_of_the_group_but_the_objectives_may_be_given_without_it() -> None:
    assert {*EvaluateConfig.short, "slo"} == {entry.name for entry in fields(EvaluationConfig)}
    for name, full in EvaluateConfig.short.items():
        assert full == f"evaluation.{name}"
        assert getattr(EvaluateConfig(), name) is None


def test_a_setting_given_twice_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^runs=3 and evaluation\.runs=4 set the same thing"):
        EvaluateConfig(runs=3, evaluation=EvaluationConfig(runs=4))
    # Typed is typed, even where it is the default.
    typed = ["runs=3", "evaluation.runs=20", f"run_dir={tmp_path}/run"]
    monkeypatch.setattr("sys.argv", ["evaluate", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert said == (
        "runs=3 and evaluation.runs=20 set the same thing differently; leave one of them out\n"
    )


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
        "comparison_full.csv",
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


def test_evaluating_the_checkpoint_gives_the_numbers_of_the_training(
    finished: Path, tmp_path: Path
) -> None:
    evaluate(
        EvaluateConfig(
            runs=2,
            requests=30,
            resamples=50,
            checkpoint=str(finished / "model.zip"),
            run_dir=str(tmp_path / "again"),
        )
    )
    again = (tmp_path / "again" / "comparison.csv").read_bytes()
    assert again == (finished / "comparison.csv").read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"observation": ObservationConfig(information="router")},
            "observation.information=engine, got router",
        ),
        ({"observation": ObservationConfig(predicted_output_sigma=0.5)}, "sigma=null, got 0.5"),
    ],
)
def test_checkpoint_of_another_layout_is_refused(
    finished: Path, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as error:
        evaluate(
            EvaluateConfig(
                checkpoint=str(finished),
                run_dir=str(tmp_path / "no"),
                **settings,  # type: ignore[arg-type]
            )
        )
    assert words in str(error.value)
    assert not (tmp_path / "no").exists()


def test_only_a_policy_over_a_set_serves_other_numbers_of_replicas(
    finished: Path, tmp_path: Path
) -> None:
    told = ObservationConfig()
    with pytest.raises(InputError, match="trained with 4 replicas and its network takes no other"):
        Layout(4, told, ModelConfig(policy="mlp")).check_fits(5, told)
    evaluate(
        EvaluateConfig(
            runs=2,
            requests=30,
            resamples=50,
            checkpoint=str(finished),
            cluster=ClusterConfig(replicas=7),
            run_dir=str(tmp_path / "seven"),
        )
    )
    assert len(rows(tmp_path / "seven" / "comparison.csv")) == 3
