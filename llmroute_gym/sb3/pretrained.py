"""From a saved model to one that learns or decides: without unpickling, unless it is trusted."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

from llmroute_gym.config import ModelConfig
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.sb3.networks import ACTIVATIONS, TEMPERED, Networks, model_of
from llmroute_gym.sb3.stored import DAMAGED, StoredModel, incomplete, untrusted

POLICY = "the class or the arguments of its policy"
"""What keeps a file from being read where its networks are not of a known kind."""

_NEW: dict[str, Any] = {
    "schedules": {},
    "n_gradient_steps": 0,
    "num_timesteps": 0,
    "_n_updates": 0,
    "callback_state": {},
}
"""Attributes of a model that has not learned yet."""


def read_weights(path: str | Path) -> Mapping[str, Any]:
    """Reads the state dicts of a saved model, by name; nothing is unpickled.

    Raises:
        InputError: there is no such file, or it holds no complete model.
    """
    return StoredModel.read(path).weights


def read_networks(path: str | Path, *, masked: bool, trusted: bool = False) -> ModelConfig:
    """Reads which networks a saved PPO has.

    Args:
        path: of the zip file.
        masked: whether the training that it starts masks actions.
        trusted: whether the file may be unpickled where its words do not say it.

    Raises:
        InputError: there is no such file, it holds no complete model, would have to be unpickled,
            or holds a policy of another kind.
    """
    networks = StoredModel.read(path).networks
    if networks is not None:
        _check_policy(path, networks.policy, masked=masked)
        return networks.model
    policy, options = unpickled_policy(path, trusted=trusted)
    _check_policy(path, policy, masked=masked)
    model = model_of(policy, options)
    if model is None:
        raise InputError(
            f"{path} has networks that model.actor_sizes, model.critic_sizes and model.activation "
            f"({' or '.join(ACTIVATIONS)}) cannot describe; train it again with such ones"
        )
    return model


def unpickled_policy(path: str | Path, *, trusted: bool) -> tuple[type, dict[str, Any]]:
    """Returns class and arguments of a policy as Stable-Baselines3 reads them: by unpickling.

    Raises:
        InputError: the file is not trusted, or holds no complete model.
    """
    if not trusted:
        raise untrusted(path, POLICY)
    try:
        data = load_from_zip_file(str(path), device="cpu")[0] or {}
        policy, options = data["policy_class"], data.get("policy_kwargs") or {}
    except DAMAGED as error:
        raise incomplete(path, error) from error
    if not isinstance(policy, type):
        raise incomplete(path, TypeError("it holds no policy"))
    return policy, options


def _check_policy(path: str | Path, policy: type, *, masked: bool) -> None:
    wanted = MaskableActorCriticPolicy if masked else ActorCriticPolicy
    if issubclass(policy, RecurrentActorCriticPolicy) or not issubclass(policy, wanted):
        raise InputError(
            f"{path} holds a {policy.__name__}, but this training takes a "
            f"{wanted.__name__}; give a checkpoint of {'MaskablePPO' if masked else 'PPO'}"
        )


def load_pretrained(
    algorithm: Any,
    path: str | Path,
    env: GymEnv,
    *,
    device: str,
    trusted: bool,
    settings: dict[str, Any],
) -> Any:
    """Loads a saved model as the start of a new training, see `RouterPPO.from_pretrained`."""
    known = settings_of(algorithm)
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {algorithm.__name__}", name, known)
    stored = StoredModel.read(path)
    networks = stored.networks
    unread = sorted(set(known).intersection(stored.pickled) - {*stored.settings, *settings})
    if networks is not None and unread and not trusted:
        raise untrusted(path, " and ".join(unread))
    whole = networks is not None and not unread
    policy = networks.policy if networks else unpickled_policy(path, trusted=trusted)[0]
    _check_policy(path, policy, masked=issubclass(algorithm, MaskablePPO))
    policy = TEMPERED.get(policy, policy)
    wrapped = algorithm._wrap_env(env)
    spaces = {
        "observation_space": wrapped.observation_space,
        "action_space": wrapped.action_space,
    }
    try:
        if networks is not None and whole:
            kept = {name: stored.settings[name] for name in known if name in stored.settings}
            weights = {name: stored.weights[name] for name in ("policy", "policy.optimizer")}
            model = built(
                algorithm,
                replace(networks, policy=policy),
                weights,
                {**spaces, **kept, **settings},
                env=wrapped,
                device=device,
            )
        else:
            replaced = {**spaces, **_NEW, "policy_class": policy}
            model = algorithm.load(
                path, env=wrapped, device=device, custom_objects=replaced, **settings
            )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} does not fit the environment ({first_line(error)}); use a checkpoint that "
            "was trained on the same observation and number of replicas"
        ) from error
    model.clear_reference()
    return model


def built(
    algorithm: Any,
    networks: Networks,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    *,
    env: Any = None,
    device: str = "cpu",
) -> Any:
    """Builds a model anew and puts its weights back, as Stable-Baselines3's `load` does.

    Args:
        algorithm: its class.
        networks: of its policy.
        weights: the state dicts, by name, all that the model has.
        attributes: spaces, settings and counters.
        env: to learn from; None for a model that only decides.
        device: for the networks.
    """
    model = algorithm(networks.policy, env, device=device, _init_setup_model=False)
    vars(model).update(attributes)
    model.policy_kwargs = networks.options()
    model._setup_model()
    model.set_parameters(dict(weights), exact_match=True, device=device)
    return model


def settings_of(algorithm: Any) -> list[str]:
    """Returns the arguments of an algorithm's constructor that are settings, sorted."""
    names: set[str] = set()
    for kind in inspect.getmro(algorithm):
        constructor = vars(kind).get("__init__")
        if constructor is not None:
            names.update(inspect.signature(constructor).parameters)
        if kind in (PPO, MaskablePPO):
            break
    fixed = {"self", "policy", "env", "args", "kwargs", "device", "policy_kwargs"}
    return sorted(names - fixed - {"_init_setup_model"})


def first_line(error: Exception) -> str:
    """Returns the line of an error that tells the most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
