"""The command that collects demonstrations: what it writes, keeps, appends and refuses."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmroute_gym.collect_demos import collect_demos
from llmroute_gym.config import ClusterConfig, ObservationConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.errors import InputError
from tests.demos.test_collection import small

pytestmark = pytest.mark.cli


def test_the_file_repeats_byte_for_byte_and_is_kept(tmp_path: Path) -> None:
    one = collect_demos(small(run_dir=str(tmp_path / "a")))
    two = collect_demos(small(run_dir=str(tmp_path / "b")))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(InputError, match="exists and is kept; add to it with append=true"):
        collect_demos(small(run_dir=str(tmp_path / "a")))
    assert one.read_bytes() == two.read_bytes()


def test_more_decisions_are_appended(tmp_path: Path) -> None:
    first = small(run_dir=str(tmp_path), path=str(tmp_path / "all.parquet"))
    path = collect_demos(first)
    more = replace(first, append=True, seed=7, policies=["jsq"])
    collect_demos(more)
    held = Demos.load(path)
    assert held.routers() == ["jsq", "lor", "round_robin"]
    assert [one["seed"] for one in held.collections] == [0, 7]
    assert held.collections[1]["package"].startswith("llmroute-gym ")


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"cluster": ClusterConfig(replicas=3)}, "replicas is 4 there and 3 here"),
        ({"observation": ObservationConfig(information="router")}, "is engine there and router"),
        ({"gamma": 0.5}, "gamma is 0.95 there and 0.5 here"),
        ({"cluster": ClusterConfig("a100-llama-2-7b")}, "cluster.profile is a100-internlm-20b th"),
        ({"seed": 0}, "already holds decisions of round_robin with seed 0"),
    ],
)
def test_what_does_not_belong_is_not_appended(
    tmp_path: Path, change: dict[str, object], phrase: str
) -> None:
    first = small(run_dir=str(tmp_path), decisions=10)
    before = collect_demos(first).read_bytes()
    with pytest.raises(InputError) as error:
        collect_demos(replace(first, **{"append": True, "seed": 1, **change}))  # type: ignore[arg-type]
    assert phrase in str(error.value)
    assert (tmp_path / "demos.parquet").read_bytes() == before


def test_a_truncated_file_is_not_appended_to(tmp_path: Path) -> None:
    settings = small(run_dir=str(tmp_path), decisions=10)
    path = collect_demos(settings)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="it may be truncated"):
        collect_demos(replace(settings, append=True, seed=1))
    assert path.stat().st_size == 300


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"policies": ["lro"]}, "unknown router 'lro'"),
        ({"policies": []}, "policies is empty"),
        ({"policies": ["lor", "lor"]}, "names lor twice"),
        ({"loads": []}, "loads is empty"),
        ({"decisions": 0}, "decisions must be >= 1"),
        ({"append": True}, "which does not exist; leave it out"),
    ],
)
def test_wrong_settings_write_nothing(
    tmp_path: Path, change: dict[str, object], phrase: str
) -> None:
    with pytest.raises(InputError) as error:
        collect_demos(small(run_dir=str(tmp_path / "new"), **change))
    assert phrase in str(error.value)
    assert not (tmp_path / "new").exists()


def test_the_command_ends_with_2_and_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmroute_gym.collect_demos",
            "policies=[lro]",
            f"run_dir={tmp_path / 'new'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("unknown router 'lro'; available: ")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "new").glob("*"))
