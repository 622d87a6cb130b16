"""How a command ends: what is typed wrong, interrupted, unread, or has no room."""

import errno
import logging
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmroute_gym.evaluate import main
from llmroute_gym.ground.notices import notices
from llmroute_gym.runs.streams import to_people
from tests.commands import Command, in_process

pytestmark = pytest.mark.cli

SMALL = ("evaluation.runs=2", "evaluation.requests=20", "evaluation.resamples=20")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """`evaluate`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return in_process("evaluate", main, monkeypatch, capfd)


@pytest.mark.parametrize(
    "value", ["/tmp/spür.csv", "/tmp/日本.csv", "/tmp/a(b.csv", "/tmp/a=b.csv", 'a"b.csv', "{"]
)
def test_a_value_that_needs_quotes_is_told_how(command: Command, value: str) -> None:
    code, out, said = command("workload=trace", f"workload.path={value}")
    assert (code, out, len(said.splitlines())) == (2, "", 1)
    assert said.startswith(f"cannot read workload.path={value}")
    if value != "{":
        # What it says can be typed as it stands.
        (mended,) = shlex.split(said.partition("; write ")[2])
        code, _, said = command("workload=trace", mended)
        assert said == f"there is no file {value}; give the path of a trace\n"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("routers", "cannot read routers (missing EQUAL at '<EOF>'); write key=value or group="),
        ("routers=[lor", "close every bracket"),
        ("seed=range(1,", "close every bracket"),
    ],
)
def test_what_is_no_setting_is_told_why(command: Command, typed: str, words: str) -> None:
    code, _, said = command(typed)
    assert code == 2
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_group_that_is_added_is_told_how(command: Command) -> None:
    code, _, said = command("suite=core")
    assert (code, said) == (2, "suite is not chosen by default; write +suite=core\n")


def test_a_key_of_a_suite_needs_a_suite(command: Command) -> None:
    code, _, said = command("suite.routers=[lor]")
    assert code == 2
    assert said == (
        "suite.routers would not be read without a suite; add one: +suite=core or +suite=full or "
        "+suite=regret\n"
    )


@pytest.mark.parametrize(
    ("option", "plugin", "extra"),
    [
        ("hydra/launcher=joblib", "hydra_joblib_launcher", "sweep"),
        ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "sweep"),
        ("hydra/launcher=submitit_slurm", "hydra_submitit_launcher", "slurm"),
    ],
)
def test_a_plugin_that_is_missing_names_the_extra(
    command: Command, option: str, plugin: str, extra: str
) -> None:
    with suppress(ModuleNotFoundError):
        if find_spec(f"hydra_plugins.{plugin}"):
            pytest.skip("the plugin is installed")
    code, _, said = command("-m", option, "seed=1,2")
    assert code == 2
    assert said == (
        f"{option} needs a plugin that is not installed; pip install 'llmroute-gym[{extra}]'\n"
    )
    assert "available: basic" in command("-m", "hydra/launcher=job", "seed=1,2")[2]


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("llmroute_gym.compare.report.write_comparison", "comparison.csv"),
        ("llmroute_gym.compare.report.serve", "run"),
    ],
)
def test_a_full_disk_is_said_in_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, named: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    code, _, said = command(*SMALL, "run_dir=run")
    assert code == 2
    *_, last = said.strip().splitlines()
    assert last.startswith("cannot write ")
    assert f"{named}: No space left on device; " in last
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "comparison.csv").exists()


def test_other_errors_of_the_system_keep_their_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EBADF, "a bug")

    monkeypatch.setattr("llmroute_gym.compare.report.serve", broken)
    code, _, said = command(*SMALL, "run_dir=run")
    assert code == 1
    assert "Traceback" in said


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "llmroute_gym.evaluate", *SMALL, "run_dir=run"],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    assert "rror" not in done.stderr
    assert (tmp_path / "run" / "comparison.csv").is_file()


def test_no_room_for_what_is_printed_is_said(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmroute_gym.evaluate", *SMALL, "run_dir=run"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "cannot write <stdout>: No space left on device; make room" in done.stderr
    assert "Traceback" not in done.stderr


INTERRUPTED_COMMAND = """
import runpy, signal, sys

sys.orig_argv = [sys.executable, "-m", "llmroute_gym.evaluate"]
sys.argv = ["evaluate", *{overrides!r}]
{interrupt}
runpy.run_module("llmroute_gym.evaluate", run_name="__main__")
"""

WHILE_IMPORTING = """
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""

IN_A_CALLBACK = """
import ctypes
import llmroute_gym.compare.report as report

def serve(*_):
    # As LLVM calls back while it compiles: what is raised there is lost, and something else fails.
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
    {then}

report.serve = serve
"""

IN_EXECUTED_TEXT = """
import llmroute_gym.compare.report as report
report.serve = lambda *_: exec("signal.raise_signal(signal.SIGINT)", {"signal": signal})
"""


def interrupted(interrupt: str, folder: Path) -> tuple[int, str]:
    code = INTERRUPTED_COMMAND.format(interrupt=interrupt, overrides=[*SMALL, "run_dir=run"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


NOTHING_YET = "interrupted; there is nothing yet to go on from"


@pytest.mark.parametrize("module", ["gymnasium", "llmroute_gym.sim.traces", "matplotlib", "hydra"])
def test_an_interrupt_of_the_imports_is_one_line(module: str, tmp_path: Path) -> None:
    code, said = interrupted(WHILE_IMPORTING.format(module=module), tmp_path)
    assert (code, said.strip()) == (130, NOTHING_YET)


@pytest.mark.parametrize(
    "interrupt",
    [
        IN_A_CALLBACK.format(then="raise RuntimeError('no compiled object yet')"),
        IN_A_CALLBACK.format(then="import time; [time.sleep(0.1) for _ in range(300)]"),
        IN_EXECUTED_TEXT,
    ],
    ids=["callback, failing", "callback, going on", "executed text"],
)
def test_an_interrupt_of_a_compilation_is_one_line(interrupt: str, tmp_path: Path) -> None:
    code, said = interrupted(interrupt, tmp_path)
    assert code == 130
    assert said.splitlines()[-1] == NOTHING_YET
    assert "Traceback" not in said
    assert "ignored" not in said


def test_the_import_alone_changes_no_process() -> None:
    code = "import sys, llmroute_gym; assert sys.excepthook is sys.__excepthook__"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interrupt_before_the_job_begins_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hydra.main"], "_run_hydra", interrupted)
    code, _, said = command(*SMALL)
    assert (code, said.strip()) == (130, NOTHING_YET)


def test_notices_go_to_standard_error_while_a_command_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])
    notices.info("before")
    with to_people():
        notices.info("a notice")
    notices.info("after")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip() == "a notice"
