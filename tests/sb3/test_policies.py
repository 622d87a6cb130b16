import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO

from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    MaskableReplicaSetPolicy,
    NormalizedRows,
    RelativeRows,
    ReplicaSetPolicy,
    RouterMaskablePPO,
    RouterPPO,
    TemperedMaskableMlpPolicy,
    TemperedMlpLstmPolicy,
    TemperedMlpPolicy,
    fill_statistics,
)
from llmroute_gym.sb3.row_normalizer import RowNormalizer, moments, normalizers
from tests.sb3.toy import SMALL, toy_vec_env, weights


def replica_set(n, kind=ReplicaSetPolicy, **options):
    th.manual_seed(0)
    space = spaces.Box(0, 5, (n, 3), np.float32)
    policy = kind(space, spaces.Discrete(n), lambda _: 3e-4, **options)
    # The initial scores are nearly equal; larger ones make a sharper test.
    with th.no_grad():
        policy.action_net.score.weight.mul_(300)
    return policy


def probabilities(policy, observations):
    with th.no_grad():
        return policy.get_distribution(th.as_tensor(observations)).distribution.probs.numpy()


@pytest.mark.parametrize(
    ("algorithm", "stock", "ours", "options"),
    [
        (PPO, "MlpPolicy", TemperedMlpPolicy, SMALL),
        (MaskablePPO, "MlpPolicy", TemperedMaskableMlpPolicy, SMALL),
        (
            RecurrentPPO,
            "MlpLstmPolicy",
            TemperedMlpLstmPolicy,
            {**SMALL, "policy_kwargs": {"lstm_hidden_size": 8}},
        ),
    ],
)
def test_at_temperature_one_it_is_the_stock_policy_bit_for_bit(algorithm, stock, ours, options):
    results = [
        weights(algorithm(policy, toy_vec_env(), **options).learn(128)) for policy in (stock, ours)
    ]
    for name, value in results[0].items():
        assert th.equal(value, results[1][name]), name


def test_the_temperature_divides_the_logits_and_is_saved(tmp_path):
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    observations = np.random.default_rng(0).random((6, 4, 3)).astype(np.float32)
    cold = probabilities(model.policy, observations)
    model.policy.set_temperature(2.5)
    warm = probabilities(model.policy, observations)
    scaled = cold ** (1 / 2.5)
    np.testing.assert_allclose(warm, scaled / scaled.sum(axis=1, keepdims=True), rtol=1e-6)
    model.save(tmp_path / "model.zip")
    assert float(RouterPPO.load(tmp_path / "model.zip").policy.temperature) == 2.5
    with pytest.raises(InputError, match="temperature must be a finite number > 0, got 0"):
        model.policy.set_temperature(0.0)


@pytest.mark.parametrize("kind", [ReplicaSetPolicy, MaskableReplicaSetPolicy])
@pytest.mark.parametrize("n", [4, 9])
def test_permuting_the_rows_permutes_the_probabilities(kind, n):
    policy = replica_set(n, kind)
    rng = np.random.default_rng(1)
    observations = rng.random((32, n, 3)).astype(np.float32)
    order = rng.permutation(n)
    direct, permuted = (
        probabilities(policy, one) for one in (observations, observations[:, order])
    )
    assert direct.max() > 1.5 / n
    np.testing.assert_allclose(permuted, direct[:, order], atol=1e-6)
    with th.no_grad():
        values = [
            policy.predict_values(th.as_tensor(one)).numpy()
            for one in (observations, observations[:, order])
        ]
    np.testing.assert_allclose(*values, atol=1e-5)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_weights_trained_with_four_replicas_run_with_others(n, tmp_path):
    model = RouterPPO("ReplicaSetPolicy", toy_vec_env(), learning_rate=3e-3, **SMALL)
    fill_statistics(model, 20, seed=0)
    model.learn(12 * 64)
    other = model.policy.for_replicas(n)
    observations = np.random.default_rng(2).random((500, n, 3)).astype(np.float32)
    chosen, _ = other.predict(observations, deterministic=True)
    assert chosen.max() < n
    # What it learned still holds: the chosen row has a smaller first column than the mean row.
    gain = observations[:, :, 0].mean() - observations[np.arange(500), chosen, 0].mean()
    assert gain > 0.1
    model.save(tmp_path / "four.zip")
    resized = RouterPPO.from_pretrained(tmp_path / "four.zip", toy_vec_env(rows=n))
    np.testing.assert_array_equal(
        resized.policy.predict(observations, deterministic=True)[0], chosen
    )
    resized.learn(64)


