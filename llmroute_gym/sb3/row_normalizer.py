"""Observation statistics inside the policy: shared over replicas, one file to carry.

The statistics are buffers of the policy. They are saved, loaded and copied to a reference with the
weights, `model.predict` takes observations as the environment gives them, and they fit any number
of replicas. They change only at a rollout's start (`ObservationStatistics`) or before learning
(`fill_statistics`), so that rollout and update see the same numbers.
"""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import nn

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray

EPSILON = 1e-6
"""Added to the variance: a column that never changed is not blown up when it does."""


class RowNormalizer(nn.Module):
    """Shifts and scales each column by statistics that are shared over all rows.

    Until it has seen data it changes nothing.

    Args:
        n_columns: of an observation, its last axis.

    Attributes:
        mean: (n_columns,).
        variance: (n_columns,).
        count: rows seen.
    """

    mean: th.Tensor
    variance: th.Tensor
    count: th.Tensor

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(n_columns, dtype=th.float64))
        self.register_buffer("variance", th.ones(n_columns, dtype=th.float64))
        self.register_buffer("count", th.zeros((), dtype=th.float64))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns normalised observations (..., n_columns)."""
        # EPSILON once rows were seen, 0 before, when the mean is 0 and the variance 1: without a
        # branch on a number, which no exporter can follow.
        epsilon = self.count.clamp(max=EPSILON)
        shift = self.mean.to(observations.dtype)
        scale = th.rsqrt(self.variance + epsilon).to(observations.dtype)
        normalized: th.Tensor = (observations - shift) * scale
        return normalized

    def update(self, mean: FloatArray, variance: FloatArray, count: float) -> None:
        """Adds the moments of `count` more rows.

        The moments of two sets are joined as in Chan, Golub and LeVeque, "Updating formulae and a
        pairwise algorithm for computing sample variances", 1979.
        """
        if count <= 0:
            return
        seen = float(self.count)
        total = seen + count
        shift = th.as_tensor(mean, device=self.mean.device) - self.mean
        added = th.as_tensor(variance, device=self.mean.device) * count
        squares = self.variance * seen + added + shift**2 * (seen * count / total)
        self.mean.add_(shift * (count / total))
        self.variance.copy_(squares / total)
        self.count.fill_(total)


class NormalizedRows(BaseFeaturesExtractor):
    """Normalises an observation's columns and flattens it; a features extractor for any policy.

    `policy_kwargs={"features_extractor_class": NormalizedRows}`. Its features are asinh(z) of the
    normalised columns z: z itself near 0, and its logarithm far out, so that a load that training
    never saw is neither out of all bounds nor cut off, where all replicas would look alike.
    """

    def __init__(self, observation_space: gym.Space[FloatArray]) -> None:
        if not isinstance(observation_space, spaces.Box) or not observation_space.shape:
            raise InputError(
                f"{type(self).__name__} takes a Box observation with at least one axis, got "
                f"{observation_space}; leave features_extractor_class out"
            )
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        self.normalizer = RowNormalizer(observation_space.shape[-1])

    def rows_of(self, observations: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Returns the rows that the statistics are of, (n, n_columns)."""
        return observations.reshape(-1, observations.shape[-1])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns (batch, n_rows * n_columns)."""
        return th.asinh(self.normalizer(observations)).flatten(start_dim=1)


class RelativeRows(NormalizedRows):
    """The same, and how each row differs from the mean of all rows.

    A router chooses among replicas, so what matters is how they differ. These differences stay
    telling when all replicas are loaded as none was in training.
    """

    def __init__(self, observation_space: gym.Space[FloatArray]) -> None:
        super().__init__(observation_space)
        self._features_dim *= 2

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns (batch, n_rows * 2 * n_columns), a row's own columns before its differences."""
        rows = self.normalizer(observations)
        both = th.cat([rows, rows - rows.mean(dim=-2, keepdim=True)], dim=-1)
        return th.asinh(both).flatten(start_dim=1)


def normalizers(policy: nn.Module) -> list[RowNormalizer]:
    """Returns the normalisers of a policy, none where it takes observations as they are."""
    return [module for module in policy.modules() if isinstance(module, RowNormalizer)]


def moments(observations: npt.NDArray[np.floating]) -> tuple[FloatArray, FloatArray, int]:
    """Returns mean and variance per column, and the number of rows.

    Args:
        observations: (..., n_columns).
    """
    rows = observations.reshape(-1, observations.shape[-1]).astype(np.float64)
    return rows.mean(axis=0), rows.var(axis=0), len(rows)


def seen_by(
    policy: nn.Module, observations: npt.NDArray[np.floating]
) -> tuple[FloatArray, FloatArray, int]:
    """Returns the `moments` of those rows and columns that a policy's statistics are of."""
    extractor = getattr(policy, "features_extractor", None)
    if isinstance(extractor, NormalizedRows):
        observations = extractor.rows_of(observations)
    return moments(observations)


def fill_statistics(model: BaseAlgorithm, steps: int, seed: int) -> int:
    """Takes random decisions to fill the running statistics before learning starts.

    The statistics of the policy and, where the environment is wrapped in `VecNormalize`, those of
    the wrapper. Call it before `learn`, which resets the environment.

    Args:
        model: with its environment set.
        steps: decisions per environment, uniform over the actions that the masks allow.
        seed: of the decisions; nothing is drawn from the generators of the training.

    Returns:
        How many decisions were taken in all.
    """
    env, rng = model.get_env(), np.random.default_rng(seed)
    assert env is not None
    if steps < 1:
        return 0
    env.reset()
    seen = []
    for _ in range(steps):
        observations, *_ = env.step(_random_actions(env, rng))
        seen.append(np.asarray(observations))
    for normalizer in normalizers(model.policy):
        normalizer.update(*seen_by(model.policy, np.stack(seen)))
    return steps * env.num_envs


def observation_transform(
    model: BaseAlgorithm,
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Returns what the environment's wrappers do to observations before the policy gets them."""
    wrapper = observation_wrapper(model)
    if wrapper is None:
        return lambda observations: observations
    return lambda observations: np.asarray(wrapper.normalize_obs(observations), dtype=np.float32)


def observation_wrapper(model: BaseAlgorithm) -> VecNormalize | None:
    """Returns the `VecNormalize` that changes a model's observations, None where none does."""
    env = model.get_env()
    wrapper = None if env is None else unwrap_vec_normalize(env)
    return wrapper if wrapper is not None and wrapper.norm_obs else None


def _random_actions(env: VecEnv, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    assert isinstance(env.action_space, spaces.Discrete)
    if env.has_attr("action_masks"):
        masks = np.stack(env.env_method("action_masks")).astype(bool)
    else:
        masks = np.ones((env.num_envs, int(env.action_space.n)), dtype=bool)
    draws: npt.NDArray[np.int64] = np.argmax(np.where(masks, rng.random(masks.shape), -1.0), axis=1)
    return draws
