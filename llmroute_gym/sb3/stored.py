"""What a saved model says of itself, read without running any of it.

Stable-Baselines3 saves a model as one zip file: state dicts, which PyTorch reads as bare tensors,
and ``data``, JSON in which a pickle stands for whatever is no JSON. Reading a pickle runs what it
says, so none is read here. Beside each pickle its object stands in words (`str`), and these tell
the networks that this package builds; a file of `Checkpoint` says them outright.
"""

import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch as th

from llmroute_gym.config import ModelConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.networks import (
    EXTRACTORS,
    KNOWN_EXTRACTORS,
    KNOWN_POLICIES,
    Networks,
)
from llmroute_gym.sb3.policies import TemperedMaskableMlpPolicy, TemperedMlpPolicy
from llmroute_gym.sb3.regularization import LinearDecay
from llmroute_gym.sb3.replica_set import MaskableReplicaSetPolicy, ReplicaSetPolicy

LAYOUT_ENTRY = "llmroute/layout.json"
"""What `Checkpoint` adds to the file."""

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, pickle.UnpicklingError),
    *(AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError),
)
"""What reading a damaged or foreign zip file may raise, from here down to PyTorch."""

STATE_DICTS = ("policy", "policy.optimizer", "reference_policy")
"""The state dicts of a model that may be put back."""

_LONGEST_REASON = 120
_USUAL_BUFFERS = ("stable_baselines3.common.buffers", "sb3_contrib.common.maskable.buffers")
_VERSION_1 = {
    ("mlp", False): TemperedMlpPolicy,
    ("mlp", True): TemperedMaskableMlpPolicy,
    ("replica_set", False): ReplicaSetPolicy,
    ("replica_set", True): MaskableReplicaSetPolicy,
}
"""What version 1 of `Checkpoint` had trained: ``model.policy``, and whether it takes masks."""


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The contents of a saved model.

    Attributes:
        path: of the file.
        settings: the model's attributes that are numbers, texts, lists and the like.
        pickled: the others, in words, by name.
        weights: the state dicts, by name.
        layout: what `Checkpoint` has added; None where another program has written the file.
    """

    path: Path
    settings: Mapping[str, Any]
    pickled: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Any]
    layout: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads a file.

        Raises:
            InputError: there is no such file, it is damaged, or it holds no model.
        """
        if not Path(path).is_file():
            raise InputError(
                f"checkpoint {path} does not exist; give the zip file of a saved model"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                data = json.loads(archive.read("data"))
                weights = {name: _tensors(archive, f"{name}.pth") for name in _dicts(archive)}
                layout = read_layout(archive)
            pickled = {
                name: value
                for name, value in data.items()
                if isinstance(value, dict) and ":serialized:" in value
            }
            plain = {name: value for name, value in data.items() if name not in pickled}
        except DAMAGED as error:
            raise incomplete(path, error) from error
        if not {"policy", "policy.optimizer"}.issubset(weights) or "policy_class" not in pickled:
            raise incomplete(path, ValueError("it holds no policy"))
        return cls(Path(path), {**plain, **_in_words(pickled)}, pickled, weights, layout)

    @property
    def networks(self) -> Networks | None:
        """The policy's networks; None where the file does not say them for certain.

        Raises:
            InputError: what it says makes no sense.
        """
        try:
            if self.layout is None:
                return self._networks_in_words()
            return self._networks_of(self.layout)
        except DAMAGED as error:
            raise incomplete(self.path, error) from error

    def _networks_of(self, layout: Mapping[str, Any]) -> Networks | None:
        model = ModelConfig(**layout["model"]).validate()
        if "policy_class" not in layout:
            policy = _VERSION_1[model.policy, "Maskable" in layout["algorithm"]]
            return Networks(policy, EXTRACTORS[model.policy], model)
        policy_class = KNOWN_POLICIES.get(layout["policy_class"])
        extractor = KNOWN_EXTRACTORS.get(layout["features_extractor"])
        if policy_class is None or extractor is None:
            return None
        return Networks(policy_class, extractor, model)

    def _networks_in_words(self) -> Networks | None:
        policy = _class_in_words(self.pickled["policy_class"])
        options = self.settings.get("policy_kwargs")
        if options is None:
            words = self.pickled["policy_kwargs"]
            options = {
                name: _known(word) for name, word in words.items() if not name.startswith(":")
            }
        if policy is None or self.settings.get("use_sde"):
            return None
        return Networks.of(policy, options)


def read_layout(archive: zipfile.ZipFile) -> Mapping[str, Any] | None:
    """Returns what `Checkpoint` has added to a file, None where it did not write it."""
    if LAYOUT_ENTRY not in archive.namelist():
        return None
    layout: Mapping[str, Any] = json.loads(archive.read(LAYOUT_ENTRY))
    return layout


def incomplete(path: str | Path, error: Exception) -> InputError:
    """Returns the error for a file that holds no model, or not all of it."""
    return InputError(
        f"{path} is not a complete checkpoint ({reason(error)}); give the model.zip of a run, or "
        "the zip file of a saved PPO"
    )


def untrusted(path: str | Path, what: str) -> InputError:
    """Returns the error for a file that could be read only by unpickling it.

    Args:
        path: of the file.
        what: of it is pickled.
    """
    return InputError(
        f"{path} has {what} pickled, and reading that may run any code; if you have made the file "
        "yourself, add trusted=true (to a training: warm_start.trusted=true)"
    )


def reason(error: Exception) -> str:
    """Words an error in one line: what it says, or its kind where it says much."""
    said = " ".join(str(error).split())
    return said if 0 < len(said) <= _LONGEST_REASON else type(error).__name__


def _dicts(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in STATE_DICTS if f"{name}.pth" in archive.namelist()]


def _tensors(archive: zipfile.ZipFile, name: str) -> Any:
    return th.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)


