"""What an episode's end tells of its requests."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import RewardConfig
from llmroute_gym.sim.outcome import Outcome, summaries


def episode_metrics(
    outcomes: Outcome, n_replicas: int, reward: RewardConfig
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns `episode_metrics/...` over all requests of each episode, shape (n_episodes,) each.

    Args:
        outcomes: its arrays have shape (n_episodes, n_requests).
        n_replicas: of the cluster.
        reward: its latency threshold is that of goodput.
    """
    metrics = summaries(outcomes, reward.latency_threshold)
    n_episodes, n_requests = outcomes.replica.shape
    # The rejected, at -1, are counted in a column of their own.
    cells = outcomes.replica + 1 + np.arange(n_episodes)[:, None] * (n_replicas + 1)
    counts = np.bincount(cells.ravel(), minlength=n_episodes * (n_replicas + 1))
    shares = counts.reshape(n_episodes, n_replicas + 1) / n_requests
    for replica in range(n_replicas):
        metrics[f"share_{replica:02d}"] = shares[:, replica + 1]
    return {f"episode_metrics/{name}": value.astype(float) for name, value in metrics.items()}
