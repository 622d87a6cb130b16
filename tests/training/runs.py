"""Small trainings and what they leave."""

import csv
from pathlib import Path

from llmroute_gym.config import (
    EnvConfig,
    EvaluationConfig,
    StabilizationConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
)

RESULTS = {
    "comparison.csv",
    "comparison_full.csv",
    "config.yaml",
    "findings.json",
    "latency_cdf.png",
    "metrics.csv",
    "model.zip",
    "training.png",
}


def tiny(folder: Path, **settings: object) -> TrainConfig:
    defaults: dict[str, object] = {
        "training": TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2),
        "env": EnvConfig(num_envs=2, requests_per_episode=20),
        "warm_start": WarmStartConfig(epochs=2, decisions=60),
        "stabilization": StabilizationConfig(steps=20),
        "evaluation": EvaluationConfig(runs=2, requests=30, resamples=50),
        "run_dir": str(folder),
    }
    return TrainConfig(**{**defaults, **settings}).validate()  # type: ignore[arg-type]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


class Killed(BaseException):
    """Nothing in the training catches it, as nothing survives a kill."""
