import numpy as np
import pytest
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from llmroute_gym.config import TemperatureConfig
from llmroute_gym.envs.llmroute_env import LLMRouteEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    NormalizedRows,
    ObservationStatistics,
    RecentLatencies,
    RolloutStatistics,
    RouterMaskablePPO,
    RouterMonitor,
    RouterPPO,
    TemperatureControl,
    TemperedMlpLstmPolicy,
    fill_statistics,
)
from llmroute_gym.sb3.callbacks.temperature_control import PRESSURE_WEIGHT
from llmroute_gym.sb3.recent_vector import RememberingVectorEnv
from llmroute_gym.sb3.row_normalizer import normalizers
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.sources import TraceWorkload
from tests.sb3.toy import SMALL, toy_vec_env

UPDATE = 64
TOY_CONTROL = TemperatureConfig(
    base_temperature=1.5,
    max_temperature=3.0,
    qps_sensitivity=0.5,
    latency_sensitivity=0.0,
    balance_sensitivity=20.0,
    target_qps=1.0,
)


def routing_env(n=2, **settings):
    settings = {"engine": "reference", "requests_per_episode": 40, "replicas": 3, **settings}
    return VecMonitor(DummyVecEnv([lambda: RecentLatencies(LLMRouteEnv(**settings))] * n))


class FirstRatios(BaseCallback):
    """The largest |ratio - 1| of each update's first minibatch, and the temperatures."""

    def __init__(self):
        super().__init__()
        self.ratios, self.temperatures = [], []

    def _on_training_start(self):
        original = self.model.policy.evaluate_actions
        self._fresh = False

        def spy(*args, **kwargs):
            result = original(*args, **kwargs)
            if self._fresh:
                self._fresh = False
                self._compare(args[0], result[1])
            return result

        self.model.policy.evaluate_actions = spy

    def _compare(self, observations, log_prob):
        buffer = self.model.rollout_buffer
        stored = th.as_tensor(buffer.observations).reshape(len(buffer.observations), -1)
        flat = observations.reshape(len(observations), -1)
        rows = [int((stored == one).all(dim=1).nonzero()[0, 0]) for one in flat]
        old = th.as_tensor(buffer.log_probs).flatten()[rows]
        self.ratios.append(float((th.exp(log_prob.detach() - old) - 1).abs().max()))

    def _on_rollout_end(self):
        self._fresh = True
        self.temperatures.append(float(self.model.policy.temperature))

    def _on_step(self):
        return True


@pytest.mark.parametrize("algorithm", [RouterPPO, RouterMaskablePPO])
def test_the_ratio_starts_at_one_while_temperature_and_statistics_change(algorithm):
    options = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = algorithm(
        "MlpPolicy",
        toy_vec_env(masked=True) if "Mask" in algorithm.__name__ else toy_vec_env(),
        **options,
    )
    spy = FirstRatios()
    model.learn(6 * UPDATE, [TemperatureControl(TOY_CONTROL), ObservationStatistics(), spy])
    assert len(spy.ratios) == 6
    assert max(spy.ratios) < 1e-6
    assert len(set(spy.temperatures)) >= 5
    assert float(normalizers(model.policy)[0].count) == 5 * UPDATE * 4


def test_the_temperature_follows_the_formula():
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    control = TemperatureControl(TOY_CONTROL)
    temperatures, seen = [], []

    class Note(BaseCallback):
        def _on_rollout_start(self):
            temperatures.append(float(self.model.policy.temperature))

        def _on_rollout_end(self):
            seen.append((control.statistics.qps, control.statistics.balance))

        def _on_step(self):
            return True

    model.learn(4 * UPDATE, [control, Note()])
    # The toy's clock ticks twice a second.
    assert [qps for qps, _ in seen] == [2.0] * 4
    expected, pressure = [1.5], None
    for qps, balance in seen[:-1]:
        excess = (qps - 1.0) / 1.0
        pressure = excess if pressure is None else pressure + PRESSURE_WEIGHT * (excess - pressure)
        expected.append(np.clip(1.5 - 0.5 * pressure + 20.0 * (1 - balance), 0.8, 3.0))
    assert temperatures == pytest.approx(expected, rel=1e-6)


def test_pressure_sharpens_and_calm_explores_on_the_routing_env():
    final = {}
    for target in (0.2, 50.0):
        config = TemperatureConfig(
            qps_sensitivity=0.3, latency_sensitivity=0.3, target_qps=target, target_latency=target
        )
        model = RouterPPO("MlpPolicy", routing_env(), **SMALL)
        control = TemperatureControl(config)
        model.learn(3 * UPDATE, control)
        assert 1.5 < control.statistics.qps < 4.0
        assert 2.0 < control.statistics.latency_s < 30.0
        final[target] = control.temperature
    assert final[0.2] == 0.8
    assert 1.2 < final[50.0] < 1.4


