"""The user's own callbacks, made from settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.errors import InputError, shown


def make_callbacks(wanted: Sequence[Mapping[str, Any]]) -> list[BaseCallback]:
    """Makes callbacks of Stable-Baselines3.

    Args:
        wanted: each with ``_target_``, the class as ``module.Name``, and its arguments.

    Raises:
        InputError: a class is not found, takes other arguments, or is no callback.
    """
    return [_make(dict(one)) for one in wanted]


def _make(wanted: dict[str, Any]) -> BaseCallback:
    target = wanted.get("_target_")
    try:
        callback = instantiate(wanted, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise InputError(
            f"callbacks: {target} cannot be made ({' '.join(str(cause).split())}); give a class "
            "as module.Name that Python finds from here, with its own arguments"
        ) from error
    if not isinstance(callback, BaseCallback):
        raise InputError(
            f"callbacks: {target} makes {shown(callback)}; give a subclass of "
            "stable_baselines3.common.callbacks.BaseCallback"
        )
    return callback
