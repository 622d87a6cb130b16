"""The main command, small: what it writes, keeps, repeats and refuses."""

import csv
import json
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from llmroute_gym.compare.capacity import estimated_capacity
from llmroute_gym.config import (
    ClusterConfig,
    CurriculumConfig,
    EnvConfig,
    EvaluateConfig,
    EvaluationConfig,
    GroupConfig,
    ModelConfig,
    ObservationConfig,
    StabilizationConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.train import train
from tests.config.test_config import composed
from tests.sb3.hostile import Harm, hostile, replaced

pytestmark = pytest.mark.cli

RESULTS = {
    "comparison.csv",
    "comparison_full.csv",
    "config.yaml",
    "findings.json",
    "latency_cdf.png",
    "metrics.csv",
    "model.zip",
    "training.png",
}


def tiny(folder: Path, **settings: object) -> TrainConfig:
    defaults: dict[str, object] = {
        "training": TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2),
        "env": EnvConfig(num_envs=2, requests_per_episode=20),
        "warm_start": WarmStartConfig(epochs=2, decisions=60),
        "stabilization": StabilizationConfig(steps=20),
        "evaluation": EvaluationConfig(runs=2, requests=30, resamples=50),
        "run_dir": str(folder),
    }
    return TrainConfig(**{**defaults, **settings}).validate()  # type: ignore[arg-type]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    p99 = train(tiny(folder))
    assert p99 == pytest.approx(float(rows(folder / "comparison.csv")[0]["e2e_p99_s"]), rel=1e-5)
    return folder


def test_everything_is_in_the_run_folder(finished: Path) -> None:
    assert {file.name for file in finished.iterdir()} == RESULTS | {"tensorboard"}
    assert list((finished / "tensorboard").iterdir())
    comparison = rows(finished / "comparison.csv")
    assert [row["router"] for row in comparison] == ["policy", "round_robin", "lor"]
    assert comparison[0]["e2e_p99_s_vs_baseline"] != ""
    assert comparison[1]["e2e_p99_s_vs_baseline"] == ""


def test_metrics_reach_the_last_update(finished: Path) -> None:
    metrics = rows(finished / "metrics.csv")
    assert metrics[-1]["time/total_timesteps"] == "96"
    assert metrics[-1]["train/n_updates"] == "4"
    shares = [float(metrics[0][f"replica/share_{index:02d}"]) for index in range(4)]
    assert sum(shares) == pytest.approx(1)
    assert float(metrics[0]["reward/latency"]) > 0


def test_written_settings_are_those_in_force(finished: Path) -> None:
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert written["training"]["ppo_requests"] == 96
    assert written["reward"]["latency_weight"] == 1.7


def test_checkpoint_is_one_file_that_carries_its_layout(finished: Path) -> None:
    with zipfile.ZipFile(finished / "model.zip") as archive:
        layout = json.loads(archive.read("llmroute/layout.json"))
    assert layout["replicas"] == 4
    assert layout["columns"][:2] == ["waiting", "running"]
    assert layout["model"]["actor_sizes"] == [64, 64]


def test_checkpoint_routes_like_the_model(finished: Path) -> None:
    from llmroute_gym.envs.observation import SCALE, scale_rows
    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import PolicyRouter

    checkpoint = Checkpoint.load(finished)
    router = PolicyRouter(checkpoint)
    rng = np.random.default_rng(0)
    assert type(checkpoint.model).__name__ == "RouterPPO"
    for _ in range(50):
        observed = rng.exponential(0.3, (4, len(SCALE))) / SCALE
        chosen = int(checkpoint.model.predict(scale_rows(observed), deterministic=True)[0])
        assert router.route(observed, np.ones(4, dtype=bool)) == chosen
        mask = np.arange(4) != chosen
        assert router.route(observed, mask) != chosen


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
    from llmroute_gym.sb3.checkpoint import Layout

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


