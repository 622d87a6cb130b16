"""Boosted trees for quantiles."""

import numpy as np
import pytest

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers.boosting import RATE, TREES, boosted, predicted


def pinball(values: FloatArray, guesses: FloatArray, quantile: float) -> float:
    over = values - guesses
    return float(np.maximum(quantile * over, (quantile - 1) * over).mean())


def noisy(n: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Features, a mean that depends on three of them, and values around it."""
    rng = np.random.default_rng(0)
    features = rng.random((n, 6)) * [1, 3000, 30, 60, 1, 50000]
    mean = 1e-4 * features[:, 1] * (1 - features[:, 4]) + 2e-5 * features[:, 5]
    return features, mean, mean * rng.lognormal(0, 0.3, n)


@pytest.mark.parametrize(("quantile", "deviations"), [(0.9, 1.2816), (0.5, 0.0)])
def test_it_learns_the_quantile(quantile: float, deviations: float) -> None:
    features, mean, values = noisy(6000)
    model = boosted(features[:3000], values[:3000], quantile)
    guesses = np.array([predicted(model, row) for row in features[3000:]])
    assert (values[3000:] <= guesses).mean() == pytest.approx(quantile, abs=0.03)
    perfect = pinball(values[3000:], mean[3000:] * np.exp(0.3 * deviations), quantile)
    constant = pinball(values[3000:], np.full(3000, np.quantile(values, quantile)), quantile)
    own = pinball(values[3000:], guesses, quantile)
    assert own < perfect + 0.15 * (constant - perfect)


def test_one_question_is_worked_out_by_hand() -> None:
    """Values 1 below and 3 above: from the mean 2, each tree mends 30% of what is left."""
    features = np.array([[0.0], [0.0], [1.0], [1.0]])
    model = boosted(features, np.array([1.0, 1.0, 3.0, 3.0]), 0.5)
    above, below = (predicted(model, np.array([x])) for x in (1.0, 0.0))
    assert above == pytest.approx(3 - (1 - RATE) ** TREES)
    assert below == pytest.approx(1 + (1 - RATE) ** TREES)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_samples_give_no_more_than_they_say(n: int) -> None:
    features, _, values = noisy(n)
    model = boosted(features, values, 0.9)
    guesses = [predicted(model, row) for row in features]
    assert min(values) - 1e-9 <= min(guesses) <= max(guesses) <= max(values) + 1e-9


def test_equal_samples_give_equal_models() -> None:
    features, _, values = noisy(300)
    models = [boosted(features.copy(), values.copy(), 0.9) for _ in range(2)]
    np.testing.assert_array_equal(*models)
    assert boosted(np.ones((5, 6)), np.full(5, 2.0), 0.9)[0] == 2.0
