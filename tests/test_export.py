"""The command that writes a trained policy as it is served."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmroute_gym.config import ClusterConfig, EvaluateConfig, ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.export import main
from llmroute_gym.routers.policy_file import CARD, PolicyFile

pytestmark = pytest.mark.cli

VERSION_1 = Path(__file__).parent / "data" / "model_v1.zip"


def run_folder(path: Path) -> Path:
    """Makes what a training leaves."""
    path.mkdir()
    (path / "model.zip").write_bytes(VERSION_1.read_bytes())
    settings = {"cluster": {"replicas": 4}, "seed": 7, "run_dir": str(path)}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "comparison.csv").write_text("router,e2e_p99_s\npolicy,4.5\nlor,5\n")
    return path


def test_a_run_becomes_one_file_and_an_entrant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = run_folder(tmp_path / "mine"), tmp_path / "out.npz"
    assert main([str(run), str(out)]) == 0
    said = capsys.readouterr()
    assert "out.npz: " in said.out
    assert "observation.information=engine, which engines do not publish" in said.err
    file = PolicyFile.read(out)
    assert file.card["run"] == "mine"
    assert file.card["settings"] == {"cluster": {"replicas": 4}, "seed": 7}
    assert file.card["comparison"][1] == {"router": "lor", "e2e_p99_s": "5"}
    with np.load(out, allow_pickle=False) as archive:
        assert json.loads(str(archive[CARD]))["kind"] == file.kind
    compared = tmp_path / "compared"
    evaluate(
        EvaluateConfig(
            checkpoint=str(run),
            cluster=ClusterConfig(replicas=file.replicas),
            observation=ObservationConfig(predicted_output_sigma=0.5),
            routers=[str(out), "lor"],
            baseline="lor",
            runs=2,
            requests=200,
            resamples=20,
            run_dir=str(compared),
        )
    )
    with (compared / "comparison.csv").open() as lines:
        policy, exported, lor = list(csv.DictReader(lines))
    assert (policy.pop("router"), exported.pop("router")) == ("policy", "out")
    assert policy == exported
    assert lor["e2e_p99_s"] != policy["e2e_p99_s"]


def test_an_exported_policy_is_not_called_like_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "policy.npz"
    assert main([str(VERSION_1), str(out)]) == 0
    settings = EvaluateConfig(
        checkpoint=str(VERSION_1), routers=[str(out)], run_dir=str(tmp_path / "run")
    )
    with pytest.raises(InputError, match="policy"):
        evaluate(settings)


def test_the_same_goes_to_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    assert main([str(VERSION_1), str(tmp_path / "out.npz"), "format=onnx"]) == 0
    assert {one.name for one in tmp_path.iterdir()} == {"out.npz", "out.onnx"}
    assert "out.onnx: the same numbers by ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent", "out.npz"], "checkpoint absent does not exist"),
        (["RUN", "out.zip"], "must end in .npz, got out.zip"),
        (["RUN", "out.npz", "fromat=onnx"], "unknown option 'fromat=onnx'"),
        (["RUN", "out.npz", "format"], "unknown option 'format'"),
        (["RUN", "out.npz", "format=gguf"], "unknown format 'gguf'; available: npz, onnx"),
        (["CUT", "out.npz"], "is not a complete checkpoint"),
        (["RUN", "FILE/out.npz"], "cannot write"),
    ],
)
def test_wrong_input_ends_in_a_sentence_and_leaves_what_was_there(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.npz").write_text("precious")
    (tmp_path / "FILE").touch()
    (tmp_path / "CUT").write_bytes(VERSION_1.read_bytes()[:5000])
    assert main([str(VERSION_1) if one == "RUN" else one for one in arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert (tmp_path / "out.npz").read_text() == "precious"
