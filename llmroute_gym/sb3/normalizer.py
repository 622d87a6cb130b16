"""The observation statistics that a policy was trained with."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Shifts and scales observations as ``VecNormalize`` does, without learning from them.

    Attributes:
        mean: (n_replicas, n_columns).
        variance: (n_replicas, n_columns).
        count: observations that the statistics were taken over.
        clip: largest absolute value after scaling.
        epsilon: added to the variance.
    """

    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    count: float
    clip: float
    epsilon: float

    @classmethod
    def of(cls, env: VecNormalize) -> "Normalizer | None":
        """Takes the statistics of a wrapped environment as they are now.

        None where the environment leaves observations as they are.
        """
        if not env.norm_obs:
            return None
        statistics = cast(RunningMeanStd, env.obs_rms)
        return cls(
            np.array(statistics.mean),
            np.array(statistics.var),
            float(statistics.count),
            float(env.clip_obs),
            float(env.epsilon),
        )

    def __call__(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalises observations of shape (..., n_replicas, n_columns)."""
        scaled = (observation - self.mean) / np.sqrt(self.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)
