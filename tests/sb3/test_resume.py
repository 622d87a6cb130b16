import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from llmroute_gym.envs.llmroute_env import LLMRouteEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    Replayable,
    RouterPPO,
    SaveTrainingState,
    load_training_state,
    remaining_timesteps,
    save_training_state,
)
from tests.sb3.toy import SMALL, RowsEnv, toy_vec_env, weights
from tests.sb3.training_run import STATE_FILE, TOTAL, make_env, resume, start


class Killed(BaseException):
    """Nothing in the training catches it, as nothing survives a kill."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return start(tmp_path_factory.mktemp("uninterrupted"))


class InRollout(BaseCallback):
    """Kills in the middle of an episode, a few steps into a rollout."""

    def _on_step(self):
        if self.num_timesteps == 2 * 72 + 10:
            raise Killed
        return True


class InUpdate(BaseCallback):
    """Kills between two gradient steps."""

    def _on_training_start(self):
        def hook(*_):
            if self.model.n_gradient_steps == 15:
                raise Killed

        self.model.policy.optimizer.register_step_post_hook(hook)

    def _on_step(self):
        return True


class WhileSaving(BaseCallback):
    """Kills when the third state is written but not yet in its place."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.monkeypatch, self.written = monkeypatch, 0

    def _on_training_start(self):
        original = Path.replace

        def replace(path, target):
            self.written += path.suffix == ".zip"
            if self.written == 3:
                raise Killed
            return original(path, target)

        self.monkeypatch.setattr(Path, "replace", replace)

    def _on_step(self):
        return True


@pytest.mark.parametrize("moment", ["rollout", "update", "saving"])
def test_killed_and_resumed_it_reaches_the_same_weights(
    moment, uninterrupted, tmp_path, monkeypatch
):
    kill = {"rollout": InRollout, "update": InUpdate}.get(moment)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        start(tmp_path, kill() if kill else WhileSaving(patched))
    # What another process would find.
    th.manual_seed(99)
    resumed = resume(tmp_path)
    assert_same(resumed, uninterrupted)


def assert_same(resumed, uninterrupted):
    assert resumed.num_timesteps == uninterrupted.num_timesteps == TOTAL
    assert resumed.n_gradient_steps == uninterrupted.n_gradient_steps
    expected = uninterrupted.policy.state_dict()
    for name, value in resumed.policy.state_dict().items():
        assert th.equal(value, expected[name]), name
    moments = resumed.policy.optimizer.state_dict()["state"]
    for index, state in uninterrupted.policy.optimizer.state_dict()["state"].items():
        assert th.equal(moments[index]["exp_avg_sq"], state["exp_avg_sq"])
    assert resumed.callback_state == uninterrupted.callback_state
    first, second = (
        [one["r"] for one in model.ep_info_buffer] for model in (resumed, uninterrupted)
    )
    assert first == second


@pytest.mark.cli
def test_a_process_killed_at_a_random_moment(uninterrupted, tmp_path):
    script = Path(__file__).with_name("training_run.py")
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.sb3.{script.stem}", str(tmp_path)],
        cwd=script.parents[2],
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(float(np.random.default_rng().random()))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_same(resume(tmp_path), uninterrupted)


@pytest.mark.parametrize("algorithm", [PPO, RecurrentPPO])
def test_stock_algorithms_resume_too(algorithm, tmp_path):
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    lstm = {"lstm_hidden_size": 8} if algorithm is RecurrentPPO else {}
    options = {**SMALL, "n_epochs": 1, "policy_kwargs": {"net_arch": [8], **lstm}}

    def env():
        return DummyVecEnv([lambda: Replayable(Monitor(RowsEnv()))] * 2)

    class Kill(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 150:
                raise Killed
            return True

    whole = algorithm(policy, env(), **options).learn(256)
    with pytest.raises(Killed):
        algorithm(policy, env(), **options).learn(
            256, [SaveTrainingState(tmp_path / "state.zip"), Kill()]
        )
    resumed = load_training_state(tmp_path / "state.zip", env(), algorithm, device="cpu")
    assert (resumed.num_timesteps, remaining_timesteps(resumed)) == (128, 128)
    resumed.learn(remaining_timesteps(resumed), reset_num_timesteps=False)
    for name, value in weights(whole).items():
        assert th.equal(value, weights(resumed)[name]), name


def test_an_episode_is_repeated_exactly_and_goes_on_alike():
    env, other = (
        Replayable(LLMRouteEnv(engine="reference", replicas=2, requests_per_episode=40))
        for _ in range(2)
    )
    env.reset(seed=3)
    for step in range(47):
        if env.step(step % 2)[2]:
            env.unwrapped.set_qps(4.0)
            env.reset()
    env.unwrapped.set_qps(1.0)
    other.set_state(env.get_state())
    for step in range(60):
        first, second = env.step(step % 2), other.step(step % 2)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:3] == second[1:3]
        if first[2]:
            np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_another_environment_is_noticed():
    env, other = (
        Replayable(LLMRouteEnv(engine="reference", replicas=2, requests_per_episode=n))
        for n in (40, 41)
    )
    env.reset(seed=3)
    env.step(0)
    with pytest.raises(InputError, match="settings of the run"):
        Replayable(LLMRouteEnv("a30-qwen2-7b", engine="reference", replicas=2)).set_state(
            env.get_state()
        )
    with pytest.raises(gym.error.ResetNeeded):
        other.get_state()


def test_what_cannot_be_resumed_says_why(tmp_path, uninterrupted):
    plain = RouterPPO("MlpPolicy", toy_vec_env(), **SMALL)
    with pytest.raises(InputError, match="wrap each of them in"):
        plain.learn(64, SaveTrainingState(tmp_path / "state.zip"))
    assert not (tmp_path / "state.zip").exists()
    stacked = VecFrameStack(DummyVecEnv([lambda: Replayable(RowsEnv())]), 2)
    with pytest.raises(InputError, match="VecFrameStack is not known to have no state"):
        PPO("MlpPolicy", stacked, **SMALL).learn(32, SaveTrainingState(tmp_path / "state.zip"))
    with pytest.raises(InputError, match="does not exist"):
        load_training_state(tmp_path / "none.zip", make_env(), RouterPPO)
    uninterrupted.save(tmp_path / "model.zip")
    with pytest.raises(InputError, match="no complete training state"):
        load_training_state(tmp_path / "model.zip", make_env(), RouterPPO)
    with pytest.raises(InputError, match="every must be >= 1"):
        SaveTrainingState(tmp_path / "state.zip", every=0)


def test_a_training_state_is_a_checkpoint_too(tmp_path, uninterrupted):
    save_training_state(tmp_path / "state.zip", uninterrupted)
    loaded = RouterPPO.load(tmp_path / "state.zip")
    for name, value in weights(uninterrupted).items():
        assert th.equal(value, weights(loaded)[name])
