"""What is said of settings that will not go as they look."""

from pathlib import Path

import pytest

from llmroute_gym.config import (
    CurriculumConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
    WorkloadConfig,
)
from llmroute_gym.train import train
from llmroute_gym.training.checks import highest_load
from tests.training.runs import rows, tiny


@pytest.mark.parametrize(
    ("settings", "highest"),
    [
        (TrainConfig(curriculum=CurriculumConfig(stages=[2.5, 40.0])), ("curriculum.stages", 40.0)),
        (TrainConfig(workload=WorkloadConfig(qps=40.0)), ("workload.qps", 40.0)),
        (TrainConfig(training=TrainingConfig(qps=40.0)), ("training.qps", 40.0)),
        (TrainConfig(), ("training.qps", 2.5)),
    ],
)
def test_the_highest_load_is_named_by_its_key(
    settings: TrainConfig, highest: tuple[str, float]
) -> None:
    assert highest_load(settings) == highest


@pytest.mark.cli
def test_a_load_above_the_capacity_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    none = WarmStartConfig(cloning=False)
    train(tiny(tmp_path / "run", warm_start=none, workload=WorkloadConfig(qps=40.0)))
    assert "workload.qps reaches 40 requests/s, but the cluster serves about" in caplog.text


@pytest.mark.cli
def test_stages_shorter_than_their_episodes_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = CurriculumConfig(stages=[2.5, 3.5, 4.5])
    none = WarmStartConfig(cloning=False)
    train(tiny(tmp_path / "short", curriculum=stages, warm_start=none))
    assert "a stage of the curriculum has 32 requests" in caplog.text
    assert "take 40 (2 environments of 20 requests); make training.ppo_requests larg" in caplog.text
    caplog.clear()
    longer = TrainingConfig(ppo_requests=240, rollout_steps=20, epochs=1)
    train(tiny(tmp_path / "long", curriculum=stages, warm_start=none, training=longer))
    assert "a stage" not in caplog.text
    # The rate is that of the episodes which run, not of those to come.
    rates = [row["curriculum/qps"] for row in rows(tmp_path / "long" / "metrics.csv")[:-1]]
    assert rates == ["2.5", "2.5", "3.5", "3.5", "4.5", "4.5"]
