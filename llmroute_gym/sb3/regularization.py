"""The loss that is added to PPO's: two KL terms and an entropy floor, and how weights decay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableMultiCategoricalDistribution
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray


@dataclass(frozen=True)
class LinearDecay:
    """A weight that moves linearly from `initial` to `final` and stays there.

    Attributes:
        initial: value at step 0.
        final: value at `steps` and after.
        steps: gradient steps (minibatches that changed the weights), at least 1.
    """

    initial: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            check_weight(f"{name} value of a schedule", getattr(self, name))
        if self.steps < 1:
            raise InputError(f"a schedule takes at least 1 gradient step, got {self.steps}")

    def __call__(self, step: int) -> float:
        """Returns the value at a gradient step."""
        return self.final + (self.initial - self.final) * max(0.0, 1.0 - step / self.steps)


def check_weight(name: str, value: float) -> None:
    """Checks a weight of the loss.

    Raises:
        InputError: the weight is negative or not finite.
    """
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number >= 0, got {value}")


def check_entropy_floor(entropy_min: float, action_space: spaces.Space[Any]) -> None:
    """Checks that a policy can reach the floor.

    Raises:
        InputError: the floor lies above the entropy of the uniform distribution, ln N.
    """
    if isinstance(action_space, spaces.Discrete) and entropy_min > np.log(action_space.n):
        raise InputError(
            f"entropy_min must be at most ln N = {np.log(action_space.n):.4g} nats with "
            f"N = {action_space.n} actions, got {entropy_min:g}; lower it, or set "
            "entropy_min_coef to 0"
        )


def exact_kl(first: Distribution, second: Distribution) -> th.Tensor:
    """Returns KL(first, second) in nats, exact and differentiable, shape (batch,).

    Both must be of the same kind and, where actions are masked, carry the same masks. Log
    probabilities are used as they are, so that a probability which underflows in `second` gives a
    large number and not infinity.
    """
    total = th.zeros(())
    for p, q in zip(_parts(first), _parts(second), strict=True):
        if isinstance(p, th.distributions.Categorical):
            part = (p.probs * (p.logits - q.logits)).sum(dim=-1)
        else:
            part = th.distributions.kl_divergence(p, q)
            part = part.sum(dim=-1) if part.dim() > 1 else part
        total = total + part
    return total


def _parts(distribution: Distribution) -> list[Any]:
    if isinstance(distribution, MaskableMultiCategoricalDistribution):
        return list(distribution.distributions)
    inner: Any = distribution.distribution
    return list(inner) if isinstance(distribution, MultiCategoricalDistribution) else [inner]


def rollout_kl(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """Returns an estimate of KL(policy of the rollout, policy) from the rollout's own actions.

    exp(d) - 1 - d with d = log_prob - old_log_prob is unbiased, never negative and
    differentiable: J. Schulman, "Approximating KL divergence", 2020,
    http://joschu.net/blog/kl-approx.html.

    Args:
        log_prob: of the actions under the policy, shape (batch,).
        old_log_prob: under the policy that took them, shape (batch,).
    """
    d = log_prob - old_log_prob
    return th.mean(th.exp(d) - 1 - d)


def entropy_shortfall(entropy: th.Tensor, entropy_min: float) -> th.Tensor:
    """Returns how many nats the mean entropy lies below the floor, 0 above it."""
    return th.relu(entropy_min - entropy)


def scheduled(schedules: Mapping[str, LinearDecay], step: int) -> dict[str, float]:
    """Returns the value of each schedule at a gradient step."""
    return {name: schedule(step) for name, schedule in schedules.items()}


def normalize_columns(advantages: FloatArray) -> None:
    """Shifts and scales the advantages of each environment to mean 0 and deviation 1, in place.

    Where loads differ, a minibatch's mean and deviation are those of the heaviest ones, and the
    others hardly count.

    Args:
        advantages: (n_steps, n_envs).
    """
    advantages -= advantages.mean(axis=0)
    advantages /= advantages.std(axis=0) + 1e-8
