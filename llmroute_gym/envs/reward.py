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

from llmroute_gym.config import RewardConfig
from llmroute_gym.ground.arrays import FloatArray


class RewardTerms(NamedTuple):
    """The terms without their weights, all >= 0."""

    latency: float
    tail: float
    throughput: float
    imbalance: float


def write_reward(
    request_seconds: float,
    late_request_seconds: float,
    completion_rate_rps: float,
    imbalance: float,
    units: FloatArray,
    weights: FloatArray,
    terms: FloatArray,
) -> float:
    """Fills `terms` with the unweighted terms of an interval and returns its reward.

    Plain arithmetic, so that the kernels run this very function.

    Args:
        request_seconds: fields of `llmroute_gym.sim.run.Interval`, likewise the next three.
        late_request_seconds: see there.
        completion_rate_rps: see there.
        imbalance: see there.
        units: (4,) from `term_units`.
        weights: (4,) from `term_weights`.
        terms: (4,) in the order of `RewardTerms`.
    """
    terms[0] = request_seconds / units[0]
    terms[1] = late_request_seconds / units[1]
    terms[2] = min(completion_rate_rps / units[2], 1.0)
    terms[3] = imbalance / units[3]
    total = 0.0
    for term in range(4):
        total += terms[term] * weights[term]
    return total


def term_units(config: RewardConfig) -> FloatArray:
    """Returns what the terms are measured in, in the order of `RewardTerms`, shape (4,)."""
    threshold = config.latency_threshold
    return np.array([threshold, threshold, config.throughput_target, 1.0])


def term_weights(config: RewardConfig) -> FloatArray:
    """Returns the signed weights in the order of `RewardTerms`, shape (4,)."""
    return np.array(
        [
            -config.latency_weight,
            -config.latency_penalty_scale,
            config.throughput_weight,
            -config.load_balance_penalty,
        ]
    )
