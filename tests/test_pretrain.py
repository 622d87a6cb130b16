"""The pretraining command, small: what it writes, measures and refuses."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.collect_demos import collect_demos
from llmroute_gym.config import (
    CloningConfig,
    ClusterConfig,
    CollectDemosConfig,
    EvaluationConfig,
    ModelConfig,
    ObservationConfig,
    PretrainConfig,
    RewardConfig,
    TrainingConfig,
)
from llmroute_gym.demos.collection import collect
from llmroute_gym.errors import InputError
from llmroute_gym.pretrain import pretrain
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.training.comparison import comparison

pytestmark = pytest.mark.cli

RESULTS = {
    "accuracy.csv",
    "comparison.csv",
    "comparison_full.csv",
    "config.yaml",
    "latency_cdf.png",
    "learning_curve.csv",
    "learning_curve.png",
    "model.zip",
}


def collecting(folder: Path, **settings: Any) -> CollectDemosConfig:
    defaults: dict[str, Any] = {
        "policies": ["round_robin", "lor"],
        "decisions": 80,
        "decisions_per_episode": 20,
        "requests_per_episode": 40,
        "disturbance": 0.0,
        "engine": "reference",
        "run_dir": str(folder),
    }
    return CollectDemosConfig(**{**defaults, **settings}).validate()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_demos(collecting(tmp_path_factory.mktemp("demos")))


def tiny(file: Path, folder: Path, **settings: Any) -> PretrainConfig:
    defaults: dict[str, Any] = {
        "demos": str(file),
        "cloning": CloningConfig(epochs=3),
        "model": ModelConfig(policy="mlp", actor_sizes=[8], critic_sizes=[8]),
        "evaluation": EvaluationConfig(
            routers=[], runs=2, requests=30, resamples=50, engine="reference"
        ),
        "run_dir": str(folder),
    }
    return PretrainConfig(**{**defaults, **settings}).validate()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    p99 = pretrain(tiny(file, folder))
    assert p99 == pytest.approx(float(rows(folder / "comparison.csv")[0]["e2e_p99_s"]), rel=1e-5)
    return folder


def test_everything_is_in_the_run_folder(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == RESULTS


def test_the_clone_is_compared_with_those_it_imitates(finished: Path) -> None:
    names = [row["router"] for row in rows(finished / "comparison.csv")]
    assert names == ["policy", "round_robin", "lor"]  # as in the file


@pytest.mark.parametrize(
    ("imitated", "settings", "baseline"),
    [
        (["lor", "round_robin"], {}, "round_robin"),
        (["lor", "jsq"], {}, "lor"),
        (["lor_hybrid", "jsq"], {"routers": ["lor", "jsq", "lor_hybrid"]}, "jsq"),
        (["jsq"], {"routers": ["lor", "random"]}, "lor"),
        (["jsq"], {"routers": ["lor", "round_robin"]}, "round_robin"),
        (["lor", "round_robin"], {"baseline": "lor"}, "lor"),
    ],
)
def test_the_baseline_is_round_robin_or_the_first_that_is_imitated(
    imitated: list[str],
    settings: dict[str, Any],
    baseline: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    demos = collect(collecting(tmp_path, policies=imitated, decisions=20))
    with caplog.at_level("INFO"):
        chosen = comparison(EvaluationConfig(**{"routers": [], **settings}), demos)
    assert chosen.routers == settings.get("routers", imitated)
    assert chosen.baseline == baseline
    assert f"the baseline is {baseline}" in caplog.text


def test_the_baseline_has_no_difference(finished: Path) -> None:
    told = {
        row["router"]: row["e2e_p99_s_vs_baseline"] for row in rows(finished / "comparison.csv")
    }
    assert [name for name, value in told.items() if value == ""] == ["round_robin"]


def test_accuracy_is_told_by_router_beside_what_is_attainable(finished: Path) -> None:
    told = {row["router"]: row for row in rows(finished / "accuracy.csv")}
    assert list(told) == ["lor", "round_robin", "all"]
    for name in ("lor", "round_robin"):
        assert float(told[name]["attainable_known"]) == 1.0
        assert float(told[name]["attainable_mixed"]) <= 1.0
    decisions = [int(told[name]["decisions"]) for name in told]
    assert decisions[2] == decisions[0] + decisions[1] > 0
    accuracies = [float(told[name]["accuracy"]) for name in told]
    assert accuracies[2] * decisions[2] == pytest.approx(
        np.dot(accuracies[:2], decisions[:2]), rel=1e-4
    )


def test_the_learning_curve_marks_the_epochs_kept(finished: Path) -> None:
    curve = rows(finished / "learning_curve.csv")
    for network in ("actor", "critic"):
        kept = [row["kept"] for row in curve if row["network"] == network]
        assert sorted(kept) == ["0"] * (len(kept) - 1) + ["1"]


def test_the_checkpoint_is_one_of_a_training(finished: Path) -> None:
    checkpoint = Checkpoint.load(finished)
    checkpoint.check_fits(4, ObservationConfig())
    assert checkpoint.layout.model == ModelConfig(policy="mlp", actor_sizes=[8], critic_sizes=[8])


def test_equal_seeds_give_equal_clones(file: Path, finished: Path, tmp_path: Path) -> None:
    pretrain(tiny(file, tmp_path / "again"))
    for name in ("accuracy.csv", "learning_curve.csv", "comparison.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"demos": None}, "demos is missing"),
        ({"demos": "nowhere.parquet"}, "nowhere.parquet do not exist"),
        ({"cluster": ClusterConfig(replicas=8)}, "replicas is 4 there and 8 here"),
        (
            {"observation": ObservationConfig(information="router")},
            "observation.information is engine there and router here",
        ),
        ({"reward": RewardConfig(latency_weight=1.2)}, "latency_weight is 1.7 there and 1.2 here"),
        ({"training": TrainingConfig(gamma=0.9)}, "gamma is 0.95 there and 0.9 here"),
        ({"evaluation": EvaluationConfig(routers=["lro"])}, "unknown router 'lro'"),
        ({"cloning": CloningConfig(validation_share=0.0)}, "validation_share must be > 0"),
    ],
)
def test_wrong_input_writes_nothing(
    file: Path, tmp_path: Path, change: dict[str, Any], phrase: str
) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError) as error:
        pretrain(tiny(file, tmp_path / "new", **change))
    assert phrase in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    assert file.read_bytes() == before


def test_a_finished_run_is_kept(file: Path, finished: Path) -> None:
    before = (finished / "model.zip").read_bytes()
    with pytest.raises(InputError, match="already holds a finished run"):
        pretrain(tiny(file, finished))
    assert (finished / "model.zip").read_bytes() == before


def test_the_command_ends_with_2_and_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmroute_gym.pretrain",
            f"demos={tmp_path / 'cut.parquet'}",
            f"run_dir={tmp_path / 'new'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be read as Parquet" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "new").glob("*"))
