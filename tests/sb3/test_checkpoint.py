"""Saved models: read without running what is in them, old ones and other programs' too."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import (
    Checkpoint,
    LinearDecay,
    NormalizedRows,
    ReplicaSetPolicy,
    RouterMaskablePPO,
    RouterPPO,
    RouterVecEnv,
)
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sb3.pretrained import read_networks, read_weights
from llmroute_gym.sb3.stored import StoredModel
from tests.sb3.hostile import Harm, hostile, replaced
from tests.sb3.toy import SMALL, RowsEnv, toy_vec_env, weights

VERSION_1 = Path(__file__).parents[1] / "data" / "model_v1.zip"
PPO_SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "device": "cpu"}


def route_env(n: int = 2) -> VecMonitor:
    return VecMonitor(RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=n)))


def same(first: Any, second: Any) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(th.equal(left[name], right[name]) for name in left)


@pytest.fixture(params=["version 1", "ours", "replica set", "mlp", "masked"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved model of each kind that is read without being trusted."""
    if request.param == "version 1":
        return VERSION_1
    path, env = tmp_path / "saved.zip", route_env()
    extractor = {"features_extractor_class": NormalizedRows}
    if request.param == "ours":
        model = RouterPPO("MlpPolicy", env, policy_kwargs=extractor, **PPO_SETTINGS)
        model.set_reference()
        Checkpoint(model, Layout(4, ObservationConfig(), ModelConfig("mlp"))).save(path)
    elif request.param == "replica set":
        PPO(ReplicaSetPolicy, env, **PPO_SETTINGS).save(path)
    elif request.param == "mlp":
        options = {**extractor, "net_arch": {"pi": [8], "vf": [4]}, "activation_fn": th.nn.ReLU}
        PPO("MlpPolicy", env, policy_kwargs=options, **PPO_SETTINGS).save(path)
    else:
        MaskablePPO("MlpPolicy", env, **PPO_SETTINGS).save(path)
    return path


def test_what_is_in_a_file_is_never_run(saved: Path, tmp_path: Path) -> None:
    usual = (PPO, MaskablePPO)["masked" in str(StoredModel.read(saved).pickled["policy_class"])]
    usual = RouterPPO if saved == VERSION_1 else usual
    before = Checkpoint.load(saved)
    copy, harm = hostile(saved, tmp_path / "hostile.zip", tmp_path / "harm"), tmp_path / "harm"
    with pytest.raises(Exception):  # noqa: B017, PT011  (SB3 ends anyhow)
        usual.load(copy, device="cpu")
    harm.rmdir()  # Stable-Baselines3 has run it

    checkpoint = Checkpoint.load(copy)
    masked = isinstance(checkpoint.model, MaskablePPO)
    algorithm = RouterMaskablePPO if masked else RouterPPO
    Layout.read(copy)
    read_weights(copy)
    read_networks(copy, masked=masked)
    started = algorithm.from_pretrained(copy, route_env(), device="cpu", batch_size=8)
    started.set_reference(copy)
    assert not harm.exists()
    assert same(checkpoint.model.policy, before.model.policy)
    for name, value in weights(before.model).items():
        assert th.equal(weights(started)[name], value)


def test_weights_that_are_more_than_tensors_are_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    for entry in ("policy.pth", "policy.optimizer.pth", "reference_policy.pth"):

        def content(name: str, held: bytes, entry: str = entry) -> bytes:
            return pickle.dumps(Harm(harm), 2) if name == entry else held

        copy = replaced(VERSION_1, tmp_path / "hostile.zip", content)
        for read in (Checkpoint.load, read_weights):
            with pytest.raises(InputError, match="is not a complete checkpoint"):
                read(copy)
    assert not harm.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"policy": "cnn"}},
        {"model": {"activation": "none"}},
        {"model": {"actor_sizes": [0]}},
        {"model": 3},
        {"policy_class": ["MlpPolicy"], "features_extractor": None},
        {"algorithm": "DQN"},
        {"replicas": "many"},
        {"columns": 7},
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    def content(name: str, held: bytes) -> bytes:
        return json.dumps({**json.loads(held), **change}).encode() if "layout" in name else held

    copy = replaced(VERSION_1, tmp_path / "copy.zip", content)
    with pytest.raises(InputError, match="is not a complete checkpoint"):
        Checkpoint.load(copy)
    if "model" in change or "policy_class" in change:
        with pytest.raises(InputError, match="is not a complete checkpoint"):
            RouterPPO.from_pretrained(copy, route_env(), batch_size=8)


