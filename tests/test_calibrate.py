"""The command that makes a profile of a log."""

import csv
from pathlib import Path

import pytest

from llmroute_gym.calibrate import main
from llmroute_gym.evaluate import main as evaluate
from tests.commands import Command, in_process
from tests.compare.calibration.logs import log_of

pytestmark = pytest.mark.cli


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return in_process("calibrate", main, monkeypatch, capfd)


@pytest.mark.parametrize("given", ["a log,1.csv", "log=log.csv"])
def test_a_log_gives_a_profile(command: Command, tmp_path: Path, given: str) -> None:
    log_of(tmp_path / given.removeprefix("log="), n=80)
    code, out, _ = command(given, "candidates=18", "run_dir=mine")
    assert code == 0
    assert "profile: " in out
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        *("profile.yaml", "calibration.csv", "calibration.png", "config.yaml"),
    }


def test_rules_are_compared_on_the_log_with_the_profile(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_of(tmp_path / "log.csv", n=80)
    assert command("log.csv", "candidates=18", "run_dir=mine")[0] == 0
    words = ["cluster.profile=mine/profile.yaml", "workload=trace", "workload.path=log.csv"]
    words += ["workload.own_rate=true", "runs=2", "requests=60", "resamples=20"]
    monkeypatch.setattr("sys.argv", ["evaluate", *words])
    evaluate()
    with next(tmp_path.glob("runs/*/*/comparison.csv")).open() as table:
        routers = {row["router"] for row in csv.DictReader(table)}
    assert routers == {"round_robin", "lor"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "log is missing; name the CSV file of a gateway, as in log=requests.csv"),
        (["absent.csv"], "cannot read absent.csv: No such file"),
        (["log.csv", "speed=2"], "speed=2.0 would not be read: the log tells; leave it out"),
        (["log.csv", "replicas=2"], "replicas=2 would not be read"),
        (["log.csv", "backends=[z]"], "unknown backend of the log: 'z'; available: a, b"),
        (["log.csv", "backends=[a,a]"], "names one twice"),
        (["log.csv", "num_blocks=20"], "the log has a request that these limits do not allow"),
        (["log.csv", "held_out=1"], "held_out must be >= 0 and <= 0.9, got 1.0"),
        (["log.csv", "steps=log.csv"], "log.csv lacks the columns prefill_tokens"),
        (["log.csv", "profile=none"], "unknown profile 'none'"),
        (["log.csv", "candidate=3"], "candidate"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(
    command: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    log_of(tmp_path / "log.csv", n=80)
    code, out, error = command(*words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["log.csv"]
