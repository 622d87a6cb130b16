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


def reward_terms(
    request_seconds: float,
    late_request_seconds: float,
    completion_rate_rps: float,
    imbalance: float,
    latency_threshold: float,
    throughput_target: float,
) -> tuple[float, float, float, float]:
    """Returns latency, tail, throughput and imbalance of one interval, unweighted.

    Plain arithmetic on numbers, so that both engines run this very function.
    """
    return (
        request_seconds / latency_threshold,
        late_request_seconds / latency_threshold,
        min(completion_rate_rps / throughput_target, 1.0),
        imbalance,
    )


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
