"""How good a candidate is: one number, and whether it keeps the limit."""

import math
from typing import NamedTuple

import numpy as np

from llmroute_gym.compare.search.measuring import LIMITED, Measuring, relative
from llmroute_gym.ground.arrays import FloatArray

PENALTY = 10.0
"""What exceeding the limit costs, per unit of the logarithm by which it does on average."""


class Score(NamedTuple):
    """What a candidate achieved, beside the rule as it starts and on the same requests."""

    objective: float
    """Mean over scenarios of the weighted logarithms of the ratios; -0.1 is about 10% less."""
    ttft_p99: float
    """Worst ratio of the limited metric to that of the limiting rule; NaN without a limit."""
    excess: float = 0.0
    """Mean over scenarios of the logarithms by which these ratios exceed the limit: unlike the
    worst of many ratios of few requests each, it is not ruled by noise."""

    @property
    def told(self) -> float:
        """What the next generation is bred by."""
        return self.objective + PENALTY * self.excess

    def allowed(self, limit: float | None) -> bool:
        """Whether it keeps the limit."""
        return limit is None or self.ttft_p99 <= limit


def objectives(measuring: Measuring, logs: FloatArray, start: FloatArray) -> FloatArray:
    """Returns a candidate's objective for each row, (n_rows,).

    Args:
        measuring: says what each metric weighs.
        logs: of the candidate, (n_rows, n_pools, n_metrics).
        start: of the rule as it starts, likewise.
    """
    means: FloatArray = (relative(logs, start) * measuring.weights).sum(axis=2).mean(axis=1)
    return means


def score(
    measuring: Measuring, logs: FloatArray, start: FloatArray, limiting: FloatArray | None
) -> Score:
    """Returns the score of a candidate by its first row.

    Args:
        measuring: says what each metric weighs.
        logs: of the candidate, (n_rows, n_pools, n_metrics).
        start: of the rule as it starts, likewise.
        limiting: of the rule that limits it, likewise; None without a limit.
    """
    worst, excess, limit = math.nan, 0.0, measuring.settings.ttft_p99_at_most
    if limiting is not None and limit is not None:
        ratios = relative(logs[0], limiting[0])[:, measuring.metrics.index(LIMITED)]
        worst = math.exp(float(ratios.max()))
        excess = float(np.maximum(ratios - math.log(limit), 0.0).mean())
    return Score(float(objectives(measuring, logs[:1], start[:1])[0]), worst, excess)
