"""Behaviour cloning: what is learned, what is left alone, and how decisions count."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3.common.vec_env import VecNormalize

from llmroute_gym.config import CloningConfig, ObservationConfig, RewardConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.demos.layout import DemoLayout
from llmroute_gym.demos.weights import better, decision_weights
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import NormalizedRows, RouterPPO
from llmroute_gym.sb3.cloning import (
    action_logits,
    clone,
    split_by_episode,
)
from llmroute_gym.sb3.row_normalizer import normalizers, observation_transform
from tests.sb3.toy import SMALL, toy_vec_env

ROWS, COLUMNS = 4, 3
TOLD = ObservationConfig(columns=["waiting", "running", "kv_usage"])
LAYOUT = DemoLayout(ROWS, TOLD, RewardConfig(), 0.95)
QUICK = CloningConfig(epochs=30, learning_rate=1e-2, value_learning_rate=1e-2)

th.set_num_threads(1)


def toy_demos(n: int = 600, seed: int = 0, masked: bool = False, **columns: Any) -> Demos:
    """The row with the smallest first column is chosen; the return is far from 0."""
    rng = np.random.default_rng(seed)
    observation = rng.random((n, ROWS, COLUMNS), dtype=np.float32)
    mask = np.ones((n, ROWS), dtype=np.bool_)
    if masked:
        mask[np.arange(n), np.arange(n) % ROWS] = False
    score = np.where(mask, observation[:, :, 0], np.inf)
    arrays: dict[str, Any] = {
        "router": np.full(n, "smallest"),
        "seed": np.full(n, seed),
        "episode": np.arange(n) // 20,
        "step": np.arange(n) % 20,
        "qps": np.ones(n),
        "observation": observation,
        "mask": mask,
        "action": score.argmin(axis=1),
        "reward": np.zeros(n),
        "return_to_go": -50.0 + 20.0 * observation[:, :, 1].mean(axis=1).astype(np.float64),
    }
    return Demos(LAYOUT, (), **{**arrays, **columns})


def new_model(policy: str = "ReplicaSetPolicy", env: Any = None, **settings: Any) -> RouterPPO:
    kwargs = {"features_extractor_class": NormalizedRows, "net_arch": {"pi": [32], "vf": [32]}}
    kwargs |= settings.pop("policy_kwargs", {})
    return RouterPPO(policy, env or toy_vec_env(), **{**SMALL, "policy_kwargs": kwargs, **settings})


def accuracy(model: Any, demos: Demos) -> float:
    logs = action_logits(model.policy, observation_transform(model)(demos.observation), demos.mask)
    return float((logs.argmax(axis=1) == demos.action).mean())


def state(module: Any) -> dict[str, th.Tensor]:
    return {name: one.clone() for name, one in module.state_dict().items()}


@pytest.fixture(scope="module")
def cloned() -> tuple[RouterPPO, Any]:
    model = new_model()
    return model, clone(model, toy_demos(), QUICK, seed=0)


def test_the_clone_decides_as_demonstrated_on_new_episodes(cloned: Any) -> None:
    model, _ = cloned
    assert accuracy(model, toy_demos(seed=1)) > 0.97
    assert accuracy(new_model(), toy_demos(seed=1)) < 0.6


def test_the_value_head_foretells_the_returns_in_their_own_unit(cloned: Any) -> None:
    model, cloning = cloned
    demos = toy_demos(seed=1)
    with th.no_grad():
        values = model.policy.predict_values(th.as_tensor(demos.observation)).squeeze(1).numpy()
    errors = values - demos.return_to_go
    assert abs(errors.mean()) < 0.5
    assert errors.var() < 0.1 * demos.return_to_go.var()
    assert cloning.explained_variance > 0.9


def test_the_kept_epochs_are_those_with_the_best_validation_loss(cloned: Any) -> None:
    _, cloning = cloned
    for records, kept in (
        (cloning.actor, cloning.actor_epoch),
        (cloning.critic, cloning.critic_epoch),
    ):
        losses = [record.validation_loss for record in records]
        assert kept == int(np.argmin(losses))


@pytest.mark.parametrize("policy", ["MlpPolicy", "ReplicaSetPolicy"])
def test_the_critic_does_not_move_the_actor(policy: str) -> None:
    demos = toy_demos(200)
    models = [new_model(policy), new_model(policy)]
    for model, returns in zip(models, (demos.return_to_go, -demos.return_to_go), strict=True):
        arrays = Demos(LAYOUT, (), **{**vars_of(demos), "return_to_go": returns})
        clone(model, arrays, CloningConfig(epochs=3), seed=0)
    logs = [action_logits(model.policy, demos.observation, demos.mask) for model in models]
    np.testing.assert_array_equal(*logs)


def vars_of(demos: Demos) -> dict[str, Any]:
    return {k: v for k, v in vars(demos).items() if k not in ("layout", "collections")}


def test_cloning_repeats_and_draws_nothing_from_global_generators() -> None:
    before = th.get_rng_state()
    states = []
    for _ in range(2):
        model = new_model()
        after = th.get_rng_state()
        clone(model, toy_demos(100), CloningConfig(epochs=2), seed=3)
        assert th.equal(th.get_rng_state(), after)
        states.append(state(model.policy))
    th.set_rng_state(before)
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_masked_replicas_are_never_chosen_and_do_not_count() -> None:
    model = new_model()
    clone(model, toy_demos(masked=True), QUICK, seed=0)
    demos = toy_demos(seed=1, masked=True)
    logs = action_logits(model.policy, demos.observation, demos.mask)
    assert (logs[~demos.mask] == -np.inf).all()
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, atol=1e-5)
    assert accuracy(model, demos) > 0.95


def test_label_smoothing_leaves_room_on_what_the_masks_allow() -> None:
    model = new_model()
    clone(model, toy_demos(masked=True), replace(QUICK, label_smoothing=0.3), seed=0)
    demos = toy_demos(seed=1, masked=True)
    probabilities = np.exp(action_logits(model.policy, demos.observation, demos.mask))
    # With 3 of 4 allowed a smoothed label gives 0.7 + 0.3 / 3 to one and 0.3 / 3 to the others.
    middle = np.median(np.sort(probabilities, axis=1), axis=0)
    np.testing.assert_allclose(middle, [0.0, 0.1, 0.1, 0.8], atol=0.1)


def test_routers_that_disagree_give_their_mixture() -> None:
    # On equal rows three in four decisions go to replica 1, the rest to replica 2.
    n = 800
    flat = np.ones((n, ROWS, COLUMNS), dtype=np.float32)
    flat[:, :, 2] = np.arange(ROWS)
    share = np.random.default_rng(0).random(n) < 0.75
    model = new_model()
    demos = toy_demos(n, observation=flat, action=np.where(share, 1, 2))
    clone(model, demos, CloningConfig(epochs=20, router_balance=False), seed=0)
    logs = action_logits(model.policy, flat[:1], np.ones((1, ROWS), dtype=np.bool_))
    np.testing.assert_allclose(np.exp(logs[0]), [0.0, 0.75, 0.25, 0.0], atol=0.06)


def test_a_mask_aware_algorithm_learns_too() -> None:
    settings = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = MaskablePPO("MlpPolicy", toy_vec_env(masked=True), **settings)
    clone(model, toy_demos(masked=True), QUICK, seed=0)
    assert accuracy(model, toy_demos(seed=1, masked=True)) > 0.9


def test_fresh_statistics_come_from_the_demonstrations_and_known_ones_stay() -> None:
    model, demos = new_model(), toy_demos(100)
    clone(model, demos, CloningConfig(epochs=1), seed=0)
    (normalizer,) = normalizers(model.policy)
    assert float(normalizer.mean[0]) == pytest.approx(0.5, abs=0.05)
    before = state(normalizer)
    clone(model, toy_demos(100, observation=demos.observation * 3), CloningConfig(epochs=1), seed=0)
    after = state(normalizer)
    assert all(th.equal(before[name], after[name]) for name in before)


def test_the_clone_sees_what_the_wrapper_normalises() -> None:
    env = VecNormalize(toy_vec_env(), norm_reward=False)
    model = RouterPPO("MlpPolicy", env, **SMALL)
    demos = toy_demos()
    clone(model, demos, QUICK, seed=0)
    assert env.obs_rms.mean == pytest.approx(demos.observation.mean(axis=0), abs=0.05)  # type: ignore[union-attr]
    assert accuracy(model, toy_demos(seed=1)) > 0.85


def test_whole_episodes_are_held_out_for_all_routers_alike() -> None:
    router = np.where(np.arange(600) % 2 == 0, "a", "b")
    training, validation = split_by_episode(toy_demos(router=router), 0.2, seed=0)
    assert not set(training.episode) & set(validation.episode)
    assert len(set(validation.episode)) == 6
    assert len(training) + len(validation) == 600


def test_one_episode_cannot_be_split() -> None:
    with pytest.raises(InputError, match="are of one episode"):
        split_by_episode(toy_demos(20), 0.2, seed=0)


@pytest.mark.parametrize(("classes", "routers"), list(itertools.product([False, True], repeat=2)))
def test_balance_makes_groups_count_the_same(classes: bool, routers: bool) -> None:
    router = np.where(np.arange(600) < 500, "a", "b")
    demos = toy_demos(router=router, action=np.where(np.arange(600) % 6 == 0, 1, 2))
    config = CloningConfig(class_balance=classes, router_balance=routers)
    weights = decision_weights(demos, config)
    assert weights.mean() == pytest.approx(1.0)
    shares = [weights[demos.router == "a"].sum() / 600, weights[demos.action == 1].sum() / 600]
    assert shares[0] == pytest.approx(1 / 2 if routers else 5 / 6, abs=0.01)
    assert shares[1] == pytest.approx(1 / 2 if classes else 1 / 6, abs=0.01)


def test_the_better_of_several_routers_decisions_are_kept() -> None:
    """Compared on the same request only: what a request is worth by itself does not count."""
    rng = np.random.default_rng(0)
    worth = np.tile(rng.normal(-50.0, 15.0, 200), 3)
    router = np.repeat(["a", "b", "c"], 200)
    gain = np.repeat([1.0, 0.0, -2.0], 200)
    place = {"episode": np.tile(np.arange(200) // 20, 3), "step": np.tile(np.arange(200) % 20, 3)}
    demos = toy_demos(router=router, return_to_go=worth + gain, **place)
    assert set(router[better(demos)]) == {"a", "b"}
    assert better(demos).sum() == 400
    weights = decision_weights(demos, CloningConfig(keep="better"))
    np.testing.assert_allclose(weights, np.where(router == "c", 0.0, 1.5))
    np.testing.assert_array_equal(decision_weights(demos, CloningConfig()), np.ones(600))


def test_every_decision_is_kept_where_none_is_better() -> None:
    one = toy_demos(return_to_go=np.random.default_rng(1).normal(size=600))
    assert better(one).all()
    same = np.tile(np.random.default_rng(2).normal(size=200), 3)
    place = {"episode": np.tile(np.arange(200) // 20, 3), "step": np.tile(np.arange(200) % 20, 3)}
    equal = toy_demos(router=np.repeat(["a", "b", "c"], 200), return_to_go=same, **place)
    assert better(equal).all()


def test_a_clone_follows_the_better_router() -> None:
    """Of two that contradict each other everywhere, where a mixture would tell nothing."""
    one = toy_demos(n=400)
    other = toy_demos(n=400, action=one.observation[:, :, 0].argmax(axis=1))
    worse = replace(other, router=np.full(400, "largest"), return_to_go=one.return_to_go - 1.0)
    model = new_model()
    both = one.joined(worse)
    clone(model, both, replace(QUICK, keep="better"), seed=0)
    fresh = toy_demos(seed=7)
    chosen = action_logits(model.policy, fresh.observation, fresh.mask).argmax(axis=1)
    assert (chosen == fresh.action).mean() > 0.9


def test_another_shape_is_refused_before_anything_changes() -> None:
    model = new_model()
    before = state(model.policy)
    wrong = toy_demos(observation=np.zeros((600, ROWS, 5), dtype=np.float32))
    with pytest.raises(InputError, match=r"have shape \(4, 5\) and the policy takes \(4, 3\)"):
        clone(model, wrong, QUICK, seed=0)
    after = state(model.policy)
    assert all(th.equal(before[name], after[name]) for name in before)
    assert isinstance(model.action_space, spaces.Discrete)


def test_a_clone_is_saved_and_loaded_whole(cloned: Any, tmp_path: Any) -> None:
    model, _ = cloned
    model.save(tmp_path / "model.zip")
    loaded = RouterPPO.load(tmp_path / "model.zip")
    demos = toy_demos(seed=1)
    np.testing.assert_array_equal(
        action_logits(loaded.policy, demos.observation, demos.mask),
        action_logits(model.policy, demos.observation, demos.mask),
    )
