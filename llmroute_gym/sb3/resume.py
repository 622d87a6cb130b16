"""A training that was killed and goes on, to the same weights as if it had not been.

`save_training_state` writes one file, complete or absent: a model's zip that `load` reads too, with
all that Stable-Baselines3 leaves out beside it: the generators of PyTorch, NumPy and Python, the
states of the environments and of the wrappers around them, and what is not yet logged. It must be
called at a rollout's start, which `SaveTrainingState` does. `load_training_state` brings
everything back; then

    model.learn(remaining_timesteps(model), callback, reset_num_timesteps=False)

goes on. On the same machine with the same number of threads the final weights are equal bit for
bit. Nothing that seeds or draws from the global generators, such as making another model, may
happen between loading and learning.

An innermost VecEnv takes part with `get_state()` and `set_state(state)`, its own or those of the
vector environment under it (`ReplayableVector`); one made of Gymnasium environments by wrapping
each in `Replayable`.
"""

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.sb3.counters import callback_state

ENTRY = "llmroute/training_state.pkl"
NOTE = "llmroute/note.txt"
UNLOGGED = "unlogged"
"""Name of the callback state that holds what was recorded but not yet written."""

WRAPPER_STATE: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecCheckNan: (),
    VecExtractDictObs: (),
    VecTransposeImage: (),
}
"""What changes in each wrapper."""

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)


def save_training_state(path: str | Path, model: BaseAlgorithm, note: str = "") -> None:
    """Writes the state of a training; call it at a rollout's start.

    Args:
        path: of the file, which stays as it was until the new one is complete.
        model: in training.
        note: kept beside it, for `training_note`.

    Raises:
        InputError: an environment or wrapper cannot tell its state, or the file cannot be written.
    """
    env = model.get_env()
    assert env is not None
    state = {
        "environment": environment_state(env),
        "generators": _generator_states(),
        "lstm_states": getattr(model, "_last_lstm_states", None),
    }
    callback_state(model, UNLOGGED)["values"] = dict(model.logger.name_to_value)
    try:
        with complete_or_absent(path) as part:
            model.save(part)
            with zipfile.ZipFile(part, "a") as archive:
                archive.writestr(ENTRY, pickle.dumps(state))
                archive.writestr(NOTE, note)
    finally:
        callback_state(model, UNLOGGED).clear()


def training_note(path: str | Path) -> str:
    """Returns what was noted beside a training state.

    Raises:
        InputError: the file is no training state.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(NOTE).decode()
    except (zipfile.BadZipFile, KeyError) as error:
        raise _no_state(path) from error


def _no_state(path: str | Path) -> InputError:
    return InputError(
        f"{path} is no complete training state; give a file of SaveTrainingState, or start the "
        "training anew in another folder"
    )


def load_training_state(
    path: str | Path, env: GymEnv, algorithm: type[Algorithm], device: str = "auto"
) -> Algorithm:
    """Brings a training back to where `save_training_state` left it.

    Args:
        path: of the file. Its contents are unpickled: load only what you have written.
        env: built as it was in the interrupted run, with the same wrappers.
        algorithm: the class of the model.
        device: for the networks.

    Returns:
        The model, ready for `learn(..., reset_num_timesteps=False)`.

    Raises:
        InputError: the file is missing or of another kind, or the environment is another.
    """
    if not Path(path).is_file():
        raise InputError(f"training state {path} does not exist; start the run anew")
    try:
        with zipfile.ZipFile(path) as archive:
            state = pickle.loads(archive.read(ENTRY))
    except (zipfile.BadZipFile, KeyError) as error:
        raise _no_state(path) from error
    model = algorithm.load(path, env=env, device=device, force_reset=False)
    vec_env = model.get_env()
    assert vec_env is not None
    observations: Any = model._last_obs
    if len(observations) != vec_env.num_envs:
        raise InputError(
            f"the interrupted run had {len(observations)} environments, got {vec_env.num_envs}; "
            "build as many"
        )
    vec_env.reset()
    set_environment_state(vec_env, state["environment"])
    if state["lstm_states"] is not None:
        model._last_lstm_states = state["lstm_states"]  # type: ignore[attr-defined]
    _set_generator_states(state["generators"])
    return model


def remaining_timesteps(model: BaseAlgorithm) -> int:
    """Returns how many decisions the interrupted `learn` still had to take."""
    return max(0, model._total_timesteps - model.num_timesteps)


def environment_state(env: VecEnv) -> list[Any]:
    """Returns the states of a vector environment and its wrappers, outermost first.

    Raises:
        InputError: one of them cannot tell its state.
    """
    states: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        states.append({name: getattr(env, name) for name in _changing(env) if hasattr(env, name)})
        env = env.venv
    whole = _whole(env)
    if whole is not None:
        return [*states, whole.get_state()]
    if env.has_attr("get_state"):
        return [*states, env.env_method("get_state")]
    raise InputError(
        f"{type(env).__name__} cannot tell the state of its environments; wrap each of them in "
        "llmroute_gym.sb3.Replayable, or their vector environment in ReplayableVector"
    )


def set_environment_state(env: VecEnv, states: list[Any]) -> None:
    """Brings a vector environment and its wrappers back to the states.

    Raises:
        InputError: the environment is wrapped otherwise than the one that told the states.
    """
    chain: list[VecEnv] = [env]
    while isinstance(chain[-1], VecEnvWrapper):
        chain.append(chain[-1].venv)
    if len(chain) != len(states):
        raise InputError(
            f"the interrupted run had {len(states) - 1} wrappers around its environments, got "
            f"{len(chain) - 1}; wrap them as it did"
        )
    # From within: a wrapper's reset may have touched what it wraps.
    for one, state in zip(reversed(chain), reversed(states), strict=True):
        if isinstance(one, VecEnvWrapper):
            for name, value in state.items():
                setattr(one, name, value)
        elif (whole := _whole(one)) is not None:
            whole.set_state(state)
        else:
            for index, episode in enumerate(state):
                one.env_method("set_state", episode, indices=[index])


def _whole(env: VecEnv) -> Any:
    """Returns what tells the state of all environments at once, if anything does."""
    for one in (env, getattr(env, "env", None)):
        if hasattr(one, "get_state"):
            return one
    return None


def _changing(wrapper: VecEnvWrapper) -> tuple[str, ...]:
    for kind, names in WRAPPER_STATE.items():
        if isinstance(wrapper, kind):
            return names
    raise InputError(
        f"{type(wrapper).__name__} is not known to have no state of its own; add it to "
        "llmroute_gym.sb3.resume.WRAPPER_STATE with the attributes that change"
    )


def _generator_states() -> dict[str, Any]:
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002  (SB3 shuffles with the global generator)
        "python": random.getstate(),
    }


def _set_generator_states(states: dict[str, Any]) -> None:
    th.set_rng_state(states["torch"])
    if states["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
