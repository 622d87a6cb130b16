"""Made-up outcomes."""

import numpy as np

from llmroute_gym.sim import Outcome


def outcome(e2e_s: np.ndarray, rejected: int = 0) -> Outcome:
    """Requests that arrive at times 0, 1, 2, ... and take what is given."""
    n = len(e2e_s)
    arrived = np.arange(n, dtype=np.float64)
    finished = arrived + e2e_s
    finished[:rejected] = np.inf
    replica = np.zeros(n, dtype=np.int64)
    replica[:rejected] = -1
    ones = np.ones(n, dtype=np.int64)
    return Outcome(arrived, arrived, finished, finished, replica, ones, ones, 0 * ones)