def _in_words(pickled: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the attributes whose words tell all: constants, linear decays, the usual buffer."""
    told: dict[str, Any] = {}
    buffer = pickled.get("rollout_buffer_class", {}).get("__module__")
    if buffer in _USUAL_BUFFERS:
        told["rollout_buffer_class"] = None
    for name in ("clip_range", "clip_range_vf"):
        constant = _numbers("ConstantSchedule", pickled.get(name, {}).get("value_schedule"))
        if constant is not None:
            told[name] = constant["val"]
    decays = {
        name: _numbers("LinearDecay", words)
        for name, words in _entries(pickled.get("schedules", {})).items()
    }
    if decays and None not in decays.values():
        told["schedules"] = {
            name: LinearDecay(numbers["initial"], numbers["final"], int(numbers["steps"]))
            for name, numbers in decays.items()
            if numbers is not None
        }
    return told


def _entries(words: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a pickled dictionary, in words."""
    return {name: word for name, word in words.items() if not name.startswith(":")}


def _numbers(kind: str, words: object) -> dict[str, float] | None:
    """Reads ``kind(name=number, ...)``; None where it is something else."""
    call = re.fullmatch(rf"{kind}\((.*)\)", str(words))
    if call is None:
        return None
    try:
        pairs = (argument.split("=") for argument in call[1].split(", "))
        return {name: float(number) for name, number in pairs}
    except ValueError:
        return None


def _class_in_words(words: Mapping[str, Any]) -> type | None:
    """Returns the policy that a class's words are of, by a method that it defines or its page."""
    for name, kind in KNOWN_POLICIES.items():
        if words.get("__module__") != kind.__module__:
            continue
        if "_build" in vars(kind):
            if str(words.get("_build")).startswith(f"<function {name}._build "):
                return kind
        elif "_build" not in words and words.get("__doc__") == kind.__doc__:
            return kind
    return None


def _known(word: Any) -> Any:
    """Returns the class that a word is the `str` of, where it is a known one."""
    for kind in (*KNOWN_EXTRACTORS.values(), th.nn.Tanh, th.nn.ReLU):
        if word == str(kind):
            return kind
    return word
