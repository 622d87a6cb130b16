"""What an episode's end tells of its requests."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import SLO, RewardConfig
from llmroute_gym.sim.outcome import Outcome, per_replica, summaries

LATENCIES = ("ttft", "tpot", "e2e", "queue")
"""The latencies that an episode's end tells of."""


def episode_metrics(
    outcomes: Outcome, n_replicas: int, reward: RewardConfig
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns `episode_metrics/...` over all requests of each episode, shape (n_episodes,) each.

    Args:
        outcomes: its arrays have shape (n_episodes, n_requests).
        n_replicas: of the cluster.
        reward: its latency threshold is that of goodput.
    """
    objectives = SLO(e2e_s=reward.latency_threshold)
    metrics = summaries(outcomes, objectives, n_replicas, latencies=LATENCIES)
    placed = per_replica(outcomes, n_replicas, np.ones_like(outcomes.replica))
    for replica, requests in enumerate(placed.T):
        metrics[f"share_{replica:02d}"] = requests / outcomes.replica.shape[1]
    return {f"episode_metrics/{name}": value.astype(float) for name, value in metrics.items()}
