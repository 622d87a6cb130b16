"""A folder holds one run."""

from pathlib import Path

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.train import train
from tests.training.runs import tiny


@pytest.mark.cli
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


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the run folder .*run_dir=FOLDER"):
        RunFolder(tmp_path / "file" / "run")
