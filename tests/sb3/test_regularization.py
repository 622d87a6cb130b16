import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.distributions import (
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    kl_divergence,
)

from llmroute_gym.sb3.regularization import (
    LinearDecay,
    entropy_shortfall,
    exact_kl,
    rollout_kl,
)

RNG = np.random.default_rng(0)


def logits(*shape):
    return th.as_tensor(RNG.normal(size=shape), dtype=th.float32)


def categorical(values):
    return CategoricalDistribution(values.shape[1]).proba_distribution(values)


def test_kl_is_the_sum_over_actions():
    p, q = logits(20, 5), logits(20, 5)
    expected = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)
    found = exact_kl(categorical(p), categorical(q))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(exact_kl(categorical(p), categorical(p)).numpy(), 0.0)


def test_kl_of_masked_actions_is_that_among_the_allowed():
    p, q = logits(20, 5), logits(20, 5)
    masks = th.as_tensor(RNG.random((20, 5)) < 0.6)
    masks[:, 2] = True
    distributions = [MaskableCategoricalDistribution(5).proba_distribution(v) for v in (p, q)]
    for one in distributions:
        one.apply_masking(masks)
    p, q = (v.masked_fill(~masks, -th.inf).log_softmax(1) for v in (p, q))
    expected = th.where(masks, p.exp() * (p - q), 0.0).sum(1)
    np.testing.assert_allclose(exact_kl(*distributions).numpy(), expected.numpy(), atol=1e-6)


def test_kl_of_several_choices_is_their_sum():
    p, q = logits(8, 5), logits(8, 5)
    stock = [MultiCategoricalDistribution([2, 3]).proba_distribution(v) for v in (p, q)]
    masked = [MaskableMultiCategoricalDistribution([2, 3]).proba_distribution(v) for v in (p, q)]
    expected = kl_divergence(*stock).numpy()
    np.testing.assert_allclose(exact_kl(*stock).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(exact_kl(*masked).numpy(), expected, rtol=1e-5)


def test_kl_of_gaussians_is_the_sum_over_dimensions():
    spread = th.zeros(3)
    p, q = (DiagGaussianDistribution(3).proba_distribution(logits(6, 3), spread) for _ in "pq")
    expected = 0.5 * ((p.distribution.mean - q.distribution.mean) ** 2).sum(1)
    np.testing.assert_allclose(exact_kl(p, q).numpy(), expected.numpy(), rtol=1e-5)


def test_kl_stays_finite_where_a_probability_underflows():
    p = th.zeros(1, 2, requires_grad=True)
    loss = exact_kl(categorical(p), categorical(th.tensor([[0.0, -500.0]]))).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(250, rel=0.01)
    assert bool(p.grad.isfinite().all())


def test_the_estimate_on_the_rollout_is_unbiased():
    old, new = logits(1, 4).log_softmax(1)[0], logits(1, 4).log_softmax(1)[0]
    each = th.stack([rollout_kl(new[i : i + 1], old[i : i + 1]) for i in range(4)])
    assert bool((each >= 0).all())
    expectation = float((old.exp() * each).sum())
    assert expectation == pytest.approx(float((old.exp() * (old - new)).sum()), rel=1e-5)


@pytest.mark.parametrize(("entropy", "shortfall"), [(0.1, 0.2), (0.3, 0.0), (1.0, 0.0)])
def test_the_shortfall_is_what_lacks_to_the_floor(entropy, shortfall):
    assert float(entropy_shortfall(th.tensor(entropy), 0.3)) == pytest.approx(shortfall)


def test_a_decay_is_linear_and_ends_exactly():
    decay = LinearDecay(0.3, 0.07, 7)
    values = [decay(step) for step in range(8)]
    np.testing.assert_allclose(np.diff(values), -0.23 / 7)
    assert values[0] == pytest.approx(0.3)
    assert {decay(step) for step in (7, 8, 10**9)} == {0.07}
