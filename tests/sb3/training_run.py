"""A training with everything that has a memory; as a script, to be killed from outside."""

import sys
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from llmroute_gym.config import ExplorationConfig, KLConfig, TemperatureConfig
from llmroute_gym.envs.llmroute_env import LLMRouteEnv
from llmroute_gym.sb3 import (
    EntropyWarmup,
    HealthMonitor,
    KLReferenceDecay,
    NormalizedRows,
    Replayable,
    RolloutStatistics,
    RouterMonitor,
    RouterPPO,
    SaveTrainingState,
    TemperatureControl,
    fill_statistics,
    load_training_state,
    remaining_timesteps,
)

N_STEPS, N_ENVS, UPDATES = 24, 2, 6
TOTAL = N_STEPS * N_ENVS * UPDATES
STATE_FILE = "state.zip"


def make_env() -> VecNormalize:
    env = DummyVecEnv(
        [lambda: Replayable(LLMRouteEnv(engine="reference", replicas=3, requests_per_episode=30))]
        * N_ENVS
    )
    return VecNormalize(VecMonitor(env), norm_obs=False)


def make_model() -> RouterPPO:
    model = RouterPPO(
        "MlpPolicy",
        make_env(),
        n_steps=N_STEPS,
        batch_size=16,
        n_epochs=2,
        kl_coef=0.1,
        learning_rate=lambda left: 1e-3 * left,
        seed=5,
        device="cpu",
        policy_kwargs={"features_extractor_class": NormalizedRows, "net_arch": [16]},
    )
    fill_statistics(model, 10, seed=6)
    model.set_reference()
    return model


def callbacks(folder: Path, *others: Any) -> list[Any]:
    statistics = RolloutStatistics()
    temperature = TemperatureConfig(
        qps_sensitivity=0.5, latency_sensitivity=0.5, balance_sensitivity=5.0,
        target_qps=2.0, target_latency=6.0,
    )  # fmt: skip
    return [
        RouterMonitor(statistics),
        HealthMonitor(folder / "findings.json", statistics=statistics),
        TemperatureControl(temperature, statistics),
        SaveTrainingState(folder / STATE_FILE, every=2),
        KLReferenceDecay(KLConfig(kl_ref_decay_steps=20)),
        EntropyWarmup(ExplorationConfig(warmup_steps=15)),
        *others,
    ]


def start(folder: Path, *others: Any) -> RouterPPO:
    return make_model().learn(TOTAL, callbacks(folder, *others))


def resume(folder: Path) -> RouterPPO:
    model = load_training_state(folder / STATE_FILE, make_env(), RouterPPO, device="cpu")
    return model.learn(remaining_timesteps(model), callbacks(folder), reset_num_timesteps=False)


if __name__ == "__main__":
    th.set_num_threads(1)
    while True:
        start(Path(sys.argv[1]))
