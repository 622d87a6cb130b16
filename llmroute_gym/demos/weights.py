"""What each demonstrated decision counts where it is imitated."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import CloningConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.ground.arrays import FloatArray


def decision_weights(demos: Demos, config: CloningConfig) -> FloatArray:
    """Returns what each decision counts, mean 1, shape (n,); 0 leaves it out."""
    weights = np.ones(len(demos))
    for wanted, labels in (
        (config.class_balance, demos.action),
        (config.router_balance, demos.router),
    ):
        if wanted:
            _, group, count = np.unique(labels, return_inverse=True, return_counts=True)
            weights /= count[group.reshape(-1)]
    if config.keep == "better":
        weights[~better(demos)] = 0.0
    scaled: FloatArray = weights / weights.mean()
    return scaled


def better(demos: Demos) -> npt.NDArray[np.bool_]:
    """Returns which decisions went no worse than the routers' mean on the same request, (n,).

    All routers of a collection serve the same requests, so the mean of their returns at one request
    is what that request and its load are worth, and what is left is the routers' doing: a sharper
    baseline than any value head: returns differ ten times as much between requests as between two
    good rules. Decisions with an advantage below 0 are left out, as in Wang et al., "Critic
    regularized regression", 2020, which has no parameter to set. The clone of several routers so
    becomes the better one wherever that is clear, instead of their mixture, and the reference of
    the KL does not hold PPO to the worse one. A decision that no other router took on its request
    is its own mean, and stays.
    """
    requests = np.stack([demos.seed, demos.episode, demos.step, demos.qps], axis=1)
    _, group = np.unique(requests, axis=0, return_inverse=True)
    group = group.reshape(-1)
    mean = np.bincount(group, demos.return_to_go) / np.bincount(group)
    # A mean of equal returns may differ from them by its rounding.
    kept: npt.NDArray[np.bool_] = demos.return_to_go >= (mean - 1e-9 * np.abs(mean))[group]
    return kept
