"""Trainings that start from a saved policy."""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from llmroute_gym.config import (
    CurriculumConfig,
    EvaluateConfig,
    ModelConfig,
    ObservationConfig,
    WarmStartConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.sb3 import RouterPPO, TemperedMlpPolicy
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.train import train
from tests.sb3.hostile import Harm, hostile, replaced
from tests.training.runs import rows, tiny

pytestmark = pytest.mark.cli


def test_a_checkpoint_starts_another_training(finished: Path, tmp_path: Path) -> None:
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
    env = make_vec_env("llmroute_gym:LLMRoute-v0", 1)
    PPO("MlpPolicy", env, device="cpu").save(tmp_path / "stock.zip")
    start = WarmStartConfig(checkpoint=str(tmp_path / "stock.zip"), cloning=False)
    with pytest.raises(InputError, match=r"has model\.policy=mlp, but .* model\.policy=repl"):
        train(tiny(tmp_path / "run", warm_start=start))
    assert not (tmp_path / "run").exists()
    train(tiny(tmp_path / "run", warm_start=start, model=ModelConfig(policy="mlp")))
    assert rows(tmp_path / "run" / "metrics.csv")[-1]["train/kl_ref"] != ""


def test_a_checkpoint_that_would_be_unpickled_must_be_trusted(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"policy_class": 1}', bytes(100)])
@pytest.mark.parametrize("file", ["data", "policy.pth", "llmroute/layout.json"])
def test_a_damaged_checkpoint_is_refused(
    finished: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
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