@pytest.mark.parametrize("vec_normalize", [False, True])
def test_rollout_statistics_against_the_environments_own_numbers(vec_normalize):
    env = routing_env(n=1, requests_per_episode=32)
    env = VecNormalize(env) if vec_normalize else env
    statistics = RolloutStatistics()
    arrivals = []

    class Note(BaseCallback):
        def _on_step(self):
            statistics.collect(self.model, self.locals)
            statistics.collect(self.model, self.locals)
            arrivals.append(self.locals["infos"][0]["time_s"])
            return True

        def _on_training_start(self):
            statistics.attach(self.model)

        def _on_rollout_start(self):
            statistics.start(self.model)

    PPO("MlpPolicy", env, **SMALL).learn(32, Note())
    # The first decision's time is in no info, and the last info's is the end of the drain.
    assert statistics.qps == pytest.approx(30 / (arrivals[30] - arrivals[0]))
    assert statistics.action_counts.sum() == 32
    np.testing.assert_allclose(statistics.speeds, 1.0)
    assert set(statistics.reward_terms) == {
        "reward/latency",
        "reward/tail",
        "reward/throughput",
        "reward/imbalance",
    }


def test_what_the_environment_does_not_tell_is_an_error_or_left_out():
    config = TemperatureConfig(latency_sensitivity=0.2, target_latency=3.0, target_qps=1.0)
    model = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    with pytest.raises(InputError, match=r"temperature\.latency_sensitivity is 0\.2, but"):
        model.learn(UPDATE, TemperatureControl(config))
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
    with pytest.raises(InputError, match="ActorCriticPolicy has no temperature; use 'MlpPolicy'"):
        model.learn(64, TemperatureControl(config))
    model.learn(64, RouterMonitor())
    assert model.num_timesteps == 64


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_temperature": 2.5}, "min_temperature must be <= temperature.max_temperature"),
        ({"qps_sensitivity": -0.1}, "qps_sensitivity must be >= 0"),
        ({"target_qps": None}, "target_qps must be set where qps_sensitivity"),
        ({"target_latency": None}, "target_latency must be set"),
    ],
)
def test_bad_settings_of_the_temperature(changes, sentence):
    settings = {"target_qps": 2.0, "target_latency": 6.0, **changes}
    with pytest.raises(InputError, match=sentence):
        TemperatureControl(TemperatureConfig(**settings))


def test_filled_statistics_stand_still_while_a_reference_is_in_use():
    options = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = RouterPPO("MlpPolicy", toy_vec_env(), **options)
    fill_statistics(model, 10, seed=0)
    filled = float(normalizers(model.policy)[0].count)
    model.set_reference()
    model.learn(3 * UPDATE, ObservationStatistics())
    assert float(normalizers(model.policy)[0].count) == filled > 0


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_statistics_move_or_stand_still_as_they_are_told(reference, freeze):
    options = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = RouterPPO("MlpPolicy", toy_vec_env(), **options)
    fill_statistics(model, 10, seed=0)
    filled = float(normalizers(model.policy)[0].count)
    if reference:
        model.set_reference()
    model.learn(3 * UPDATE, ObservationStatistics(freeze))
    assert (float(normalizers(model.policy)[0].count) == filled) == freeze


def test_empty_statistics_are_filled_even_with_a_reference():
    options = {**SMALL, "policy_kwargs": {"features_extractor_class": NormalizedRows}}
    model = RouterPPO("MlpPolicy", toy_vec_env(), **options)
    model.set_reference()
    model.learn(UPDATE, ObservationStatistics())
    assert float(normalizers(model.policy)[0].count) == 0  # the rollout is added to the next one
    model.learn(2 * UPDATE, ObservationStatistics(), reset_num_timesteps=False)
    after_two = float(normalizers(model.policy)[0].count)
    assert after_two > 0
    model.learn(UPDATE, ObservationStatistics(), reset_num_timesteps=False)
    assert float(normalizers(model.policy)[0].count) > after_two


def test_statistics_need_a_policy_that_has_some():
    with pytest.raises(InputError, match="no observation statistics"):
        RouterPPO("MlpPolicy", toy_vec_env(), **SMALL).learn(UPDATE, ObservationStatistics())