def test_checkpoint_with_unknown_columns_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmroute_gym.sb3 import checkpoint

    monkeypatch.setattr(checkpoint, "SIGNAL_NAMES", ("waiting", "running"))
    with pytest.raises(InputError, match="this version knows waiting, running; train it again"):
        checkpoint.Checkpoint.load(finished).check_fits(4, ObservationConfig())


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(InputError, match="not a complete checkpoint"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"policy_class": 1}', bytes(100)])
@pytest.mark.parametrize("file", ["data", "policy.pth", "llmroute/layout.json"])
def test_a_damaged_checkpoint_is_refused(
    finished: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    copy = damaged(finished, file, content)
    if file == "llmroute/layout.json" and content is None:
        # It is one of another program then.
        assert Checkpoint.load(copy).layout.model == Checkpoint.load(finished).layout.model
        return
    with pytest.raises(InputError, match="not a complete checkpoint"):
        Checkpoint.load(copy)
    start = WarmStartConfig(checkpoint=str(copy), cloning=False)
    with pytest.raises(InputError):
        train(tiny(tmp_path / "run", warm_start=start))
    assert not (tmp_path / "run").exists()


def test_same_seed_same_bytes(finished: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "same"))
    train(tiny(tmp_path / "other", seed=1))
    first = (finished / "comparison.csv").read_bytes()
    assert (tmp_path / "same" / "comparison.csv").read_bytes() == first
    assert (tmp_path / "other" / "comparison.csv").read_bytes() != first


def test_a_finished_run_is_kept(finished: Path) -> None:
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="already holds a finished run"):
        train(tiny(finished, seed=9))
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_run_that_stops_in_training_leaves_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.training.learning.RouterMonitor._on_rollout_end", fail)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path / "run"))
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert left == {
        "config.yaml",
        "findings.json",
        "metrics.csv.part",
        "tensorboard",
        "training_state.zip",
    }
    kept = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"holds an interrupted training.*go on with resume="):
        train(tiny(tmp_path / "run", seed=9))
    assert (tmp_path / "run" / "config.yaml").read_text() == kept


