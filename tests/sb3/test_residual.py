"""The policy that corrects a rule: it starts as the rule, and routes in kernels as in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.envs.drawn_env import FORBIDDEN, NOBODY
from llmroute_gym.errors import InputError
from llmroute_gym.routers.exported import load_policy
from llmroute_gym.routers.residual import ResidualRule
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sb3 import Checkpoint, PolicyRouter, RouterPPO, router_of
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sb3.exporting import exported, policy_file
from llmroute_gym.sb3.networks import POLICIES, network_options
from llmroute_gym.sb3.row_normalizer import normalizers, seen_by
from tests.envs.test_drawn_env import METRICS, RULE, best, made

MODEL = ModelConfig("residual", [16, 16], [16], rule=RULE, inverse_temperature=4.0)


def ppo(n_rows: int = 6, **settings: Any) -> RouterPPO:
    env = VecMonitor(DummyVecEnv([lambda: made(n_rows, requests=60)] * 2))
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, **settings}
    return RouterPPO(
        POLICIES["residual"],
        env,
        policy_kwargs=network_options(MODEL),
        seed=0,
        device="cpu",
        **options,
    )


def disturb(model: RouterPPO) -> None:
    """Gives the policy strong random weights, as a long training might."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for weights in model.policy.parameters():
            weights.add_(th.randn(weights.shape, generator=generator) * weights.shape[-1] ** -0.5)


def observations(n: int, n_rows: int) -> Any:
    env = made(n_rows, requests=n)
    seen = [env.reset(seed=2)[0]]
    for _ in range(n - 1):
        seen.append(env.step(best(seen[-1]))[0])
    return np.stack(seen)


def probabilities(policy: Any, seen: Any) -> Any:
    with th.no_grad():
        return policy.get_distribution(th.as_tensor(seen)).distribution.probs.numpy()


def test_it_starts_as_the_softmax_of_the_rule() -> None:
    seen = observations(3000, 6)
    found = probabilities(ppo().policy, seen)
    scores = seen[..., -1].astype(np.float64)
    allowed = (scores > NOBODY) & (scores < FORBIDDEN)
    weights = np.where(allowed, np.exp(-4.0 * np.where(allowed, scores, 0)), 0.0)
    np.testing.assert_allclose(found, weights / weights.sum(axis=1, keepdims=True), atol=1e-6)
    assert (found[~allowed] == 0).all()
    np.testing.assert_array_equal(found.argmax(axis=1), [best(one) for one in seen])


def test_rows_of_nobody_change_nothing() -> None:
    model = ppo(6)
    disturb(model)
    seen = observations(200, 6)
    rows = model.policy.features_extractor.rows_of(seen)
    assert rows.shape == (800, 19)
    assert seen_by(model.policy, seen)[2] == 800
    for normalizer in normalizers(model.policy):
        normalizer.update(*seen_by(model.policy, seen))
    four = model.policy.for_replicas(4)
    np.testing.assert_allclose(
        probabilities(model.policy, seen)[:, :4], probabilities(four, seen[:, :4]), atol=1e-6
    )
    with th.no_grad():
        values = [policy.predict_values(th.as_tensor(x)).numpy() for policy, x in
                  ((model.policy, seen), (four, seen[:, :4]))]  # fmt: skip
    np.testing.assert_allclose(*values, atol=1e-5)


def test_it_routes_as_pytorch_decides() -> None:
    model = ppo()
    disturb(model)
    for normalizer in normalizers(model.policy):
        normalizer.update(*seen_by(model.policy, observations(200, 6)))
    env = made(6, requests=1500)
    observation, _ = env.reset(seed=4)
    chosen, over = [], False
    while not over:
        chosen.append(int(model.predict(observation, deterministic=True)[0]))
        observation, _, over, _, _ = env.step(chosen[-1])
    router = router_of(model)
    assert isinstance(router, ResidualRule)
    assert router.observation == METRICS
    served = simulate(env.run.workload, env.run.cluster, router, seed=0).replica
    assert served.tolist() == chosen
    rule = simulate(env.run.workload, env.run.cluster, RULE, observation=METRICS, seed=0).replica
    assert (served != rule).mean() > 0.05


def test_a_checkpoint_carries_the_rule(tmp_path: Path) -> None:
    model = ppo(normalize_per_env=True)
    model.set_reference()
    model.learn(128)
    Checkpoint(model, Layout(6, METRICS, MODEL)).save(tmp_path / "model.zip")
    loaded = Checkpoint.load(tmp_path / "model.zip")
    assert loaded.layout.model == MODEL
    assert loaded.model.normalize_per_env
    loaded.check_fits(2, METRICS)
    with pytest.raises(InputError, match=r"observation\.information=metrics, got engine"):
        loaded.check_fits(2, ObservationConfig())
    first, second = router_of(model), router_of(loaded)
    assert isinstance(first, ResidualRule)
    assert isinstance(second, ResidualRule)
    np.testing.assert_array_equal(first.constants(), second.constants())
    env = made(6)
    env.reset(seed=0)
    served = [
        simulate(env.run.workload, env.run.cluster, one, seed=0).replica.tolist()
        for one in (first, loaded)
    ]
    assert served[0] == served[1]
    file = policy_file(loaded, {"seed": 0})
    file.write(tmp_path / "policy.npz")
    exported_one = load_policy(tmp_path / "policy.npz")
    assert isinstance(exported_one, ResidualRule)
    assert exported_one.observation == METRICS
    np.testing.assert_array_equal(exported_one.constants(), first.constants())
    with pytest.raises(InputError, match=r"model=residual is no network alone, .*; leave form"):
        exported(loaded, {})
    again = RouterPPO.from_pretrained(
        tmp_path / "model.zip", VecMonitor(DummyVecEnv([lambda: made(5)])), device="cpu"
    )
    for name, weights in again.policy.state_dict().items():
        assert th.equal(weights, model.policy.state_dict()[name]), name


def test_it_is_no_router_that_decides_by_rows_alone() -> None:
    with pytest.raises(InputError, match=r"got one that corrects a rule, .*; take router_of\(pol"):
        PolicyRouter(ppo())
