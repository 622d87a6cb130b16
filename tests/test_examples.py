"""The examples run from any folder and write what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cli

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def said_by(folder: Path, example: str, *arguments: str) -> str:
    """What an example prints that runs well in a folder."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "said", "written"),
    [
        ("random_rollout", [], "e2e_p99_s", ["random_rollout.gif", "random_rollout.png"]),
        ("capacity_planning", ["azure_conv", "100"], "5.5 requests/s", ["capacity_planning.png"]),
    ],
)
def test_example(
    tmp_path: Path, name: str, arguments: list[str], said: str, written: list[str]
) -> None:
    out = said_by(tmp_path, f"{name}.py", *arguments)
    assert said in out
    assert sorted(file.name for file in tmp_path.iterdir()) == written


def test_a_policy_is_served_and_its_log_read(tmp_path: Path) -> None:
    assert len((EXAMPLES / "serve_a_policy.py").read_text().splitlines()) <= 60
    out = said_by(tmp_path, "serve_a_policy.py")
    log = (tmp_path / "requests.csv").read_text().splitlines()
    assert len(log) == 61
    assert "\n".join(log[:5]) in out
    assert all(",ok," in line for line in log[1:])
    assert {line.split(",")[1] for line in log[1:]} == {"engine0", "engine1"}
    assert (tmp_path / "fitted" / "profile.yaml").is_file()
    assert "\npolicy," in (tmp_path / "compared" / "comparison.csv").read_text()


def test_what_is_trained_is_no_worse_than_round_robin(tmp_path: Path) -> None:
    out = said_by(tmp_path, "train_and_compare.py")
    means = {line.split()[0]: float(line.split()[2]) for line in out.splitlines()}
    assert list(means) == ["ppo", "round_robin", "lor"]
    assert means["ppo"] < 1.02 * means["round_robin"]


def test_capacity_planning_reads_a_trace(tmp_path: Path, data: Path) -> None:
    trace = data / "traces" / "azure_conv_2023.csv"
    said_by(tmp_path, "capacity_planning.py", str(trace), "50")
    assert (tmp_path / "capacity_planning.png").stat().st_size > 10_000
