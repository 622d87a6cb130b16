"""A trained policy in one file of plain numbers: weights, what it reads, how it scales that.

An ``.npz`` of NumPy without any pickle. Its entry ``card`` is JSON, all others are arrays, and the
card holds their sum, so that a file which was cut or changed is found out.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.rules import POLICY_SUFFIX
from llmroute_gym.ground.version import __version__

FORMAT: Final = "llmroute_gym policy"
VERSION: Final = 1
CARD: Final = "card"
LARGEST: Final = 2**26
"""Bytes that a file may unpack to; a policy needs some ten thousand."""
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, MemoryError),
    *(AttributeError, KeyError, RuntimeError, TypeError, ValueError, NotImplementedError),
)
"""What reading a damaged or foreign file may raise."""

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class PolicyFile:
    """What the file holds.

    Attributes:
        kind: of the policy, see `llmroute_gym.routers.exported.KINDS`.
        observation: what it was told, and which columns it reads.
        replicas: that it was trained with.
        settings: the numbers and words that its kind needs beside the arrays.
        arrays: its weights, by name.
        card: what is known of its training, for people.
    """

    kind: str
    observation: ObservationConfig
    replicas: int
    settings: Mapping[str, Any]
    arrays: Arrays
    card: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> str:
        """Writes it; a file that stood there stays until the new one is complete.

        Returns:
            The sum that its card holds.

        Raises:
            InputError: the path has another suffix, or cannot be written.
        """
        check_suffix(path)
        stored = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"llmroute-gym {__version__}",
            "kind": self.kind,
            "replicas": self.replicas,
            "observation": asdict(self.observation),
            "settings": dict(self.settings),
            "about": dict(self.card),
        }
        stored["sha256"] = _sum(stored, self.arrays)
        with complete_or_absent(path) as part, part.open("wb") as file:
            entries: dict[str, Any] = {CARD: np.array(json.dumps(stored)), **self.arrays}
            np.savez(file, **entries)
        return str(stored["sha256"])

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads a file; nothing of it is run.

        Raises:
            InputError: there is no such file, or it is no complete policy of this version.
        """
        if not Path(path).is_file():
            raise InputError(
                f"the policy {path} does not exist; write one with python -m llmroute_gym.export "
                f"RUN {path}"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > LARGEST:
                raise ValueError(f"it unpacks to {unpacked} bytes")
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            stored = json.loads(str(arrays.pop(CARD)))
            return cls._of(stored, arrays)
        except InputError as error:
            raise InputError(
                f"{path} tells what this version does not know: {error}; export the policy with "
                "this version"
            ) from error
        except DAMAGED as error:
            raise damaged(path, error) from error

    @classmethod
    def _of(cls, stored: dict[str, Any], arrays: Arrays) -> Self:
        if stored.get("format") != FORMAT:
            raise ValueError("it is of another program")
        if stored["version"] != VERSION:
            raise ValueError(f"it has version {stored['version']}, this is {VERSION}")
        if stored.pop("sha256") != _sum(stored, arrays):
            raise ValueError("it was changed or damaged: its sha256 differs")
        for name, one in arrays.items():
            if one.dtype.kind not in "fb" or not np.isfinite(one).all():
                raise ValueError(f"{name} holds other things than finite numbers")
        return cls(
            kind=stored["kind"],
            observation=ObservationConfig(**stored["observation"]).validate(),
            replicas=int(stored["replicas"]),
            settings=stored["settings"],
            arrays=arrays,
            card=stored["about"],
        )


def check_suffix(path: str | Path) -> None:
    """Checks what the name of a policy's file ends in.

    Raises:
        InputError: it is something else.
    """
    if Path(path).suffix != POLICY_SUFFIX:
        raise InputError(f"the file of a policy must end in {POLICY_SUFFIX}, got {path}")


def damaged(path: str | Path, error: Exception) -> InputError:
    """Returns the error for a file that holds no policy, or not all of it."""
    said = " ".join(str(error).split())
    reason = said if 0 < len(said) <= 120 else type(error).__name__
    return InputError(
        f"{path} is no policy that can be served ({reason}); write it with "
        "python -m llmroute_gym.export RUN OUT.npz"
    )


def _sum(stored: Mapping[str, Any], arrays: Arrays) -> str:
    """Returns the sum of all that a file holds."""
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode())
    for name in sorted(arrays):
        one = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {one.dtype.str} {one.shape}".encode())
        digest.update(one.tobytes())
    return digest.hexdigest()