class Dumps(BaseCallback):
    """Collects every key that was written, with its values."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def _on_training_start(self):
        logger = self.model.logger
        original = logger.dump

        def dump(step=0):
            for key, value in logger.name_to_value.items():
                self.values.setdefault(key, []).append(value)
            original(step)

        logger.dump = dump

    def _on_step(self):
        return True


@pytest.mark.parametrize("algorithm", [PPO, RouterPPO])
def test_the_monitor_logs_all_curves_of_every_update(algorithm):
    model = algorithm("MlpPolicy", routing_env(), **SMALL)
    if algorithm is RouterPPO:
        model.kl_ref_coef = 0.1
        model.set_reference()
    dumps = Dumps()
    model.learn(4 * UPDATE, [dumps, RouterMonitor()])
    every = {
        "advantage/mean", "advantage/std", "replica/share_00", "replica/share_02",
        "replica/entropy", "reward/latency", "reward/imbalance", "load/qps", "load/e2e_s",
        "latency/p50_s", "latency/p95_s", "latency/p99_s", "train/value_loss", "train/entropy",
        "train/approx_kl", "train/explained_variance", "train/clip_fraction", "coef/entropy",
    }  # fmt: skip
    if algorithm is RouterPPO:
        every |= {"train/kl_ref", "temperature/value", "coef/kl", "coef/kl_ref", "train/early_stop"}
    assert {key for key in every if len(dumps.values.get(key, [])) < 4} == set()
    assert len(dumps.values["train/value_loss_ratio"]) == 3
    assert len(dumps.values["replica/swing"]) == 3
    assert max(len(key) for key in dumps.values) <= 36
    shares = np.array([dumps.values[f"replica/share_0{i}"] for i in range(3)])
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)
    swings = 0.5 * np.abs(np.diff(shares, axis=1)).sum(axis=0)
    np.testing.assert_allclose(dumps.values["replica/swing"], swings)
    # Only one update is trained on values that are dumped together: the last after the training.
    assert dumps.values["train/n_updates"] == [3, 6, 9, 12]


def test_recent_latencies_are_those_of_all_finished_requests():
    env = RecentLatencies(LLMRouteEnv(engine="reference", requests_per_episode=60, replicas=2))
    env.reset(seed=1)
    first, done = None, False
    while not done:
        *_, done, _, _ = env.step(0)
    first = np.sort(env.unwrapped.outcome().e2e_s)
    np.testing.assert_array_equal(np.sort(env.recent_e2e_s()), first)
    env.reset()
    for _ in range(50):
        env.step(1)
    second = env.unwrapped.outcome().e2e_s
    both = np.concatenate([first, second[np.isfinite(second)]])
    assert len(both) > 60
    np.testing.assert_array_equal(np.sort(env.recent_e2e_s()), np.sort(both))


def rejecting(n_requests: int) -> dict:
    """Settings of an environment that rejects every second request."""
    prompts = np.where(np.arange(n_requests) % 2, 5000, 50)
    workload = Workload(np.arange(n_requests, dtype=float), prompts, prompts // 25)
    return {
        "cluster": Cluster.from_profile("a100-internlm-20b", 2, num_blocks=99, oversize="reject"),
        "workload": TraceWorkload(workload, 1.0),
        "requests_per_episode": n_requests,
    }


def test_rejected_requests_are_among_the_recent_latencies():
    scalar = RecentLatencies(LLMRouteEnv(**rejecting(20)), size=10)
    vector = RememberingVectorEnv(num_envs=2, **rejecting(20))
    scalar.reset(seed=0)
    vector.reset(seed=0)
    for step in range(1, 20):
        scalar.step(0)
        vector.step(np.zeros(2, dtype=int))
        assert np.isinf(vector.recent_e2e_s()).sum() == 2 * (step // 2)
    # The last to leave: half of them rejected, none of them early ones that are kept for ever.
    recent = scalar.recent_e2e_s()
    assert len(recent) == 10
    assert np.isinf(recent).sum() == 5
    for env in (scalar, vector):
        env.step(0 if env is scalar else np.zeros(2, dtype=int))
    assert np.isinf(scalar.recent_e2e_s()).sum() == 5
    assert np.isinf(vector.recent_e2e_s()).sum() == 20
    assert len(vector.recent_e2e_s()) == 40


def test_percentiles_of_the_monitor_count_rejected_requests():
    env = VecMonitor(DummyVecEnv([lambda: RecentLatencies(LLMRouteEnv(**rejecting(40)))]))
    dumps = Dumps()
    PPO("MlpPolicy", env, **SMALL).learn(2 * UPDATE, [dumps, RouterMonitor()])
    assert dumps.values["latency/p95_s"][-1] == np.inf
    assert dumps.values["latency/p99_s"][-1] == np.inf


def test_temperature_control_runs_with_a_recurrent_policy():
    options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}
    model = RecurrentPPO(
        TemperedMlpLstmPolicy, toy_vec_env(), policy_kwargs={"lstm_hidden_size": 8}, **options
    )
    model.learn(96, [TemperatureControl(TOY_CONTROL), RouterMonitor()])
    assert float(model.policy.temperature) != 1.0
