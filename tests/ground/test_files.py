"""A file that is written is complete or absent, and what is in the way is named."""

from pathlib import Path

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent


def test_a_finished_file_stands_alone_in_a_folder_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.csv"
    with complete_or_absent(path) as part:
        assert part.parent == path.parent
        assert part.suffix == path.suffix
        part.write_text("1,2")
        assert not path.exists()
    assert path.read_text() == "1,2"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    path.write_text("old")

    def fail() -> None:
        with complete_or_absent(path) as part:
            part.write_text("half of it")
            raise RuntimeError("out of figures")

    with pytest.raises(RuntimeError, match="out of figures"):
        fail()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("file/figures.csv", r"cannot write .*figures\.csv: .*; choose a folder that can be"),
        ("file/below/figures.csv", r"cannot write .*figures\.csv: .*; choose a folder that can"),
        ("folder", r"cannot write .*folder: .*; choose a folder that can be written"),
    ],
)
def test_what_is_in_the_way_is_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(InputError, match=sentence) as error,
        complete_or_absent(tmp_path / name) as part,
    ):
        part.write_text("1,2")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_path_without_a_file_name_is_one_sentence() -> None:
    with (
        pytest.raises(InputError, match=r"cannot write '\.': it names no file"),
        complete_or_absent(""),
    ):
        pass