def test_an_old_checkpoint_is_what_it_was() -> None:
    before = RouterPPO.load(VERSION_1, device="cpu")  # by unpickling
    after = Checkpoint.load(VERSION_1).model
    assert isinstance(after, RouterPPO)
    assert same(before.policy, after.policy)
    assert same(before.reference_policy, after.reference_policy)
    assert after.schedules == before.schedules
    assert after.schedules["kl_ref_coef"] == LinearDecay(0.3, 0.0, 5000)
    for name in (
        *("n_steps", "batch_size", "gamma", "learning_rate", "kl_coef", "kl_ref_coef", "ent_coef"),
        *("n_gradient_steps", "num_timesteps", "reference_origin", "callback_state", "seed"),
        *("observation_space", "action_space", "policy_class", "policy_kwargs"),
    ):
        assert getattr(after, name) == getattr(before, name), name
    assert after.clip_range(1) == before.clip_range(1) == 0.15
    moments = (one.policy.optimizer.state_dict()["state"] for one in (before, after))
    for old, new in zip(*(state.values() for state in moments), strict=True):
        assert all(th.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("policy", ["MlpPolicy", ReplicaSetPolicy])
def test_a_training_goes_on_as_from_an_unpickled_file(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.zip"
    PPO(policy, toy_vec_env(), clip_range_vf=0.3, **SMALL).learn(64).save(file)
    started = []
    for trusted in (False, True):
        if trusted:  # as if the words said nothing
            monkeypatch.setattr(StoredModel, "networks", None)
        model = RouterPPO.from_pretrained(
            file, toy_vec_env(), device="cpu", trusted=trusted, ent_coef=0.01
        )
        started.append(weights(model.learn(128)))
        assert model.clip_range_vf(1) == 0.3  # type: ignore[operator,misc]
    first, second = started
    assert first.keys() == second.keys()
    assert all(th.equal(first[name], second[name]) for name in first)


class OwnPolicy(ReplicaSetPolicy):
    """A policy that nobody else knows."""


@pytest.mark.parametrize("with_layout", [False, True])
def test_a_policy_of_an_unknown_kind_must_be_trusted(tmp_path: Path, with_layout: bool) -> None:
    file = tmp_path / "model.zip"
    model = PPO(OwnPolicy, route_env(), **PPO_SETTINGS)
    if with_layout:
        Checkpoint(model, Layout(4, ObservationConfig(), ModelConfig())).save(file)
    else:
        model.save(file)
    words = r"policy pickled, .* add trusted=true \(to a training: warm_start\.trusted=true\)"
    for read in (
        lambda trusted: Checkpoint.load(file, trusted=trusted).model,
        lambda trusted: RouterPPO.from_pretrained(
            file, route_env(), trusted=trusted, device="cpu", batch_size=8
        ),
    ):
        with pytest.raises(InputError, match=words):
            read(False)
        assert same(read(True).policy, model.policy)
    with pytest.raises(InputError, match=words):
        read_networks(file, masked=False)
    assert read_networks(file, masked=False, trusted=True) == ModelConfig()


def test_a_setting_that_is_a_function_is_replaced_or_trusted(tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    rate = {"learning_rate": lambda left: 1e-3 * (1 + left)}
    PPO("MlpPolicy", toy_vec_env(), **SMALL, **rate).learn(64).save(file)
    with pytest.raises(InputError, match="has learning_rate pickled"):
        RouterPPO.from_pretrained(file, toy_vec_env())
    model = RouterPPO.from_pretrained(file, toy_vec_env(), learning_rate=0.5)
    assert model.learning_rate == 0.5
    trusted = RouterPPO.from_pretrained(file, toy_vec_env(), trusted=True)
    assert trusted.lr_schedule(1.0) == 2e-3

    PPO("MlpPolicy", route_env(), **PPO_SETTINGS, **rate).learn(16).save(file)
    assert Checkpoint.load(file).model.learning_rate == pytest.approx(1e-3)  # the last


def test_another_programs_model_is_taken_to_read_the_observation_of_the_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PPO("MlpPolicy", route_env(), **PPO_SETTINGS).save(tmp_path / "plain.zip")
    told = ObservationConfig(information="router")
    with caplog.at_level("INFO"):
        layout = Checkpoint.load(tmp_path / "plain.zip", observation=told).layout
    assert layout == Layout(4, told, ModelConfig(policy="mlp"))
    assert "does not say what its observations told; taken to be information=rou" in caplog.text

    PPO("MlpPolicy", RowsEnv(), **PPO_SETTINGS).save(tmp_path / "other.zip")
    with pytest.raises(InputError, match=r"by observations of shape \(4, 3\), LLMRoute-v0 has"):
        Checkpoint.load(tmp_path / "other.zip")


def test_a_checkpoint_of_before_there_were_views_saw_the_caches_as_they_are() -> None:
    layout = Checkpoint.load(VERSION_1).layout
    assert (layout.observation.prefix_view, layout.observation.events_lag_s) == ("events", 0.0)
    with pytest.raises(InputError, match=r"trained with observation\.prefix_view=events, got tree"):
        layout.check_fits(layout.replicas, replace(layout.observation, prefix_view="tree"))


def test_a_loaded_checkpoint_learns_on(tmp_path: Path) -> None:
    model = Checkpoint.load(VERSION_1).model
    model.set_env(route_env())
    before = weights(model)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    assert any(not th.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(InputError, match="not a complete checkpoint"):
        Checkpoint.load(tmp_path)
