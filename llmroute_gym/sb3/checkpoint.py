"""A trained policy in one file: the model's zip with the layout of its inputs inside."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3 import PPO

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import SIGNAL_NAMES
from llmroute_gym.runs.folder import MODEL_FILE
from llmroute_gym.sb3.maskable import RouterMaskablePPO
from llmroute_gym.sb3.ppo import RouterPPO
from llmroute_gym.sb3.pretrained import DAMAGED, reason

ALGORITHMS: dict[str, type[PPO] | type[MaskablePPO]] = {
    kind.__name__: kind for kind in (PPO, RouterPPO, MaskablePPO, RouterMaskablePPO)
}
"""What a checkpoint may have been trained with, by name."""

_LAYOUT_ENTRY = "llmroute/layout.json"


@dataclass(frozen=True)
class Layout:
    """What a policy's networks take in.

    Attributes:
        replicas: rows of an observation.
        observation: its columns and what they tell.
        model: kind and sizes of the networks.
        reward_scale: the rewards that the value head foresees were divided by this.
    """

    replicas: int
    observation: ObservationConfig
    model: ModelConfig
    reward_scale: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of an observation's columns, in order."""
        return tuple(self.observation.columns)

    @classmethod
    def read(cls, file: Path) -> "Layout | None":
        """Reads the layout out of a checkpoint; None if the zip file holds none.

        Raises:
            InputError: the file is damaged, or of a later version.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                if _LAYOUT_ENTRY not in archive.namelist():
                    return None
                return cls._of(json.loads(archive.read(_LAYOUT_ENTRY)))
        except DAMAGED as error:
            raise _incomplete(file, error) from error

    @classmethod
    def _of(cls, stored: dict[str, Any]) -> "Layout":
        return cls(
            replicas=int(stored["replicas"]),
            observation=ObservationConfig(
                **{**stored["observation"], "columns": list(stored["columns"])}
            ),
            model=ModelConfig(**stored["model"]),
            reward_scale=float(stored["reward_scale"]),
        )

    def check_fits(
        self, replicas: int, observation: ObservationConfig, *, same_columns: bool = False
    ) -> None:
        """Checks that the networks can read the observations that they will be given.

        Args:
            replicas: of the cluster.
            observation: what a router will be told.
            same_columns: whether the observation's columns must be those of the networks; a router
                takes its own from the rows.

        Raises:
            InputError: naming both layouts.
        """
        for name in self.columns:
            if name not in SIGNAL_NAMES:
                raise InputError(
                    f"the checkpoint reads the observation column {name}, but this version knows "
                    f"{', '.join(SIGNAL_NAMES)}; train it again"
                )
        if self.replicas != replicas and self.model.policy != "replica_set":
            raise InputError(
                f"the checkpoint was trained with {self.replicas} replicas and its network "
                f"takes no other number, got {replicas}; "
                f"set cluster.replicas={self.replicas} or train again, with model=replica_set "
                "for any number"
            )
        trained, given = asdict(self.observation), asdict(observation)
        for name, value in trained.items():
            if given[name] != value and (same_columns or name != "columns"):
                mend = "null" if value is None else _shown(value)
                raise InputError(
                    f"the checkpoint was trained with observation.{name}={mend}, got "
                    f"{_shown(given[name])}; add observation.{name}={mend} or train again"
                )


def check_same_networks(trained: ModelConfig, given: ModelConfig) -> None:
    """Checks that a checkpoint's networks are those of the settings.

    Raises:
        InputError: naming both.
    """
    there, here = asdict(trained), asdict(given)
    differing = [name for name, value in there.items() if here[name] != value]
    if differing:
        has = ", ".join(f"model.{name}={_shown(there[name])}" for name in differing)
        got = ", ".join(f"model.{name}={_shown(here[name])}" for name in differing)
        raise InputError(
            f"the checkpoint has {has}, but the settings say {got}; "
            f"add {has.replace(', model', ' model')}"
        )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model with what it needs to be used.

    Attributes:
        model: the trained algorithm.
        layout: what its networks take in.
    """

    model: PPO | MaskablePPO
    layout: Layout

    def save(self, path: Path) -> None:
        """Writes everything into one zip file, which the model's own ``load`` reads too."""
        self.model.save(path)
        stored = {**asdict(self.layout), "algorithm": type(self.model).__name__}
        stored["columns"] = stored["observation"].pop("columns")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_LAYOUT_ENTRY, json.dumps(stored, indent=2))

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Reads a checkpoint.

        Args:
            path: the file, or the run folder that holds it.

        Raises:
            InputError: there is no such file, or it is not a checkpoint of this package.
        """
        file = checkpoint_file(path)
        try:
            with zipfile.ZipFile(file) as archive:
                stored = json.loads(archive.read(_LAYOUT_ENTRY))
            layout = Layout._of(stored)
            model = ALGORITHMS[stored["algorithm"]].load(file, device="cpu")
        except DAMAGED as error:
            raise _incomplete(file, error) from error
        return cls(model, layout)

    def check_fits(self, replicas: int, observation: ObservationConfig) -> None:
        """Checks that the policy can read the observations, see `Layout.check_fits`."""
        self.layout.check_fits(replicas, observation)


def checkpoint_file(path: str | Path) -> Path:
    """Returns the file that a path to a checkpoint or to its run folder stands for.

    Raises:
        InputError: there is none.
    """
    file = Path(path)
    if file.is_dir():
        file = file / MODEL_FILE
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist; give a run folder or its model.zip")
    return file


def _incomplete(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} is not a complete checkpoint of llmroute_gym.train ({reason(error)}); "
        "give the model.zip of a finished run"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).replace(" ", "")
