import numpy as np
import pytest
import torch as th
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from llmroute_gym.config import ExplorationConfig, KLConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    EntropyWarmup,
    KLReferenceDecay,
    LinearDecay,
    RouterMaskablePPO,
    RouterPPO,
    TemperedMlpLstmPolicy,
    TemperedMlpPolicy,
)
from tests.sb3.toy import SMALL, RowsEnv, toy_vec_env, weights

UPDATE = 32 * 2


def assert_same(first, second):
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for name in left:
        assert th.equal(left[name], right[name]), name


class Watch(BaseCallback):
    """Notes an attribute of the model after each gradient step, through the optimizer."""

    def __init__(self, attribute):
        super().__init__()
        self.attribute, self.seen = attribute, []

    def _on_training_start(self):
        optimizer = self.model.policy.optimizer
        optimizer.register_step_post_hook(
            lambda *_: self.seen.append((self.model.n_gradient_steps, self._value()))
        )

    def _value(self):
        return getattr(self.model, self.attribute)

    def _on_step(self):
        return True


@pytest.mark.parametrize("options", [{}, {"target_kl": 1e-5, "clip_range_vf": 0.1}])
def test_without_coefficients_it_is_ppo_bit_for_bit(options):
    options = {"ent_coef": 0.01, **options}
    stock = PPO("MlpPolicy", toy_vec_env(), **SMALL, **options).learn(3 * UPDATE)
    ours = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL, **options).learn(3 * UPDATE)
    assert_same(stock, ours)
    assert stock._n_updates == ours._n_updates
    assert (ours._n_updates < 9) == ("target_kl" in options)


def test_a_reference_without_weight_changes_nothing():
    stock = PPO("MlpPolicy", toy_vec_env(), **SMALL).learn(3 * UPDATE)
    ours = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    ours.set_reference()
    assert_same(stock, ours.learn(3 * UPDATE))


def test_continuous_actions_train_too():
    options = {**SMALL, "n_steps": 64}
    stock = PPO("MlpPolicy", "Pendulum-v1", **options).learn(128)
    ours = RouterPPO("MlpPolicy", "Pendulum-v1", **options).learn(128)
    assert_same(stock, ours)
    ours.set_reference()
    ours.kl_ref_coef = 0.1
    ours.learn(128)
    assert ours.mean_reference_kl() > 0
    with pytest.raises(InputError, match="needs discrete actions"):
        ours.policy.set_temperature(2.0)


def test_without_coefficients_it_is_maskable_ppo_bit_for_bit():
    stock = MaskablePPO("MlpPolicy", toy_vec_env(masked=True), **SMALL).learn(3 * UPDATE)
    ours = RouterMaskablePPO("MlpPolicy", toy_vec_env(masked=True), **SMALL).learn(3 * UPDATE)
    assert_same(stock, ours)


@pytest.mark.parametrize("algorithm", [RouterPPO, RouterMaskablePPO])
def test_a_huge_weight_holds_the_policy_at_the_reference(algorithm):
    options = {**SMALL, "learning_rate": 3e-3, "n_epochs": 4}
    kl = {}
    for weight in (0.0, 1e5):
        env = toy_vec_env(masked=algorithm is RouterMaskablePPO)
        model = algorithm("MlpPolicy", env, kl_ref_coef=weight, **options)
        model.set_reference()
        model.learn(6 * UPDATE)
        kl[weight] = model.mean_reference_kl()
    assert kl[1e5] < 1e-4
    assert kl[0.0] > 1e-2


@pytest.mark.parametrize("policy", ["MlpPolicy", "ReplicaSetPolicy"])
def test_temperature_alone_is_no_distance_to_the_reference(policy):
    model = RouterPPO(policy, toy_vec_env(), learning_rate=0.0, **SMALL)
    model.set_reference()
    model.policy.set_temperature(1.7)
    model.learn(UPDATE)
    assert model.mean_reference_kl() == 0.0


