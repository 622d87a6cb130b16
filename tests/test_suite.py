"""A suite as the commands run it: its files, going on after a kill, publishing, verifying."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmroute_gym import evaluate, suite
from llmroute_gym.compare.suites import running
from llmroute_gym.compare.suites.cells import Cell, LoadPolicy, serve_cell
from llmroute_gym.config import ClusterConfig, EvaluateConfig, EvaluationConfig, SuiteConfig
from llmroute_gym.errors import InputError
from tests.config.test_config import composed

pytestmark = pytest.mark.cli

SCENARIO = """
title: Calm
section: Load
cluster: {replicas: 2}
workload: {qps: 1.5}
"""


@pytest.fixture
def settings(tmp_path: Path) -> EvaluateConfig:
    (tmp_path / "calm.yaml").write_text(SCENARIO)
    tiny = SuiteConfig(
        scenarios=[str(tmp_path / "calm.yaml")],
        routers=["round_robin", "lor"],
        runs=2,
        requests=60,
        block=1,
        resamples=20,
        date="2026-01-01",
    )
    return EvaluateConfig(suite=tiny, run_dir=str(tmp_path / "run"), workers=1)


def files(folder: Path) -> dict[str, bytes]:
    found = {one.name: one.read_bytes() for one in sorted(folder.iterdir())}
    del found["config.yaml"]  # names the folder
    return found


def test_a_suite_ends_with_its_files_and_goes_on_after_a_kill(
    settings: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.evaluate(settings)
    whole = files(tmp_path / "run")
    assert {"comparison.csv", "results.json", "report.html"} <= whole.keys()
    assert not (tmp_path / "run" / "cells").exists()
    broken = replace(settings, run_dir=str(tmp_path / "broken"))

    def breaking(cell: Cell, load_policy: LoadPolicy | None = None) -> bytes:
        if cell.router == "lor":
            raise KeyboardInterrupt
        return serve_cell(cell, load_policy)

    monkeypatch.setattr(running, "serve_cell", breaking)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(broken)
    assert len([*(tmp_path / "broken" / "cells").glob("*.npz")]) == 2
    monkeypatch.undo()
    evaluate.evaluate(broken)
    assert files(tmp_path / "broken") == whole
    with pytest.raises(InputError, match="already holds a finished run"):
        evaluate.evaluate(broken)


def test_what_was_published_is_verified(
    settings: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.evaluate(settings)
    page = tmp_path / "leaderboard.md"
    assert suite.main(["leaderboard", settings.run_dir, "--out", str(page)]) == 0
    assert "| lor |" in page.read_text()
    assert suite.main(["verify", str(page), "--workers", "1"]) == 0
    assert capsys.readouterr().out.endswith("equal: calm\n")
    page.write_text(page.read_text().replace("1.00 [1.00, 1.00]", "0.90 [0.80, 1.00]"))
    assert suite.main(["verify", str(page), "--workers", "1"]) == 2
    assert "was published" in capsys.readouterr().out
    assert suite.main(["verify", str(tmp_path / "none.md")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert suite.main(["leaderboard", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("name", "held", "words"),
    [
        ("page.md", "# A page", "holds no settings of a suite"),
        ("page.md", "<!-- settings: {} -->", "holds no settings of a suite"),
        ("page.md", "<!-- settings: {] -->", "holds no settings of a suite"),
        ("results.json", "{}", "holds no results of a suite (it has no scenarios)"),
        ("results.json", "{", "holds no results of a suite (Expecting property name"),
    ],
)
def test_a_file_that_holds_no_suite_is_named(
    tmp_path: Path, name: str, held: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(held)
    assert suite.main(["verify", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{file} {words}")
    assert len(said.splitlines()) == 1


def test_a_suite_is_chosen_by_name() -> None:
    chosen = composed("evaluate", "+suite=core", "suite.runs=3")
    assert isinstance(chosen, EvaluateConfig)
    assert chosen.suite is not None
    assert (chosen.suite.name, chosen.suite.runs) == ("core", 3)
    assert "equal_70" in chosen.suite.scenarios


@pytest.mark.parametrize("wrong", [{"routers": ["nosuch"]}, {"baseline": "nosuch"}])
def test_a_suite_that_is_refused_writes_nothing(
    settings: EvaluateConfig,
    tmp_path: Path,
    wrong: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert settings.suite is not None
    with pytest.raises(InputError, match=r"unknown .*'nosuch'"):
        evaluate.evaluate(replace(settings, suite=replace(settings.suite, **wrong)))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed_names_the_extra(
    settings: EvaluateConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"pip install 'llmroute-gym\[ray\]'"):
        evaluate.evaluate(replace(settings, launcher="ray"))
    assert not (tmp_path / "run").exists()


def test_what_a_suite_does_not_read_is_refused(settings: EvaluateConfig) -> None:
    for change, sentence in (
        ({"evaluation": EvaluationConfig(runs=3)}, "set suite.runs instead"),
        ({"cluster": ClusterConfig(replicas=3)}, "scenarios have their own"),
        ({"checkpoint": "model.zip"}, "add it to suite.routers"),
    ):
        with pytest.raises(InputError, match=sentence):
            replace(settings, **change).validate()
