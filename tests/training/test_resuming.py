"""A training that was interrupted goes on to the same end, or says why it cannot."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sb3 import RouterMonitor, RouterPPO
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.train import train
from tests.training.runs import RESULTS, Killed, rows, tiny

pytestmark = pytest.mark.cli


@pytest.mark.parametrize(
    ("kind", "moment"),
    [(RouterMonitor, "_on_rollout_end"), (RouterPPO, "_log_update"), (Checkpoint, "save")],
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, moment: str
) -> None:
    folder = tmp_path / "run"
    original, calls = getattr(kind, moment), []

    def kill(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2 or kind is Checkpoint:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, moment, kill)
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