def test_kl_ref_coef_follows_its_schedule_through_save_and_load(tmp_path):
    config = KLConfig(kl_ref_coef_initial=0.3, kl_ref_coef_final=0.1, kl_ref_decay_steps=20)
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    model.set_reference()
    reference = {k: v.clone() for k, v in model.reference_policy.state_dict().items()}
    watch = Watch("kl_ref_coef")
    model.learn(UPDATE, callback=[KLReferenceDecay(config), watch])
    model.save(tmp_path / "model.zip")

    resumed = RouterPPO.load(tmp_path / "model.zip", env=toy_vec_env())
    for name, value in resumed.reference_policy.state_dict().items():
        assert th.equal(value, reference[name])
    again = Watch("kl_ref_coef")
    resumed.learn(UPDATE, callback=[KLReferenceDecay(config), again], reset_num_timesteps=False)
    seen = watch.seen + again.seen
    assert [step for step, _ in seen] == list(range(24))
    for step, value in seen:
        assert value == pytest.approx(0.1 + 0.2 * max(0.0, 1 - step / 20), abs=1e-15)
    assert seen[-1][1] == 0.1

    # The schedule is saved: it goes on without the callback too.
    silent = Watch("kl_ref_coef")
    RouterPPO.load(tmp_path / "model.zip", env=toy_vec_env()).learn(
        UPDATE, callback=silent, reset_num_timesteps=False
    )
    assert silent.seen == again.seen


def test_warm_up_reaches_exactly_entropy_coef():
    config = ExplorationConfig(entropy_coef=0.07, entropy_warmup_coef=0.03, warmup_steps=15)
    model, watch = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL), Watch("ent_coef")
    model.learn(2 * UPDATE, callback=[EntropyWarmup(config), watch])
    for step, value in watch.seen:
        assert value == pytest.approx(0.07 + 0.03 * max(0.0, 1 - step / 15), abs=1e-15)
    assert [value for step, value in watch.seen if step >= 15] == [0.07] * 9


def test_warm_up_of_a_stock_ppo_counts_adams_steps():
    config = ExplorationConfig(entropy_coef=0.07, entropy_warmup_coef=0.03, warmup_steps=24)
    model = PPO("MlpPolicy", toy_vec_env(), **SMALL)
    seen = []

    class Note(BaseCallback):
        def _on_rollout_end(self):
            seen.append(self.model.ent_coef)

        def _on_step(self):
            return True

    model.learn(3 * UPDATE, callback=[EntropyWarmup(config), Note()])
    assert seen == pytest.approx([0.1, 0.085, 0.07])


def floor_gradient(entropy_min):
    th.manual_seed(0)
    model = RouterPPO(
        "MlpPolicy", toy_vec_env(), entropy_min=entropy_min, entropy_min_coef=1.0, **SMALL
    )
    entropy = th.tensor(1.0, requires_grad=True)
    loss = model._regularization(None, th.zeros(1), entropy)
    return th.autograd.grad(loss, entropy)[0].item(), float(loss.detach())


def test_the_entropy_floor_acts_only_below_the_floor():
    assert floor_gradient(0.9) == (0.0, 0.0)
    slope, loss = floor_gradient(1.25)
    assert slope == -1.0
    assert loss == pytest.approx(0.25)


def test_the_entropy_floor_keeps_the_entropy_up():
    options = {**SMALL, "learning_rate": 2e-2, "n_epochs": 4}
    entropy = {}
    for weight in (0.0, 5.0):
        model = RouterPPO(
            "MlpPolicy", toy_vec_env(), entropy_min=1.3, entropy_min_coef=weight, **options
        )
        model.learn(12 * UPDATE)
        entropy[weight] = -model.logger.name_to_value["train/entropy_loss"]
    assert entropy[0.0] < 1.15 < 1.25 < entropy[5.0]


def test_rollout_kl_slows_the_policy_down():
    moved = {}
    for weight in (0.0, 50.0):
        model = RouterPPO("MlpPolicy", toy_vec_env(), kl_coef=weight, learning_rate=3e-3, **SMALL)
        model.learn(4 * UPDATE)
        moved[weight] = model.logger.name_to_value["train/approx_kl"]
    assert moved[50.0] < 0.3 * moved[0.0]


