"""A trained policy in one file: the model's zip with its layout and statistics inside."""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.envs.observation import COLUMNS
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.normalizer import Normalizer

MODEL_FILE = "model.zip"
_LAYOUT_ENTRY = "llmroute/layout.json"
_NORMALIZER_ENTRY = "llmroute/normalizer.npz"


@dataclass(frozen=True)
class Layout:
    """What a policy's networks take in.

    Attributes:
        replicas: rows of an observation.
        columns: names of its columns, in order.
        observation: what the columns tell.
        model: sizes of the networks.
    """

    replicas: int
    columns: tuple[str, ...]
    observation: ObservationConfig
    model: ModelConfig


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model with what it needs to be used.

    Attributes:
        model: the trained algorithm.
        layout: what its networks take in.
        normalizer: statistics of the observations, or None if they are used as they are.
    """

    model: PPO
    layout: Layout
    normalizer: Normalizer | None

    def save(self, path: Path) -> None:
        """Writes everything into one zip file, which ``PPO.load`` reads too."""
        self.model.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_LAYOUT_ENTRY, json.dumps(asdict(self.layout), indent=2))
            if self.normalizer is not None:
                buffer = io.BytesIO()
                np.savez(buffer, **asdict(self.normalizer))
                archive.writestr(_NORMALIZER_ENTRY, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Reads a checkpoint.

        Args:
            path: the file, or the run folder that holds it.

        Raises:
            InputError: there is no such file, or it is not a checkpoint of this package.
        """
        file = Path(path)
        if file.is_dir():
            file = file / MODEL_FILE
        if not file.is_file():
            raise InputError(
                f"checkpoint {file} does not exist; give a run folder or its model.zip"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                stored = json.loads(archive.read(_LAYOUT_ENTRY))
                normalizer = None
                if _NORMALIZER_ENTRY in archive.namelist():
                    arrays = np.load(io.BytesIO(archive.read(_NORMALIZER_ENTRY)))
                    normalizer = _normalizer(arrays)
            layout = Layout(
                replicas=int(stored["replicas"]),
                columns=tuple(stored["columns"]),
                observation=ObservationConfig(**stored["observation"]),
                model=ModelConfig(**stored["model"]),
            )
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file} is not a complete checkpoint of llmroute_gym.train ({error}); "
                "give the model.zip of a finished run"
            ) from error
        return cls(PPO.load(file, device="cpu"), layout, normalizer)

    def check_fits(self, replicas: int, observation: ObservationConfig) -> None:
        """Checks that the policy can read the observations that it will be given.

        Args:
            replicas: of the cluster.
            observation: what a router will be told.

        Raises:
            InputError: naming both layouts.
        """
        if self.layout.columns != COLUMNS:
            raise InputError(
                f"the checkpoint reads the observation columns {', '.join(self.layout.columns)}, "
                f"but this version gives {', '.join(COLUMNS)}; train it again"
            )
        if self.layout.replicas != replicas:
            raise InputError(
                f"the checkpoint was trained with {self.layout.replicas} replicas and its network "
                f"takes no other number, got {replicas}; "
                f"set cluster.replicas={self.layout.replicas} or train again"
            )
        trained, given = asdict(self.layout.observation), asdict(observation)
        for name, value in trained.items():
            if given[name] != value:
                mend = "null" if value is None else value
                raise InputError(
                    f"the checkpoint was trained with observation.{name}={mend}, got "
                    f"{given[name]}; add observation.{name}={mend} or train again"
                )


def _normalizer(arrays: Any) -> Normalizer:
    return Normalizer(
        arrays["mean"],
        arrays["variance"],
        float(arrays["count"]),
        float(arrays["clip"]),
        float(arrays["epsilon"]),
    )
