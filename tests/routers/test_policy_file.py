"""The file of an exported policy is whole and our own, or one sentence."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.rules import parsed_rule, rule_text, rule_title
from llmroute_gym.routers import make
from llmroute_gym.routers.exported import ExportedPolicy, load_policy
from llmroute_gym.routers.policy_file import CARD, PolicyFile

COLUMNS = ["waiting", "speed"]


def policy_file(**changes: Any) -> PolicyFile:
    """Returns a small policy over replicas, random but always the same."""
    rng = np.random.default_rng(0)
    shapes = {
        **{"layers.0.weights": (5, 4), "layers.0.bias": (5,)},
        **{"joint.weights": (5, 5), "joint.bias": (5,)},
        **{"context.weights": (5, 10), "context.bias": (5,)},
        **{"score.weights": (1, 7), "score.bias": (1,), "shift": (2,), "factor": (2,)},
    }
    arrays: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    arrays["varied"] = np.ones(2, dtype=np.bool_)
    held: dict[str, Any] = {
        "kind": "replica_set",
        "observation": ObservationConfig(information="router", columns=COLUMNS),
        "replicas": 4,
        "settings": {"activation": "tanh", "temperature": 1.0},
        "arrays": arrays,
        "card": {"run": "mine"},
    }
    return PolicyFile(**{**held, **changes})


def without(name: str) -> dict[str, Any]:
    return {key: one for key, one in policy_file().arrays.items() if key != name}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.npz"
    digest = policy_file().write(path)
    read = PolicyFile.read(path)
    assert read.card == {"run": "mine"}
    assert read.observation == policy_file().observation
    assert read.arrays.keys() == policy_file().arrays.keys()
    first = path.read_bytes()
    assert policy_file().write(path) == digest
    assert path.read_bytes() == first
    assert [one.name for one in tmp_path.iterdir()] == ["policy.npz"]


def test_any_changed_or_missing_byte_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "policy.npz"
    policy_file().write(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    expected = ExportedPolicy(policy_file())
    rows = rng.random((20, 3, 28)) * 100
    told = 0
    for place in rng.integers(0, len(whole), 400).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(flipped), whole[:place]):
            path.write_bytes(damaged)
            policy, sentence = loaded(path)
            if policy is None:
                assert "policy.npz is no policy that can be served (" in sentence
                assert "\n" not in sentence
                told += 1
            else:  # a byte that says nothing, such as a date
                np.testing.assert_array_equal(policy.logits(rows), expected.logits(rows))
    assert told > 600


def loaded(path: Path) -> tuple[ExportedPolicy | None, str]:
    """Returns the policy of a file, or what is said of it."""
    try:
        policy = load_policy(path)
    except InputError as error:
        return None, str(error)
    assert isinstance(policy, ExportedPolicy)
    return policy, ""


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (exec, ("raise SystemExit('unpickled')",))


def foreign(path: Path, kind: str) -> None:
    """Writes a file that is no policy."""
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "{}")
    elif kind == "arrays":
        np.savez(path, weights=np.ones(3))
    elif kind == "pickle":
        np.savez(path, allow_pickle=True, **{CARD: np.array([Evil()], dtype=object)})
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{CARD}.npy", b"\0" * 2**27)
    elif kind == "huge":
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }\n"
        entry = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{CARD}.npy", entry)
    else:
        np.savez(path, **{CARD: np.array(json.dumps(json.loads(kind)))})


@pytest.mark.parametrize(
    "kind",
    [
        *("text", "empty", "zip", "arrays", "pickle", "bare pickle", "bomb", "huge"),
        *("[]", "3", "{}", '{"format": "other"}', '{"format": "llmroute_gym policy"}'),
        '{"format": "llmroute_gym policy", "version": 2}',
    ],
)
def test_foreign_files_end_in_a_sentence(kind: str, tmp_path: Path) -> None:
    foreign(tmp_path / "policy.npz", kind)
    with pytest.raises(InputError, match="is no policy that can be served"):
        make(str(tmp_path / "policy.npz"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "tree"}, r"unknown kind of policy in .*policy\.npz: 'tree'"),
        ({"settings": {"activation": "gelu", "temperature": 1.0}}, "is no policy"),
        ({"settings": {"activation": "tanh", "temperature": 0.0}}, "temperature is 0"),
        ({"settings": {}}, "is no policy"),
        ({"arrays": without("score.bias")}, "is no policy"),
        ({"arrays": without("shift")}, "is no policy"),
        ({"arrays": {**without(""), "joint.weights": np.ones((5, 4))}}, "joint has weights"),
        ({"arrays": {**without(""), "shift": np.ones(3)}}, "3.* shifts"),
        ({"arrays": {**without(""), "shift": np.array([1.0, np.nan])}}, "finite numbers"),
        ({"arrays": {**without(""), "shift": np.array(["a", "b"])}}, "finite numbers"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    policy_file(**changes).write(tmp_path / "policy.npz")
    with pytest.raises(InputError, match=sentence):
        load_policy(tmp_path / "policy.npz")


def test_a_column_of_another_version_is_refused(tmp_path: Path) -> None:
    observation = ObservationConfig(columns=["waiting", "moon_phase"])
    policy_file(observation=observation).write(tmp_path / "policy.npz")
    with pytest.raises(InputError, match="moon_phase"):
        load_policy(tmp_path / "policy.npz")


def test_what_stood_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "policy.npz"
    policy_file().write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        policy_file(card={"run": object()}).write(path)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"must end in \.npz, got .*policy\.zip"):
        policy_file().write(tmp_path / "policy.zip")


def test_its_path_names_it_wherever_a_rule_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.npz")
    with pytest.raises(InputError, match=r"mine\.npz does not exist; write one with"):
        make(path)
    policy_file().write(path)
    assert rule_title(path) == "mine"
    assert parsed_rule(rule_text(path)) == parsed_rule(path)
    for rule in (path, rule_text(path), {"name": path, "title": "yours"}):
        assert isinstance(make(rule), ExportedPolicy)
    with pytest.raises(InputError, match="has no options, got kv"):
        make(f"{path}:kv=1")