def test_saved_and_loaded_it_learns_on_the_same(tmp_path):
    model = RouterPPO("MlpPolicy", toy_vec_env(), kl_ref_coef=0.2, kl_coef=0.1, **SMALL)
    model.set_reference()
    model.learn(2 * UPDATE)
    model.save(tmp_path / "model.zip")
    loaded = RouterPPO.load(tmp_path / "model.zip", env=toy_vec_env())
    assert loaded.n_gradient_steps == model.n_gradient_steps == 2 * 12
    assert loaded.kl_coef == 0.1
    assert loaded.has_reference
    results = []
    for one in (model, loaded):
        one.set_env(toy_vec_env())
        one.set_random_seed(11)
        results.append(one.learn(UPDATE, reset_num_timesteps=False))
    assert_same(*results)


def test_from_pretrained_takes_a_plain_ppo(tmp_path):
    plain = PPO("MlpPolicy", toy_vec_env(), **SMALL).learn(UPDATE)
    plain.save(tmp_path / "plain.zip")
    model = RouterPPO.from_pretrained(
        tmp_path / "plain.zip", toy_vec_env(), kl_ref_coef=0.3, learning_rate=1e-4
    )
    assert_same(plain, model)
    assert isinstance(model.policy, TemperedMlpPolicy)
    assert (model.n_gradient_steps, model.num_timesteps) == (0, 0)
    assert model.kl_ref_coef == 0.3
    model.set_reference(tmp_path / "plain.zip")
    model.learn(UPDATE)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-4
    assert str(tmp_path / "plain.zip") == model.reference_origin