def test_masked_replicas_are_never_chosen():
    policy = replica_set(4, MaskableReplicaSetPolicy)
    observations = np.random.default_rng(3).random((200, 4, 3)).astype(np.float32)
    masks = np.random.default_rng(4).random((200, 4)) < 0.5
    masks[:, 0] |= ~masks.any(axis=1)
    chosen, _ = policy.predict(observations, action_masks=masks)
    assert masks[np.arange(200), chosen].all()
    model = RouterMaskablePPO("ReplicaSetPolicy", toy_vec_env(masked=True), kl_coef=0.1, **SMALL)
    model.learn(64)


def test_actor_and_critic_have_sizes_of_their_own():
    policy = replica_set(4, net_arch={"pi": [32, 16], "vf": [8]})
    assert policy.action_net.score.in_features == 16 + 3  # and a row's differences
    assert policy.value_net.in_features == 8
    shared = {id(one) for one in policy.mlp_extractor.actor.parameters()}
    assert not shared & {id(one) for one in policy.mlp_extractor.critic.parameters()}


@pytest.mark.parametrize(
    ("space", "actions"),
    [(spaces.Box(0, 1, (12,)), 4), (spaces.Box(0, 1, (3, 4)), 4)],
)
def test_a_replica_set_needs_one_row_per_action(space, actions):
    with pytest.raises(InputError, match="use MlpPolicy"):
        ReplicaSetPolicy(space, spaces.Discrete(actions), lambda _: 1e-3)


def test_statistics_are_those_of_all_rows():
    rng = np.random.default_rng(5)
    parts = [rng.normal(3.0, 2.0, (n, 4, 3)) for n in (7, 1, 30)]
    normalizer = RowNormalizer(3)
    for part in parts:
        normalizer.update(*moments(part))
    rows = np.concatenate([part.reshape(-1, 3) for part in parts])
    np.testing.assert_allclose(normalizer.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance.numpy(), rows.var(axis=0), rtol=1e-12)
    normalized = normalizer(th.as_tensor(rows, dtype=th.float32)).numpy()
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(axis=0), 1, atol=1e-5)


def test_loads_beyond_those_seen_still_tell_replicas_apart():
    extractor = RelativeRows(spaces.Box(0, 256, (2, 3)))
    calm = np.random.default_rng(0).normal(1.0, 0.1, (50, 2, 3))
    extractor.normalizer.update(*moments(calm))
    overload = th.tensor([[[100.0, 1.0, 1.0], [101.0, 1.0, 1.0]]])
    own, differences = extractor(overload).reshape(2, 2, 3).unbind(1)
    assert own[0, 0] < own[1, 0] < 10  # a thousand standard deviations
    assert differences[1, 0] > 2  # five
    assert th.allclose(differences[0], -differences[1], atol=1e-3)


def test_equal_rows_have_no_differences():
    extractor = RelativeRows(spaces.Box(0, 1, (4, 3)))
    features = extractor(th.full((1, 4, 3), 0.5)).reshape(4, 2, 3)
    assert th.equal(features[:, 1], th.zeros(4, 3))


@pytest.mark.parametrize("policy", ["MlpPolicy", "ReplicaSetPolicy"])
def test_statistics_are_carried_by_the_checkpoint(policy, tmp_path):
    options = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = RouterPPO(policy, toy_vec_env(), **options)
    assert fill_statistics(model, 50, seed=1) == 100
    (normalizer,) = normalizers(model.policy)
    assert float(normalizer.count) == 400
    assert normalizer.mean.shape == (3,)
    model.set_reference()
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = RouterPPO.load(tmp_path / "model.zip")
    observations = np.random.default_rng(2).random((50, 4, 3)).astype(np.float32)
    for one in (loaded.policy, loaded.reference_policy):
        assert th.equal(normalizers(one)[0].mean, normalizer.mean)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        model.predict(observations, deterministic=True)[0],
    )


def test_filling_draws_nothing_from_the_training():
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    draws = []
    for steps in (0, 30):
        model.set_random_seed(5)
        fill_statistics(model, steps, seed=1)
        draws.append((th.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
    assert draws[0] == draws[1]
