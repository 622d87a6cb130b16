import json

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.sb3 import HealthMonitor, RouterPPO
from llmroute_gym.sb3.callbacks.findings import ADVICE
from tests.sb3.toy import SMALL, toy_vec_env

UPDATE = 64
QUICK = {**SMALL, "n_epochs": 1, "batch_size": 32}
TIGHT = {**SMALL, "n_epochs": 2}


def findings(path):
    return [one["name"] for one in json.loads(path.read_text())]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "findings.json"


@pytest.mark.parametrize("algorithm", [PPO, RouterPPO])
def test_a_healthy_run_has_no_findings(algorithm, path):
    model = algorithm("MlpPolicy", toy_vec_env(), target_kl=0.05, ent_coef=0.01, **SMALL)
    model.learn(30 * UPDATE, HealthMonitor(path))
    assert findings(path) == []


def test_rewards_that_explode_make_a_value_loss_spike(path):
    model = PPO("MlpPolicy", toy_vec_env(), **QUICK)

    class Explode(BaseCallback):
        def _on_rollout_start(self):
            if self.num_timesteps == 8 * UPDATE:
                self.training_env.set_attr("reward_scale", 100.0)

        def _on_step(self):
            return True

    monitor = HealthMonitor(path)
    model.learn(10 * UPDATE, [Explode(), monitor])
    assert findings(path) == []
    model.learn(2 * UPDATE, [Explode(), monitor], reset_num_timesteps=False)
    assert findings(path) == ["value_loss_spike"]
    assert "critic's hidden size" in json.loads(path.read_text())[0]["advice"]


def with_fixed_logits(logits):
    """A policy that prefers replicas as told, whatever it sees and learns."""
    model = RouterPPO("MlpPolicy", toy_vec_env(), **{**QUICK, "learning_rate": 0.0})
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.as_tensor(logits))
    return model


SKEWED = np.log([0.7, 0.1, 0.1, 0.1])


def test_a_favourite_replica_is_a_policy_skew(path):
    monitor = HealthMonitor(path)
    model = with_fixed_logits(SKEWED).learn(19 * UPDATE, monitor)
    assert findings(path) == []
    model.learn(UPDATE, monitor, reset_num_timesteps=False)
    assert findings(path) == ["policy_skew"]
    found = json.loads(path.read_text())[0]
    assert "of the requests over 20 updates, its fair share by speed is 25.0%" in found["found"]
    assert "load_balance_penalty" in found["advice"]


def test_a_fair_share_is_one_by_speed(path):
    with_fixed_logits(SKEWED).learn(22 * UPDATE, HealthMonitor(path, speeds=[5, 1, 1, 1]))
    assert findings(path) == []


def test_a_policy_that_stops_exploring_is_an_entropy_collapse(path):
    model = with_fixed_logits([8.0, 0.0, 0.0, 0.0])
    model.learn(3 * UPDATE, HealthMonitor(path))
    assert findings(path) == ["entropy_collapse"]


@pytest.mark.parametrize("algorithm", [PPO, RouterPPO])
def test_a_tight_target_kl_is_overrun(algorithm, path):
    model = algorithm("MlpPolicy", toy_vec_env(), target_kl=1e-6, ent_coef=0.01, **TIGHT)
    model.learn(22 * UPDATE, HealthMonitor(path))
    assert findings(path) == ["kl_overrun"]
    assert "0.025" in json.loads(path.read_text())[0]["advice"]


class Poison(BaseCallback):
    """Makes the returns of one rollout NaN."""

    def _on_rollout_end(self):
        if self.num_timesteps == 3 * UPDATE:
            self.locals["rollout_buffer"].returns[:] = np.nan

    def _on_step(self):
        return True


def test_a_loss_that_is_not_finite_stops_the_training(path, tmp_path):
    checkpoint = tmp_path / "last_good.zip"
    model = RouterPPO("MlpPolicy", toy_vec_env(), **QUICK)
    model.learn(10 * UPDATE, [Poison(), HealthMonitor(path, checkpoint)])
    assert model.num_timesteps == 3 * UPDATE
    assert findings(path) == ["non_finite"]
    good = RouterPPO.load(checkpoint)
    assert all(bool(one.isfinite().all()) for one in good.policy.parameters())
    assert good.n_gradient_steps == 4


class SpoilWeights(BaseCallback):
    """What a stock PPO does when one gradient was NaN: the weights are, after the update."""

    def _on_rollout_start(self):
        if self.num_timesteps == 3 * UPDATE:
            self.good = self.before
            with th.no_grad():
                self.model.policy.action_net.weight.fill_(float("nan"))
        self.before = {k: v.clone() for k, v in self.model.policy.state_dict().items()}

    def _on_step(self):
        return True


def test_weights_that_are_not_finite_are_set_back_with_a_stock_ppo(path, tmp_path):
    model = PPO("MlpPolicy", toy_vec_env(), **QUICK)
    spoil = SpoilWeights()
    model.learn(10 * UPDATE, [spoil, HealthMonitor(path, tmp_path / "last_good.zip")])
    assert model.num_timesteps == 3 * UPDATE + 2
    assert findings(path) == ["non_finite"]
    for name, value in PPO.load(tmp_path / "last_good.zip").policy.state_dict().items():
        assert th.equal(value, spoil.good[name])


def test_a_reward_that_is_not_finite_stops_the_training(path):
    model = PPO("MlpPolicy", toy_vec_env(reward_scale=float("inf")), **QUICK)
    model.learn(10 * UPDATE, HealthMonitor(path))
    assert model.num_timesteps == 2
    assert findings(path) == ["non_finite"]
    assert "rewards" in json.loads(path.read_text())[0]["found"]


def test_a_finding_is_told_once_while_it_lasts_and_on_the_console(path, caplog):
    model = RouterPPO("MlpPolicy", toy_vec_env(), target_kl=1e-6, ent_coef=0.01, **TIGHT)
    model.learn(26 * UPDATE, HealthMonitor(path))
    assert findings(path) == ["kl_overrun"]
    assert [r.message.split()[0] for r in caplog.records] == ["kl_overrun"]
    assert model.logger.name_to_value["health/kl_overrun"] == 1
    # What is looked for once, at the end, is no curve.
    assert "health/argmax_differs" not in model.logger.name_to_value
    assert set(ADVICE) == {
        "value_loss_spike", "policy_skew", "kl_overrun", "entropy_collapse", "non_finite",
        "argmax_differs", "worse_than_round_robin", "mlp_beyond_load",
    }  # fmt: skip
