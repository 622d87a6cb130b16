"""Reading the checkpoints of other trainings."""

import inspect
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from llmroute_gym.config import ModelConfig
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.sb3.policies import TemperedMaskableMlpPolicy, TemperedMlpPolicy
from llmroute_gym.sb3.replica_set import ReplicaSetMixin

TEMPERED: dict[type, type] = {
    ActorCriticPolicy: TemperedMlpPolicy,
    MaskableActorCriticPolicy: TemperedMaskableMlpPolicy,
}
"""Stock policies and what takes over their weights."""

ACTIVATIONS = ("tanh", "relu")
"""Those of `ModelConfig.activation`."""

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, pickle.UnpicklingError),
    *(AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError),
)
"""What reading a damaged or foreign zip file may raise, from here down to PyTorch."""

_LONGEST_REASON = 120


def read_weights(path: str | Path) -> dict[str, Any]:
    """Reads the state dicts of a checkpoint, by name.

    Raises:
        InputError: there is no such file, or it is no checkpoint of Stable-Baselines3.
    """
    return _read(path)[1]


def read_networks(path: str | Path, *, masked: bool) -> ModelConfig:
    """Reads which networks a checkpoint of any PPO holds.

    Args:
        path: of the zip file.
        masked: whether the training that it starts masks actions.

    Raises:
        InputError: there is no such file, it is no checkpoint of Stable-Baselines3, or it holds a
            policy of another kind.
    """
    stored, _ = _read(path)
    policy_class, options = stored["policy_class"], stored.get("policy_kwargs") or {}
    _check_policy(path, policy_class, masked=masked)
    sizes = options.get("net_arch")
    if not isinstance(sizes, dict):
        # As Stable-Baselines3 reads it.
        both = [64, 64] if sizes is None else list(sizes)
        sizes = {"pi": both, "vf": both}
    activation = getattr(options.get("activation_fn", nn.Tanh), "__name__", "").lower()
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{path} has the activation {activation}, this package knows "
            f"{' and '.join(ACTIVATIONS)}; train it again with one of them"
        )
    return ModelConfig(
        policy="replica_set" if issubclass(policy_class, ReplicaSetMixin) else "mlp",
        actor_sizes=list(sizes.get("pi", [])),
        critic_sizes=list(sizes.get("vf", [])),
        activation=activation,
    )


def _check_policy(path: str | Path, policy_class: type, *, masked: bool) -> None:
    wanted = MaskableActorCriticPolicy if masked else ActorCriticPolicy
    if issubclass(policy_class, RecurrentActorCriticPolicy) or not issubclass(policy_class, wanted):
        raise InputError(
            f"{path} holds a {policy_class.__name__}, but this training takes a "
            f"{wanted.__name__}; give a checkpoint of {'MaskablePPO' if masked else 'PPO'}"
        )


def load_pretrained(
    algorithm: Any, path: str | Path, env: GymEnv, *, device: str, settings: dict[str, Any]
) -> Any:
    """Loads a checkpoint as the start of a new training, see `RouterPPO.from_pretrained`."""
    known = _settings_of(algorithm)
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {algorithm.__name__}", name, known)
    stored, _ = _read(path)
    policy_class = stored["policy_class"]
    _check_policy(path, policy_class, masked=issubclass(algorithm, MaskablePPO))
    wrapped = algorithm._wrap_env(env)
    try:
        model = algorithm.load(
            path,
            env=wrapped,
            device=device,
            custom_objects={
                "policy_class": TEMPERED.get(policy_class, policy_class),
                "observation_space": wrapped.observation_space,
                "action_space": wrapped.action_space,
                "schedules": {},
                "n_gradient_steps": 0,
                "num_timesteps": 0,
                "_n_updates": 0,
                "callback_state": {},
            },
            **settings,
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} does not fit the environment ({first_line(error)}); use a checkpoint that "
            "was trained on the same observation and number of replicas"
        ) from error
    model.clear_reference()
    return model


def _settings_of(algorithm: Any) -> list[str]:
    names: set[str] = set()
    for kind in inspect.getmro(algorithm):
        constructor = vars(kind).get("__init__")
        if constructor is not None:
            names.update(inspect.signature(constructor).parameters)
        if kind in (PPO, MaskablePPO):
            break
    fixed = {"self", "policy", "env", "args", "kwargs", "device", "policy_kwargs"}
    return sorted(names - fixed - {"_init_setup_model"})


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} does not exist; give the zip file of a saved model")
    try:
        stored, weights, _ = load_from_zip_file(str(path), device="cpu")
    except DAMAGED as error:
        raise InputError(
            f"{path} is no checkpoint of Stable-Baselines3 ({reason(error)}); "
            "give the zip file of a saved model"
        ) from error
    policy_class = (stored or {}).get("policy_class")
    if not stored or not isinstance(policy_class, type) or not weights or "policy" not in weights:
        raise InputError(f"{path} holds no policy; give the zip file of a saved model")
    return stored, dict(weights)


def reason(error: Exception) -> str:
    """Words an error in one line: what it says, or its kind where it says much."""
    said = " ".join(str(error).split())
    return said if 0 < len(said) <= _LONGEST_REASON else type(error).__name__


def first_line(error: Exception) -> str:
    """Returns the line of an error that tells the most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
