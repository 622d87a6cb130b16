"""From settings to what is trained."""

import pytest

from llmroute_gym.config import EnvConfig, ModelConfig, TrainConfig, TrainingConfig
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.training.setup import (
    gradient_steps,
    make_model,
    make_vec_env,
    ppo_settings,
    rollout_steps,
    rollouts,
)


@pytest.mark.parametrize(
    ("requests", "envs", "steps", "expected"),
    [(20000, 4, 128, (128, 40)), (512, 4, 128, (128, 1)), (96, 2, 24, (24, 2)), (1, 1, 9, (2, 1))],
)
def test_requests_are_rounded_up_to_whole_rollouts(
    requests: int, envs: int, steps: int, expected: tuple[int, int]
) -> None:
    training = TrainingConfig(ppo_requests=requests, rollout_steps=steps)
    assert (rollout_steps(training, envs), rollouts(training, envs)) == expected


@pytest.mark.parametrize(
    ("env", "training", "expected"),
    [
        # As the log has it: its steps are those of the training, one for one.
        (EnvConfig(4, 500), TrainingConfig(minibatch_size=64, epochs=8, rollout_steps=128), 5000),
        # 5,000 x 8 requests, learned in minibatches of 1,024 in 4 epochs, 256 requests a step.
        (EnvConfig(), TrainingConfig(), 156),
        # A rollout smaller than a minibatch is one minibatch: 2 x 32 requests in 4 epochs.
        (EnvConfig(2), TrainingConfig(rollout_steps=32), 2500),
    ],
)
def test_schedules_last_for_as_many_requests_as_the_logs(
    env: EnvConfig, training: TrainingConfig, expected: int
) -> None:
    settings = TrainConfig(training=training, env=env)
    cluster = build_cluster(settings.cluster)
    made = make_vec_env(
        env,
        settings.reward,
        settings.observation,
        cluster,
        build_source(settings.workload, training.qps),
        gamma=training.gamma,
        seed=0,
    )
    ppo = ppo_settings(
        training, settings.exploration, settings.kl, num_envs=env.num_envs, seed=settings.seed
    )
    model = make_model(ModelConfig(), made, ppo)
    assert gradient_steps(5000, model) == expected
    assert gradient_steps(1, model) == 1  # a schedule takes one at least