def damaged(folder: Path, file: str, content: bytes | None) -> Path:
    """Copies the checkpoint of a run with one of its files changed, or left out."""
    with zipfile.ZipFile(folder / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files.pop(file)
    copy = folder.parent / "damaged.zip"
    with zipfile.ZipFile(copy, "w") as archive:
        for name, held in files.items():
            archive.writestr(name, held)
        if content is not None:
            archive.writestr(file, content)
    return copy


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation": EvaluationConfig(routers=["lro"])},
        {"evaluation": EvaluationConfig(baseline="jsq")},
        {"cluster": ClusterConfig(profile="none")},
        {"cluster": ClusterConfig(num_blocks=30)},
        {"stabilization": StabilizationConfig(policy="lro")},
        {"warm_start": WarmStartConfig(policies=["lro"])},
        {"warm_start": WarmStartConfig(demos="none.parquet")},
        {"warm_start": WarmStartConfig(checkpoint="none.zip")},
        {"warm_start": WarmStartConfig(decisions=8)},
    ],
)
def test_wrong_input_is_found_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(InputError):
        train(tiny(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("requests", "envs", "steps", "expected"),
    [(20000, 4, 128, (128, 40)), (512, 4, 128, (128, 1)), (96, 2, 24, (24, 2)), (1, 1, 9, (2, 1))],
)
def test_requests_are_rounded_up_to_whole_rollouts(
    requests: int, envs: int, steps: int, expected: tuple[int, int]
) -> None:
    from llmroute_gym.training.setup import rollout_steps, rollouts

    training = TrainingConfig(ppo_requests=requests, rollout_steps=steps)
    assert (rollout_steps(training, envs), rollouts(training, envs)) == expected


class Killed(BaseException):
    """Nothing in the training catches it, as nothing survives a kill."""


@pytest.mark.parametrize(
    "moment", ["RouterMonitor._on_rollout_end", "RouterPPO._log_update", "Checkpoint.save"]
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from llmroute_gym.training import learning

    folder, kind = tmp_path / "run", getattr(learning, moment.split(".")[0])
    original, calls = getattr(kind, moment.split(".")[1]), []

    def kill(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2 or moment == "Checkpoint.save":
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, moment.split(".")[1], kill)
        with pytest.raises(Killed):
            train(tiny(folder))
    assert not (folder / "comparison.csv").exists()
    empty = tmp_path / "made" / "by_hydra"
    empty.mkdir(parents=True)
    train(TrainConfig(resume=str(folder), run_dir=str(empty)))
    assert not empty.exists()
    assert {file.name for file in folder.iterdir()} == RESULTS | {"tensorboard"}
    for name in ("comparison.csv", "config.yaml"):
        again = (folder / name).read_text().replace(str(folder), str(finished))
        assert again == (finished / name).read_text()
    first, second = (rows(one / "metrics.csv") for one in (finished, folder))
    for before, after in zip(first, second, strict=True):
        for key in ("time/total_timesteps", "train/value_loss", "reward/latency", "coef/kl_ref"):
            assert before[key] == after[key]


def test_a_run_interrupted_in_the_comparison_goes_on_too(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.compare.report.compare", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            train(tiny(folder))
    with pytest.raises(InputError, match="holds an interrupted training, which is kept; go on"):
        train(tiny(folder))
    (folder / "model.zip").unlink()
    train(TrainConfig(resume=str(folder), run_dir=str(folder)))
    assert {file.name for file in folder.iterdir()} == RESULTS | {"tensorboard"}
    comparisons = [(one / "comparison.csv").read_bytes() for one in (finished, folder)]
    assert comparisons[0] == comparisons[1]


def test_settings_that_changed_since_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.compare.report.compare", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            train(tiny(tmp_path))
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("ppo_requests: 96", "ppo_requests: 97"))
    with pytest.raises(InputError, match="ppo_requests: 96 became ppo_requests: 97; change it ba"):
        train(TrainConfig(resume=str(tmp_path), run_dir=str(tmp_path)))
    state = tmp_path / "training_state.zip"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(InputError, match=r"is no complete training state; .* the training anew in"):
        train(TrainConfig(resume=str(tmp_path), run_dir=str(tmp_path)))


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(InputError, match="is in use by another run"):
        train(tiny(tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
    # What a killed run leaves behind is nobody's.
    (tmp_path / "run" / ".in_use.lock").touch()
    with RunFolder(tmp_path / "run") as folder:
        folder.write_text("model.zip", "")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["model.zip"]
    with pytest.raises(InputError, match=r"holds a trained policy.*evaluate checkpoint="):
        RunFolder(tmp_path / "run")


def test_what_cannot_be_resumed_says_why(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for resume, words in (
        (tmp_path / "none", "is no folder"),
        (tmp_path / "other", "config.yaml does not exist"),
        (finished, "the run is finished, there is nothing to go on with"),
    ):
        with pytest.raises(InputError, match=words):
            train(TrainConfig(resume=str(resume), run_dir=str(tmp_path / "made")))
    RunFolder(tmp_path / "other").write_settings(tiny(tmp_path / "other"))
    with pytest.raises(InputError, match=r"no training_state\.zip"):
        train(TrainConfig(resume=str(tmp_path / "other"), run_dir=str(tmp_path / "made")))
    with pytest.raises(InputError, match="goes on with seed=0, got 5; give no other settings"):
        train(TrainConfig(resume=str(tmp_path / "other"), seed=5))


def test_a_checkpoint_starts_another_training(finished: Path, tmp_path: Path) -> None:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    start = WarmStartConfig(checkpoint=str(finished), cloning=False)
    train(tiny(tmp_path / "run", warm_start=start, curriculum=CurriculumConfig(stages=[2.5, 3.5])))
    model, before = (Checkpoint.load(one).model for one in (tmp_path / "run", finished))
    assert model.reference_origin == f"the checkpoint {finished / 'model.zip'}"
    reference = model.reference_policy.state_dict()
    for name, value in before.policy.state_dict().items():
        if not name.startswith(("value_net", "temperature")):
            assert torch.equal(reference[name], value), name
    assert rows(tmp_path / "run" / "metrics.csv")[-2]["curriculum/qps"] == "3.5"


def test_a_stock_checkpoint_starts_a_training_too(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("llmroute_gym:LLMRoute-v0", 1)
    PPO("MlpPolicy", env, device="cpu").save(tmp_path / "stock.zip")
    start = WarmStartConfig(checkpoint=str(tmp_path / "stock.zip"), cloning=False)
    with pytest.raises(InputError, match=r"has model\.policy=mlp, but .* model\.policy=repl"):
        train(tiny(tmp_path / "run", warm_start=start))
    assert not (tmp_path / "run").exists()
    train(tiny(tmp_path / "run", warm_start=start, model=ModelConfig(policy="mlp")))
    assert rows(tmp_path / "run" / "metrics.csv")[-1]["train/kl_ref"] != ""


def test_a_checkpoint_that_would_be_unpickled_must_be_trusted(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    from llmroute_gym.sb3 import TemperedMlpPolicy

    class Own(TemperedMlpPolicy):
        """Of no kind that the package knows."""

    env = make_vec_env("llmroute_gym:LLMRoute-v0", 1)
    PPO(Own, env, device="cpu").save(tmp_path / "own.zip")
    start = WarmStartConfig(checkpoint=str(tmp_path / "own.zip"), cloning=False)
    mlp = ModelConfig(policy="mlp")
    evaluating = EvaluateConfig(
        checkpoint=start.checkpoint, runs=2, requests=30, resamples=50, run_dir=str(tmp_path / "e")
    )
    for refused in (
        lambda: train(tiny(tmp_path / "run", warm_start=start, model=mlp)),
        lambda: evaluate(evaluating),
    ):
        with pytest.raises(InputError, match=r"may run any code; .* add trusted=true"):
            refused()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["own.zip"]
    train(tiny(tmp_path / "run", warm_start=replace(start, trusted=True), model=mlp))
    evaluate(replace(evaluating, trusted=True))
    assert rows(tmp_path / "e" / "comparison.csv")[0]["router"] == "policy"


def test_no_command_runs_what_is_in_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    from llmroute_gym.sb3 import RouterPPO

    harm, original = tmp_path / "harm", finished / "model.zip"
    pickled = hostile(original, tmp_path / "pickled.zip", harm)
    with pytest.raises(Exception):  # noqa: B017, PT011  (SB3 ends anyhow)
        RouterPPO.load(pickled, device="cpu")
    harm.rmdir()  # Stable-Baselines3 has run it

    def no_weights(name: str, held: bytes) -> bytes:
        return pickle.dumps(Harm(harm), 2) if name == "policy.pth" else held

    spoiled = replaced(original, tmp_path / "spoiled.zip", no_weights)

    def commands(checkpoint: Path, folder: Path) -> tuple[Callable[[], object], ...]:
        start = WarmStartConfig(checkpoint=str(checkpoint), cloning=False)
        evaluating = {"runs": 2, "requests": 30, "resamples": 50, "run_dir": str(folder / "e")}
        return (
            lambda: evaluate(EvaluateConfig(checkpoint=str(checkpoint), **evaluating)),  # type: ignore[arg-type]
            lambda: train(tiny(folder / "t", warm_start=start)),
        )

    for command in commands(pickled, tmp_path / "pickled"):
        command()
    again, before = (one / "comparison.csv" for one in (tmp_path / "pickled" / "e", finished))
    assert again.read_bytes() == before.read_bytes()
    for command in commands(spoiled, tmp_path / "spoiled"):
        with pytest.raises(InputError, match="is not a complete checkpoint"):
            command()
    assert not harm.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ModelConfig(critic_sizes=[32])}, r"critic_sizes=\[\d+,64\].*sizes=\[32\]"),
        ({"model": ModelConfig(activation="relu")}, "has model.activation=tanh, but the settings"),
        ({"observation": ObservationConfig(information="router")}, "information=engine"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    finished: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    start = WarmStartConfig(checkpoint=str(finished), cloning=False)
    with pytest.raises(InputError, match=words):
        train(tiny(tmp_path / "run", warm_start=start, **settings))
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    hot = TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2, learning_rate=1e30)
    with pytest.raises(InputError, match=r"not finite after .* lower training\.learning_rate"):
        train(tiny(tmp_path / "run", training=hot, warm_start=WarmStartConfig(cloning=False)))
    found = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert found[-1]["name"] == "non_finite"
    weights = Checkpoint.load(tmp_path / "run").model.policy.parameters()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert not (tmp_path / "run" / "comparison.csv").exists()
    with pytest.raises(InputError, match="holds an interrupted training"):
        train(tiny(tmp_path / "run"))


def test_the_last_update_is_examined_too(finished: Path, tmp_path: Path) -> None:
    assert rows(finished / "metrics.csv")[-1]["health/value_loss_spike"] != ""
    hot = TrainingConfig(ppo_requests=48, rollout_steps=24, epochs=2, learning_rate=1e30)
    with pytest.raises(InputError, match="not finite after 48 requests"):
        train(tiny(tmp_path / "run", training=hot, warm_start=WarmStartConfig(cloning=False)))


@pytest.mark.parametrize(
    "settings",
    [
        {"env": EnvConfig(num_envs=2, requests_per_episode=20, engine="reference")},
        {"model": ModelConfig(policy="replica_set", actor_sizes=[8], critic_sizes=[8])},
        {"stabilization": StabilizationConfig(enabled=False)},
        {"stabilization": StabilizationConfig(steps=20, policy="lor")},
    ],
)
def test_every_kind_of_training_ends(tmp_path: Path, settings: dict[str, Any]) -> None:
    none = WarmStartConfig(cloning=False)
    train(tiny(tmp_path / "run", **{"warm_start": none, **settings}))
    assert {file.name for file in (tmp_path / "run").iterdir()} == RESULTS | {"tensorboard"}


def test_rejected_requests_are_infinitely_slow_in_all_that_is_logged(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cluster = ClusterConfig(num_blocks=150, watermark_blocks=1, oversize="reject")
    train(tiny(tmp_path / "run", cluster=cluster, warm_start=WarmStartConfig(cloning=False)))
    assert {file.name for file in (tmp_path / "run").iterdir()} == RESULTS | {"tensorboard"}
    logged = [row["latency/p99_s"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert [one for one in logged if one] == ["inf", "inf"]
    assert (tmp_path / "run" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert rows(tmp_path / "run" / "comparison.csv")[0]["e2e_p99_s"] == "inf"
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_engines_train_the_same_policy(tmp_path: Path) -> None:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    for engine in ("compiled", "reference"):
        env = EnvConfig(num_envs=2, requests_per_episode=20, engine=engine)
        train(tiny(tmp_path / engine, env=env, warm_start=WarmStartConfig(cloning=False)))
    first, second = (
        Checkpoint.load(tmp_path / engine).model.policy.state_dict()
        for engine in ("compiled", "reference")
    )
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-5), name


def test_loads_above_the_capacity_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = build_cluster(ClusterConfig())
    of_four = estimated_capacity(cluster, build_source(WorkloadConfig(), 2.5))
    assert 4.5 < of_four < 8
    many = build_cluster(ClusterConfig(replicas=512))
    of_many = estimated_capacity(many, build_source(WorkloadConfig(), 2.5))
    assert of_many == pytest.approx(128 * of_four, rel=0.05)
    for settings, words in (
        ({"curriculum": CurriculumConfig(stages=[2.5, 40.0])}, "curriculum.stages reaches 40 requ"),
        ({"workload": WorkloadConfig(qps=40.0)}, "workload.qps reaches 40 requests/s, but the clu"),
        ({"training": TrainingConfig(ppo_requests=8, qps=40.0)}, "training.qps reaches 40 reques"),
        ({}, None),
    ):
        caplog.clear()
        train(tiny(tmp_path / str(words), warm_start=WarmStartConfig(cloning=False), **settings))
        assert (words or "") in caplog.text
        assert ("reaches" in caplog.text) == (words is not None)


@pytest.mark.filterwarnings("error::UserWarning:llmroute_gym")  # of a picture without room
def test_a_policy_learns_on_many_replicas(tmp_path: Path) -> None:
    settings = tiny(
        tmp_path,
        cluster=ClusterConfig(replicas=256),
        env=EnvConfig(num_envs=2),
        warm_start=WarmStartConfig(epochs=1, decisions=350),
    )
    train(settings)
    layout = Layout.read(tmp_path / "model.zip")
    assert layout is not None
    assert layout.replicas == 256
    assert np.isfinite(float(rows(tmp_path / "comparison.csv")[0]["e2e_p99_s"]))


@pytest.mark.parametrize(
    ("cluster", "fleet"),
    [
        (
            ClusterConfig(
                groups=[
                    GroupConfig("h100-codellama-34b", replicas=2),
                    GroupConfig("a100-llama-2-7b", speed=1.5),
                ]
            ),
            "2 x h100-codellama-34b, 1 x a100-llama-2-7b at speed 1.5",
        ),
        (
            ClusterConfig(speeds=[2.0, 1.0, 1.0, 0.5], slowdowns=[[[5, 3], [20, 1]]]),
            "4 x a100-internlm-20b at speeds 2, 1, 1, 0.5 (slowdowns of replica 0)",
        ),
    ],
)
def test_a_policy_learns_on_a_mixed_fleet_and_is_compared_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: ClusterConfig, fleet: str
) -> None:
    settings = tiny(tmp_path / "run", cluster=cluster)
    train(settings)
    again = EvaluateConfig(
        runs=2,
        requests=30,
        resamples=50,
        checkpoint=str(tmp_path / "run"),
        cluster=cluster,
        run_dir=str(tmp_path / "again"),
    )
    evaluate(again.validate())
    assert capsys.readouterr().out.count(f"to {fleet}\n") == 2
    one, two = (rows(tmp_path / name / "comparison.csv") for name in ("run", "again"))
    assert one == two


def test_a_training_at_a_traces_own_rate_is_in_all_one_at_that_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = 200
    Workload(np.arange(n) / 40, np.full(n, 900), np.full(n, 200)).to_csv(tmp_path / "t.csv")
    own = WorkloadConfig(
        source="trace", path=str(tmp_path / "t.csv"), arrivals={"process": "trace"}, own_rate=True
    )
    at_rate = replace(own, own_rate=False, qps=40.0)
    with caplog.at_level("INFO"):
        train(tiny(tmp_path / "own", workload=own))
    assert "the trace's own rate reaches 40 requests/s, but the cluster serves" in caplog.text
    assert ", 40 requests/s; compiled engine" in caplog.text
    training = TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2, qps=40.0)
    train(tiny(tmp_path / "same", workload=at_rate, training=training))
    for name in ("comparison.csv", "metrics.csv"):
        rows_own, rows_same = (rows(tmp_path / run / name) for run in ("own", "same"))
        for one, other in zip(rows_own, rows_same, strict=True):
            for key in set(one) - {"time/fps", "time/time_elapsed"}:
                assert one[key] == other[key], key


def test_stages_shorter_than_their_episodes_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = CurriculumConfig(stages=[2.5, 3.5, 4.5])
    none = WarmStartConfig(cloning=False)
    train(tiny(tmp_path / "short", curriculum=stages, warm_start=none))
    assert "a stage of the curriculum has 32 requests" in caplog.text
    assert "take 40 (2 environments of 20 requests); make training.ppo_requests larg" in caplog.text
    caplog.clear()
    longer = TrainingConfig(ppo_requests=240, rollout_steps=20, epochs=1)
    train(tiny(tmp_path / "long", curriculum=stages, warm_start=none, training=longer))
    assert "a stage" not in caplog.text
    # The rate is that of the episodes which run, not of those to come.
    rates = [row["curriculum/qps"] for row in rows(tmp_path / "long" / "metrics.csv")[:-1]]
    assert rates == ["2.5", "2.5", "3.5", "3.5", "4.5", "4.5"]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*overrides: str, module: str = "train") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"llmroute_gym.{module}", *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


QUICK = (
    "training.ppo_requests=64",
    "env.num_envs=2",
    "env.requests_per_episode=40",
    "warm_start.decisions=60",
    "warm_start.epochs=1",
    "stabilization.steps=8",
    "evaluation.runs=2",
    "evaluation.requests=30",
    "evaluation.resamples=50",
)


def test_command_from_another_folder(command: Command, tmp_path: Path) -> None:
    done = command("+exp=latency_tuned", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "round_robin" in done.stdout
    assert "no effect" not in done.stdout
    assert "reference of the KL: a clone of lor_hybrid, round_robin (120 decisions)" in done.stdout
    assert "1 thread" in done.stdout
    assert "training" in done.stderr  # the progress bar
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert {file.name for file in folder.iterdir()} == RESULTS | {"tensorboard"}
    again = command("+exp=latency_tuned", *QUICK, f"run_dir={folder}")
    assert again.returncode == 2
    assert again.stderr.strip().startswith("the run folder ")
    assert len(again.stderr.strip().splitlines()) == 1


def test_a_grid_leaves_one_summary(command: Command, tmp_path: Path) -> None:
    log = ("original", "latency_tuned")
    grid = [f"{group}={','.join(log)}" for group in ("reward", "temperature")]
    done = command("-m", *grid, "+exp=original", "logger=offline", "run_dir=grid", *QUICK)
    assert done.returncode == 0, done.stderr
    summary = rows(tmp_path / "grid" / "summary.csv")
    options = [(row["job"], row["reward"], row["temperature"]) for row in summary]
    assert options == [(str(job), *choice) for job, choice in enumerate(product(log, repeat=2))]
    for row in summary:
        folder = tmp_path / "grid" / row["job"]
        assert row["e2e_p99_s"] == rows(folder / "comparison.csv")[0]["e2e_p99_s"]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        new_reward, new_temperature = (row[group] == log[1] for group in ("reward", "temperature"))
        assert config["reward"]["latency_weight"] == (1.7 if new_reward else 1.2)
        assert config["temperature"]["qps_sensitivity"] == (0.05 if new_temperature else 0.1)
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert "summary: " in done.stdout


@pytest.mark.parametrize("exp", ["original", "latency_tuned", "conservative"])
@pytest.mark.parametrize("start", [(), ("warm_start=none",)])
def test_each_set_of_the_log_runs_whole(exp: str, start: tuple[str, ...], tmp_path: Path) -> None:
    quick = [one for one in QUICK if not (start and one.startswith("warm_start"))]
    settings = composed("train", f"+exp={exp}", *start, *quick)
    train(replace(settings, run_dir=str(tmp_path)).validate())
    assert {file.name for file in tmp_path.iterdir()} == RESULTS | {"tensorboard"}
    assert [row["router"] for row in rows(tmp_path / "comparison.csv")][:2] == [
        "policy",
        "round_robin",
    ]


def test_a_grid_goes_on_after_a_job_that_is_refused(command: Command, tmp_path: Path) -> None:
    done = command("-m", "training.learning_rate=1e-3,1e30,1e-4", "run_dir=grid", *QUICK)
    assert done.returncode == 2
    assert [row["job"] for row in rows(tmp_path / "grid" / "summary.csv")] == ["0", "2"]
    assert "job 1: the training met numbers that are not finite" in done.stderr
    assert "refused: job 1" in done.stdout
    assert "lower training.learning_rate" in (tmp_path / "grid" / "1" / "refused.txt").read_text()


def test_ctrl_c_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmroute_gym.train", "run_dir=run"),
            *(*QUICK, "training.ppo_requests=60000"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "training_state.zip").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"interrupted; go on with resume={tmp_path / 'run'}" in said
    # Settings that were typed are compared, even where they are the package's defaults.
    done = command("resume=run", "env.num_envs=4")
    assert done.returncode == 2
    assert "goes on with env.num_envs=2, got 4" in done.stderr


def test_command_refuses_with_one_sentence(command: Command, tmp_path: Path) -> None:
    for overrides in (
        ("cluster.profile=a100",),
        ("evaluation.routers=[lor,lor]",),
        ("qps=2",),
        ("run_dir=",),
        ("resume=",),
    ):
        done = command(*overrides)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
    assert not list(tmp_path.rglob("*.*"))
