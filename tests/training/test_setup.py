"""From settings to what is trained."""

import pytest

from llmroute_gym.config import TrainingConfig
from llmroute_gym.training.setup import rollout_steps, rollouts


@pytest.mark.parametrize(
    ("requests", "envs", "steps", "expected"),
    [(20000, 4, 128, (128, 40)), (512, 4, 128, (128, 1)), (96, 2, 24, (24, 2)), (1, 1, 9, (2, 1))],
)
def test_requests_are_rounded_up_to_whole_rollouts(
    requests: int, envs: int, steps: int, expected: tuple[int, int]
) -> None:
    training = TrainingConfig(ppo_requests=requests, rollout_steps=steps)
    assert (rollout_steps(training, envs), rollouts(training, envs)) == expected
