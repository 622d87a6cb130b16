"""Counters that callbacks derive their state from, so that a resumed run continues them."""

from typing import Any, cast

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm


def gradient_steps(model: BaseAlgorithm) -> int | None:
    """Returns how many minibatches have changed the weights.

    RouterPPO counts them. For a stock algorithm the count is read from Adam, which saves it with
    the model; an optimizer that does not count gives None.
    """
    counted: int | None = getattr(model, "n_gradient_steps", None)
    if counted is not None:
        return counted
    optimizer = model.policy.optimizer
    if not optimizer.state:
        return 0 if isinstance(optimizer, th.optim.Adam | th.optim.AdamW) else None
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(steps) if steps else None


def gradient_steps_per_update(model: BaseAlgorithm) -> int:
    """Returns how many minibatches an update of a PPO has when nothing stops it early."""
    ppo = cast(Any, model)
    decisions = ppo.n_steps * ppo.n_envs
    return int(ppo.n_epochs * -(-decisions // (ppo.batch_size or decisions)))


def callback_state(model: BaseAlgorithm, name: str) -> dict[str, Any]:
    """Returns the memory of a callback: a dict that is saved with the model.

    Stable-Baselines3 does not save callbacks. What one must remember beyond the model's counters
    is kept here, as numbers and lists under text keys.

    Args:
        model: any algorithm.
        name: of the callback.
    """
    state: dict[str, Any] = model.__dict__.setdefault("callback_state", {}).setdefault(name, {})
    return state


def forget_if_new(model: BaseAlgorithm, name: str) -> None:
    """Empties a callback's memory when the training starts from its first step."""
    if model.num_timesteps == 0:
        callback_state(model, name).clear()
