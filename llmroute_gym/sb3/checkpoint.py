"""A trained policy in one file: the model's zip with the layout of its inputs inside."""

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3 import PPO

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.envs.drawn_env import with_scores
from llmroute_gym.envs.observation import Columns
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import SIGNAL_NAMES
from llmroute_gym.runs.folder import MODEL_FILE
from llmroute_gym.sb3.maskable import RouterMaskablePPO
from llmroute_gym.sb3.networks import Networks, model_of
from llmroute_gym.sb3.ppo import RouterPPO
from llmroute_gym.sb3.pretrained import built, settings_of, unpickled_policy
from llmroute_gym.sb3.stored import (
    DAMAGED,
    LAYOUT_ENTRY,
    StoredModel,
    incomplete,
    read_layout,
)

log = logging.getLogger(__name__)

ALGORITHMS: dict[str, type[PPO] | type[MaskablePPO]] = {
    kind.__name__: kind for kind in (PPO, RouterPPO, MaskablePPO, RouterMaskablePPO)
}
"""What a checkpoint may have been trained with, by name."""

_COUNTERS = (
    *("n_envs", "num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_n_updates"),
    *("_episode_num", "_current_progress_remaining", "n_gradient_steps", "reference_origin"),
    *("non_finite", "schedules", "callback_state"),
)
"""What a model that has learned knows beside its constructor's arguments."""


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
                stored = read_layout(archive)
                return None if stored is None else cls._of(stored)
        except DAMAGED as error:
            raise incomplete(file, error) from error

    @classmethod
    def _of(cls, stored: Mapping[str, Any]) -> "Layout":
        return cls(
            replicas=int(stored["replicas"]),
            observation=ObservationConfig(
                **{**stored["observation"], "columns": list(stored["columns"])}
            ),
            model=ModelConfig(**stored["model"]),
            reward_scale=float(stored["reward_scale"]),
        )

    @classmethod
    def assumed(
        cls, stored: StoredModel, model: ModelConfig, observation: ObservationConfig
    ) -> "Layout":
        """Returns the layout of a model that another program has saved, which says less.

        Args:
            stored: the model.
            model: kind and sizes of its networks.
            observation: what its observations are taken to have told.

        Raises:
            InputError: it reads no observations of LLMRoute-v0.
        """
        shape = tuple(stored.pickled["observation_space"].get("_shape") or ())
        n_actions = int(stored.pickled["action_space"].get("n", 0))
        check_observations(str(stored.path), shape, n_actions, observation)
        told = ", ".join(f"{name}={_shown(value)}" for name, value in asdict(observation).items())
        log.info("%s does not say what its observations told; taken to be %s", stored.path, told)
        return cls(n_actions, observation, model)

    @property
    def spaces(self) -> tuple[spaces.Box, spaces.Discrete]:
        """The observations that the networks read, and the actions that they choose among."""
        own = Columns(self.columns).space(self.replicas)
        if self.model.policy == "residual":
            own = with_scores(own)
        return own, spaces.Discrete(self.replicas)

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
        if self.replicas != replicas and self.model.policy == "mlp":
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
        """Writes everything into one zip file, which the model's own ``load`` unpickles too."""
        self.model.save(path)
        networks = Networks.of(self.model.policy_class, self.model.policy_kwargs)
        known = networks is not None and networks.model == self.layout.model
        stored = {
            **asdict(self.layout),
            "algorithm": type(self.model).__name__,
            # Without these two the networks are not certain, and the file must be trusted.
            "policy_class": networks.policy.__name__ if networks and known else None,
            "features_extractor": networks.extractor.__name__ if networks and known else None,
        }
        stored["columns"] = stored["observation"].pop("columns")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(LAYOUT_ENTRY, json.dumps(stored, indent=2))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trusted: bool = False,
        observation: ObservationConfig | None = None,
    ) -> "Checkpoint":
        """Reads a checkpoint, or the zip file of any PPO that was trained on LLMRoute-v0.

        Nothing of it is unpickled, unless it is trusted and has a policy of no kind that this
        package knows. A learning rate or a clip range that was a function is not read otherwise:
        the one stays as it was last, the other is the default.

        Args:
            path: the file, or the run folder that holds it.
            trusted: whether the file may be unpickled, which may run any code.
            observation: what the observations of another program's model are taken to have told,
                which its file does not say; None means the default.

        Raises:
            InputError: there is no such file, it is no complete checkpoint, would have to be
                unpickled, or reads other observations.
        """
        file = checkpoint_file(path)
        stored = StoredModel.read(file)
        try:
            return cls._from(stored, observation or ObservationConfig(), trusted=trusted)
        except InputError:
            raise
        except DAMAGED as error:
            raise incomplete(file, error) from error

    @classmethod
    def _from(
        cls, stored: StoredModel, observation: ObservationConfig, *, trusted: bool
    ) -> "Checkpoint":
        networks = stored.networks
        if networks is None:
            policy, options = unpickled_policy(stored.path, trusted=trusted)
            model = model_of(policy, options) or ModelConfig(policy="mlp")
        else:
            policy, model = networks.policy, networks.model
        if stored.layout is not None:
            layout, name = Layout._of(stored.layout), stored.layout["algorithm"]
        else:
            layout = Layout.assumed(stored, model, observation)
            name = "MaskablePPO" if issubclass(policy, MaskableActorCriticPolicy) else "PPO"
            name = f"Router{name}" if "kl_ref_coef" in stored.settings else name
        algorithm = ALGORITHMS[name]
        if networks is None:
            return cls(algorithm.load(stored.path, device="cpu"), layout)
        known = (*settings_of(algorithm), *_COUNTERS)
        attributes = {one: stored.settings[one] for one in known if one in stored.settings}
        attributes["has_reference"] = "reference_policy" in stored.weights
        attributes["observation_space"], attributes["action_space"] = layout.spaces
        if "learning_rate" not in attributes:
            groups = stored.weights["policy.optimizer"]["param_groups"]
            attributes["learning_rate"] = groups[0]["lr"]
        return cls(built(algorithm, networks, stored.weights, attributes), layout)

    def check_fits(self, replicas: int, observation: ObservationConfig) -> None:
        """Checks that the policy can read the observations, see `Layout.check_fits`."""
        self.layout.check_fits(replicas, observation)


def check_observations(
    what: str,
    shape: tuple[int, ...] | None,
    n_actions: int | None,
    observation: ObservationConfig,
) -> None:
    """Checks that a policy was trained on observations and actions like those of LLMRoute-v0.

    Args:
        what: holds the policy, for the sentence.
        shape: of its observations.
        n_actions: that it chooses among.
        observation: what its observations are taken to have shown.

    Raises:
        InputError: naming both.
    """
    n_columns = len(observation.columns)
    if shape != (n_actions, n_columns):
        raise InputError(
            f"{what} chooses among {n_actions} actions by observations of shape {shape}, "
            f"LLMRoute-v0 has one action and one row of {n_columns} columns per replica; give a "
            "model that was trained on it"
        )


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


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).replace(" ", "")
