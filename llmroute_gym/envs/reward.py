"""The reward of one routing decision, term by term.

With L = `latency_threshold` and the interval from one decision to the next:

- latency: (1/L) times the integral of the requests in the system; sums over an episode to
  sum(e2e) / L, by Little's law the exact credit of each decision.
- tail: (1/L) times the integral of the requests older than L; sums to sum(max(0, e2e - L)) / L.
- throughput: min(completion rate / `throughput_target`, 1), at the interval's end.
- imbalance: coefficient of variation over replicas of true remaining tokens / speed, right after
  the decision.

reward = throughput_weight throughput - latency_weight latency - latency_penalty_scale tail
         - load_balance_penalty imbalance.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import RewardConfig


class RewardTerms(NamedTuple):
    """The terms without their weights, all >= 0."""

    latency: float
    tail: float
    throughput: float
    imbalance: float


def batched_reward_terms(
    intervals: npt.NDArray[np.float64], config: RewardConfig
) -> npt.NDArray[np.float64]:
    """Returns the unweighted terms of many intervals in the order of `RewardTerms`.

    Args:
        intervals: (n, 5), the fields of `Interval`.
        config: the threshold and the target.

    Returns:
        (n, 4).
    """
    terms = intervals[:, 1:5] / np.array(
        [config.latency_threshold, config.latency_threshold, config.throughput_target, 1.0]
    )
    np.minimum(terms[:, 2], 1.0, out=terms[:, 2])
    return terms


def weighted_sum(
    terms: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the rewards, shape (n,); one row gives the same bits alone and among others.

    Args:
        terms: (n, 4), unweighted.
        weights: (4,), signed.
    """
    total: npt.NDArray[np.float64] = terms[:, 0] * weights[0]
    for column in range(1, len(weights)):
        total += terms[:, column] * weights[column]
    return total


def term_weights(config: RewardConfig) -> npt.NDArray[np.float64]:
    """Returns the signed weights in the order of `RewardTerms`, shape (4,)."""
    return np.array(
        [
            -config.latency_weight,
            -config.latency_penalty_scale,
            config.throughput_weight,
            -config.load_balance_penalty,
        ]
    )
