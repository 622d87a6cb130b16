"""Which constants are tried next: CMA-ES in the unit cube."""

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA

from llmroute_gym.ground.arrays import FloatArray

WORST = 1e6
"""What a candidate counts that serves nothing: the strategy asks only who is better."""


def usual_population(n_constants: int) -> int:
    """Returns the usual number of candidates of a generation; noise asks for 8 at the least."""
    return max(8, 4 + math.floor(3 * math.log(n_constants)))


class Proposals:
    """Generations of points, each bred from how the last ones did.

    The strategy is that of the package `cmaes` (Nomura and Shibata 2024): one class with `ask` and
    `tell` on NumPy alone. Optuna's CMA-ES is the same class behind a study of trials, and what it
    proposes depends on the order in which its processes report. Nothing is pickled: points follow
    from the seed and what was told, so that an interrupted search tells again what it has written
    down, and goes on.

    Args:
        start: (n_constants,), each from 0 to 1: the middle of the first generation.
        sigma: how far it spreads, as a share of the cube's edge.
        population: points of a generation.
        seed: of all randomness.
    """

    def __init__(self, start: FloatArray, sigma: float, population: int, seed: int) -> None:
        bounds = np.tile([0.0, 1.0], (len(start), 1))
        self._strategy = CMA(
            np.clip(start, 0, 1), sigma, bounds, seed=seed, population_size=population
        )

    def ask(self, n_points: int) -> FloatArray:
        """Returns points of the next generation, shape (n_points, n_constants)."""
        return np.stack([self._strategy.ask() for _ in range(n_points)])

    def tell(self, points: FloatArray, objectives: Sequence[float]) -> None:
        """Breeds from a whole generation; low objectives are good."""
        finite = np.minimum(np.nan_to_num(objectives, nan=WORST, posinf=WORST), WORST)
        self._strategy.tell(list(zip(points, finite.tolist(), strict=True)))

    @property
    def middle(self) -> FloatArray:
        """Where the next generation would be bred around, shape (n_constants,)."""
        middle: FloatArray = np.clip(self._strategy.mean, 0, 1)
        return middle

    @property
    def converged(self) -> bool:
        """Whether further generations would find nothing new."""
        return bool(self._strategy.should_stop())
