"""Guesses of output lengths."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.sim.workload import Workload


def predicted_output_tokens(
    workload: Workload, sigma: float | None, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns guesses of the output lengths, shape (n_requests,).

    Args:
        workload: the requests.
        sigma: standard deviation of the guess's logarithm; None gives no guess, all zero.
        rng: draws the errors.
    """
    if sigma is None:
        return np.zeros(len(workload))
    errors = np.exp(sigma * rng.standard_normal(len(workload)))
    return workload.output_tokens.astype(np.float64) * errors