def test_a_reference_from_every_kind_of_source(tmp_path):
    plain = PPO("MlpPolicy", toy_vec_env(), **SMALL)
    plain.save(tmp_path / "plain.zip")
    model = RouterPPO("MlpPolicy", toy_vec_env(), **{**SMALL, "seed": 4})
    for source in (plain, plain.policy, plain.policy.state_dict(), tmp_path / "plain.zip"):
        model.clear_reference()
        model.set_reference(source)
        for name, value in plain.policy.named_parameters():
            assert th.equal(dict(model.reference_policy.named_parameters())[name], value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda env: RouterPPO("MlpPolicy", env, kl_coef=-0.1), "kl_coef must be .* got -0.1"),
        (lambda env: RouterPPO("MlpPolicy", env, ent_coef=-1.0), "ent_coef must be"),
        (lambda env: RouterPPO("MlpPolicy", env, kl_ref_coef=float("nan")), "kl_ref_coef must be"),
        (
            lambda env: RouterPPO("MlpPolicy", env, entropy_min=2.0, entropy_min_coef=1.0),
            "at most ln N = 1.386 nats",
        ),
        (lambda env: RouterPPO("MlpPolicy", env, kl_ref_coef=0.1, **SMALL).learn(64), "reference"),
        (
            lambda env: RouterPPO("MlpPolicy", env, **SMALL).learn(
                64, KLReferenceDecay(KLConfig())
            ),
            r"call set_reference\(\)",
        ),
        (
            lambda env: RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8).learn(
                64, KLReferenceDecay(KLConfig())
            ),
            "RecurrentPPO has no loss to a reference; use RouterPPO",
        ),
        (lambda env: RouterPPO(TemperedMlpLstmPolicy, env, kl_coef=0.1), "use RecurrentPPO"),
        (lambda env: LinearDecay(0.3, 0.0, 0), "at least 1 gradient step, got 0"),
        (lambda env: KLReferenceDecay(KLConfig(kl_ref_decay_steps=0)), "kl_ref_decay_steps"),
        (lambda env: EntropyWarmup(ExplorationConfig(warmup_steps=0)), "warmup_steps"),
        (lambda env: RouterPPO("MlpPolicy", env).set_reference("none.zip"), "does not exist"),
        (
            lambda env: RouterPPO("MlpPolicy", env).set_schedule("gamma", LinearDecay(1, 0, 5)),
            "no schedule is possible for 'gamma'",
        ),
    ],
)
def test_contradictions_say_what_to_change(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make(toy_vec_env())


class Unasked(BaseCallback):
    """Fails the test when anything is collected."""

    def _on_training_start(self):
        pytest.fail("the training began")

    def _on_step(self):
        return True


@pytest.mark.parametrize("algorithm", [RouterPPO, RouterMaskablePPO])
def test_a_missing_reference_is_said_before_anything_is_collected(algorithm):
    env = toy_vec_env(masked=algorithm is RouterMaskablePPO)
    model = algorithm("MlpPolicy", env, kl_ref_coef=0.1, **SMALL)
    with pytest.raises(InputError, match=r"kl_ref_coef is 0\.1 but .* before learn\(\)"):
        model.learn(UPDATE, callback=Unasked())
    model.kl_ref_coef = 0.0
    model.set_schedule("kl_ref_coef", LinearDecay(0.0, 0.2, 50))
    with pytest.raises(InputError, match=r"kl_ref_coef is 0\.2 but there is no reference"):
        model.learn(UPDATE, callback=Unasked())
    assert model.num_timesteps == 0
    # A weight that has decayed for good asks for nothing.
    model.set_schedule("kl_ref_coef", LinearDecay(0.2, 0.0, 5))
    model.n_gradient_steps = 5
    model.learn(UPDATE)
    assert model.num_timesteps == UPDATE


def test_checkpoints_that_do_not_fit(tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    PPO("MlpPolicy", toy_vec_env(rows=3), **SMALL).save(tmp_path / "three.zip")
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    with pytest.raises(InputError, match="not a complete checkpoint"):
        model.set_reference(tmp_path / "text.zip")
    with pytest.raises(InputError, match="does not fit the policy"):
        model.set_reference(tmp_path / "three.zip")
    with pytest.raises(InputError, match="does not fit the environment"):
        RouterPPO.from_pretrained(tmp_path / "three.zip", toy_vec_env())
    with pytest.raises(InputError, match="did you mean 'kl_coef'"):
        RouterPPO.from_pretrained(tmp_path / "three.zip", toy_vec_env(rows=3), kl_coeff=1.0)
    with pytest.raises(InputError, match=r"takes a Maskable.*; give a checkpoint of MaskablePPO"):
        RouterMaskablePPO.from_pretrained(tmp_path / "three.zip", toy_vec_env(rows=3))


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)

    class Spoil(BaseCallback):
        def _on_rollout_end(self):
            if self.num_timesteps == 2 * UPDATE:
                self.locals["rollout_buffer"].returns[:] = np.nan

        def _on_step(self):
            return True

    model.learn(10 * UPDATE, callback=Spoil())
    assert model.non_finite
    assert model.num_timesteps == 2 * UPDATE
    assert model.n_gradient_steps == 12
    assert all(bool(one.isfinite().all()) for one in model.policy.parameters())


def test_advantages_of_each_environment_are_normalised_alone():
    def vec_env():
        return VecMonitor(
            DummyVecEnv([RowsEnv, lambda: RowsEnv(reward_scale=1000.0)])  # as loads that differ
        )

    model = RouterPPO("MlpPolicy", vec_env(), **SMALL, normalize_per_env=True)
    seen = []
    original = model._policy_loss

    def noted(batch, *rest):
        seen.append(batch.advantages)
        return original(batch, *rest)

    model._policy_loss = noted
    model.learn(UPDATE)
    advantages = model.rollout_buffer.advantages.reshape(2, 32)  # each environment's in a row
    np.testing.assert_allclose(advantages.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(advantages.std(axis=1), 1, atol=1e-5)
    one_epoch = th.cat(seen[:4]).numpy()
    np.testing.assert_allclose(np.sort(one_epoch), np.sort(advantages.ravel()))
    usual = RouterPPO("MlpPolicy", vec_env(), **SMALL).learn(UPDATE)
    stock = PPO("MlpPolicy", vec_env(), **SMALL).learn(UPDATE)
    assert_same(stock, usual)
    assert not th.equal(next(iter(weights(model).values())), next(iter(weights(usual).values())))
