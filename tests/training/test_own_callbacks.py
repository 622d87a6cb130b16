"""A user's callbacks: by setting, by argument, and resumed."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.train import train
from llmroute_gym.training.learning import learn
from llmroute_gym.training.warm_start import WarmStart
from tests.config.test_config import composed
from tests.training.note import Note
from tests.training.test_learning import tiny

NOTE = {"_target_": "tests.training.note.Note", "every": 2}


def noted(model: Any) -> list[int]:
    decisions: list[int] = model.callback_state["note"]["decisions"]
    return decisions


def test_a_command_line_names_callbacks() -> None:
    settings = composed("train", "callbacks=[{_target_: tests.training.note.Note, every: 2}]")
    assert settings.callbacks == [NOTE]


@pytest.mark.slow
def test_a_callback_of_the_settings_is_called_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(tmp_path / "whole", callbacks=[NOTE]))
    whole = Checkpoint.load(tmp_path / "whole").model
    assert noted(whole) == [96]

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.training.learning.Checkpoint.save", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            train(tiny(tmp_path / "run", callbacks=[NOTE]))
    train(TrainConfig(resume=str(tmp_path / "run"), run_dir=str(tmp_path / "run")))
    assert noted(Checkpoint.load(tmp_path / "run").model) == [96]


def test_callbacks_are_an_argument_too(tmp_path: Path) -> None:
    settings = tiny(tmp_path)
    cluster = build_cluster(settings.cluster)
    checkpoint = learn(
        settings,
        cluster,
        build_source(settings.workload, settings.training.qps),
        RunFolder(tmp_path),
        WarmStart.find(settings, cluster),
        callbacks=[Note(every=1)],
    )
    assert noted(checkpoint.model) == [48, 96]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"every": 1}, r"must each name a class, got {'every': 1}"),
        ({"_target_": "no_such_module.Note"}, r"no_such_module\.Note cannot be made .*module"),
        ({"_target_": "tests.training.note.Nothing"}, r"note\.Nothing cannot be made"),
        ({**NOTE, "often": 1}, r"note\.Note cannot be made .*'often'"),
        ({"_target_": "collections.OrderedDict"}, r"OrderedDict makes .* give a subclass of"),
    ],
)
def test_what_is_no_callback_is_said_before_anything_is_written(
    tmp_path: Path, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        train(tiny(tmp_path / "run", callbacks=[wanted]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
