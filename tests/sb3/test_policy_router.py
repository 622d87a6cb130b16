"""Models of Stable-Baselines3 as routers, as they are in memory and as they were saved."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from llmroute_gym import Cluster, InputError, Workload, simulate
from llmroute_gym.config import EvaluateConfig, ModelConfig, ObservationConfig
from llmroute_gym.envs.observation import COLUMNS, scale_rows
from llmroute_gym.evaluate import evaluate
from llmroute_gym.sb3 import Checkpoint, PolicyRouter, ReplicaSetPolicy, RouterPPO, RouterVecEnv
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sim import ReferenceRun, Signal
from tests.sb3.toy import toy_vec_env

FOUR = Cluster.from_profile("a100-internlm-20b", replicas=4)
QUICK: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
VERSION_1 = Path(__file__).parents[1] / "data" / "model_v1.zip"


def workload(n: int = 60) -> Workload:
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.3, n))
    return Workload(arrived_at_s, rng.integers(1, 900, n), rng.integers(1, 200, n))


def trained(algorithm: Any, policy: Any, norm_obs: bool = False) -> Any:
    envs = VecMonitor(RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=2)))
    env = VecNormalize(envs, norm_obs=norm_obs)
    return algorithm(policy, env, **QUICK).learn(64)


def predicted(model: Any) -> Any:
    """Routes as `predict` does."""

    class Predicting(PolicyRouter):
        def route(self, rows: Any, mask: Any) -> int:
            observation = scale_rows(rows)
            wrapper = model.get_vec_normalize_env()
            return int(model.predict(wrapper.normalize_obs(observation), deterministic=True)[0])

    return Predicting(model)


@pytest.mark.parametrize(
    ("algorithm", "policy", "norm_obs"),
    [
        (PPO, ReplicaSetPolicy, False),
        (PPO, "MlpPolicy", True),
        (MaskablePPO, "MlpPolicy", False),
        (RouterPPO, "ReplicaSetPolicy", False),
    ],
)
def test_a_model_routes_as_it_predicts(algorithm: Any, policy: Any, norm_obs: bool) -> None:
    model = trained(algorithm, policy, norm_obs)
    chosen = simulate(workload(), FOUR, model).replica
    assert len(set(chosen)) > 1
    for router in (PolicyRouter(model), predicted(model)):
        np.testing.assert_array_equal(simulate(workload(), FOUR, router).replica, chosen)


@pytest.mark.parametrize(
    "told",
    [
        {"information": "router"},
        {"signal_interval_s": 5.0, "columns": ["kv_usage", "oldest_waiting_s", "waiting"]},
        {"predicted_output_sigma": 0.5},
    ],
)
def test_a_policy_is_told_what_it_was_trained_on(told: dict[str, Any], tmp_path: Path) -> None:
    observation = ObservationConfig(**told)
    envs = VecMonitor(RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=2, observation=told)))
    model = RouterPPO("ReplicaSetPolicy", envs, **QUICK).learn(32)
    layout = Layout(4, observation, ModelConfig())
    Checkpoint(model, layout).save(tmp_path / "model.zip")
    seen = []

    class Watched(PolicyRouter):
        def route(self, rows: Any, mask: Any) -> int:
            seen.append(rows)
            return super().route(rows, mask)

    for policy in (model, Checkpoint.load(tmp_path / "model.zip")):
        seen.clear()
        router = Watched(policy)
        assert router.observation == observation
        outcome = simulate(workload(), FOUR, router, engine="reference", seed=3)
        predicted = seen[0][0, Signal.PREDICTED_OUTPUT_TOKENS]
        assert (predicted > 0) == (observation.predicted_output_sigma is not None)
        run = ReferenceRun(workload(), FOUR, observation=observation)
        for rows, replica in zip(seen, outcome.replica, strict=True):
            own = np.delete(rows, Signal.PREDICTED_OUTPUT_TOKENS, axis=1)
            np.testing.assert_array_equal(
                own, np.delete(run.rows(), Signal.PREDICTED_OUTPUT_TOKENS, axis=1)
            )
            run.place(replica)


@pytest.mark.parametrize("policy", [ReplicaSetPolicy, "MlpPolicy"])
def test_a_saved_ppo_is_compared(policy: Any, tmp_path: Path) -> None:
    model, file = trained(PPO, policy), tmp_path / "ppo.zip"
    model.save(file)
    chosen = simulate(workload(), FOUR, model).replica
    np.testing.assert_array_equal(simulate(workload(), FOUR, Checkpoint.load(file)).replica, chosen)
    folder = tmp_path / "run"
    evaluate(
        EvaluateConfig(checkpoint=str(file), runs=2, requests=30, resamples=50, run_dir=str(folder))
    )
    lines = (folder / "comparison.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["router", "policy", "round_robin", "lor"]


def test_a_network_of_fixed_size_says_so() -> None:
    model = trained(PPO, "MlpPolicy")
    three = Cluster.from_profile("a100-internlm-20b", replicas=3)
    with pytest.raises(InputError, match=r"trained with 4 replicas and its .* number, got 3"):
        simulate(workload(), three, model)
    assert len(simulate(workload(), three, trained(PPO, ReplicaSetPolicy)).replica) == 60


def test_what_decides_otherwise_is_refused() -> None:
    env = make_vec_env("llmroute_gym:LLMRoute-v0", 1)
    for model, words in (
        (PPO("MlpPolicy", toy_vec_env(), device="cpu"), r"among 4 actions .* shape \(4, 3\)"),
        (RecurrentPPO("MlpLstmPolicy", env, device="cpu"), "got RecurrentActorCriticPolicy"),
        (DQN("MlpPolicy", env, device="cpu", buffer_size=10), "got DQNPolicy"),
    ):
        with pytest.raises(InputError, match=words):
            simulate(workload(), FOUR, model)


@pytest.mark.cli
def test_without_the_plugin_a_model_is_told_of_it() -> None:
    code = """
from stable_baselines3 import PPO
from llmroute_gym import Cluster, Workload, simulate
import llmroute_gym
model = PPO("MlpPolicy", "LLMRoute-v0", device="cpu")
try:
    simulate(Workload([0.0], [5], [5]), Cluster.from_profile("a100-internlm-20b"), model)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "import llmroute_gym.sb3 for a model of Stable-Baselines3" in done.stdout


def test_a_checkpoint_is_a_router_too() -> None:
    checkpoint = Checkpoint.load(VERSION_1)
    chosen = simulate(workload(), FOUR, checkpoint).replica
    again = simulate(workload(), FOUR, PolicyRouter(checkpoint)).replica
    np.testing.assert_array_equal(again, chosen)
    assert checkpoint.layout.columns == COLUMNS
