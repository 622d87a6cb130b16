"""The stages of rising load: when they end, what they set, and how they resume."""

from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from llmroute_gym.config import CurriculumConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3 import RouterPPO, SaveTrainingState, load_training_state, remaining_timesteps
from llmroute_gym.sb3.callbacks.curriculum import QPSCurriculum
from llmroute_gym.sb3.recent_vector import MonitoredVecEnv, RememberingVectorEnv

STAGES = [2.0, 3.0, 4.0]
TOTAL, STEPS, ENVS = 480, 20, 2


def make_env() -> VecMonitor:
    core = RememberingVectorEnv(ENVS, replicas=2, qps=STAGES[0], requests_per_episode=30)
    return VecMonitor(MonitoredVecEnv(core))


def model(env: VecMonitor | None = None) -> RouterPPO:
    return RouterPPO(
        "MlpPolicy",
        env or make_env(),
        n_steps=STEPS,
        batch_size=20,
        n_epochs=1,
        seed=3,
        device="cpu",
        policy_kwargs={"net_arch": [8]},
    )


class Watch(BaseCallback):
    """Notes the load at each rollout's end; put it after the curriculum."""

    def __init__(self, curriculum: QPSCurriculum, stop_at: int | None = None) -> None:
        super().__init__()
        self.curriculum, self.stop_at = curriculum, stop_at
        self.seen: list[tuple[int, int, float]] = []

    def _on_step(self) -> bool:
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self) -> None:
        (qps, *_) = [source.qps for source in self.training_env.get_attr("source")]
        self.seen.append((self.num_timesteps, self.curriculum.stage, qps))


def stages(config: CurriculumConfig) -> list[tuple[int, int, float]]:
    curriculum = QPSCurriculum(config, TOTAL)
    watch = Watch(curriculum)
    model().learn(TOTAL, [curriculum, watch])
    return watch.seen


def test_stages_take_equal_shares() -> None:
    assert stages(CurriculumConfig(stages=STAGES)) == [
        (done, stage, STAGES[stage])
        for done, stage in ((n * 40, min(n * 40 // 160, 2)) for n in range(1, 13))
    ]


def test_stages_take_the_requests_that_they_are_given() -> None:
    seen = stages(CurriculumConfig(stages=STAGES, requests=[80, 200]))
    assert [done for done, stage, _ in seen if stage == 1] == [80 + 40 * n for n in range(5)]


def test_a_stage_ends_when_its_p95_no_longer_improves() -> None:
    curriculum = QPSCurriculum(
        CurriculumConfig(
            stages=STAGES, advance="plateau", plateau_episodes=2, plateau_tolerance=0.1
        ),
        TOTAL,
    )
    curriculum.init_callback(model())
    curriculum._on_training_start()

    def ended(*p95: float) -> int:
        for value in p95:
            curriculum._add(value)
        curriculum._enter(curriculum._following())
        return curriculum.stage

    assert ended(10.0, 8.9, 8.5) == 0  # one episode without a tenth less
    assert ended(7.9, 7.8) == 0
    assert ended(7.7) == 1
    assert ended(1.0, 20.0, 19.0) == 1  # the first began in the stage before
    assert ended(19.0) == 2
    assert ended(30.0, 30.0, 30.0, 30.0, 30.0) == 2


def test_an_episode_keeps_the_load_that_it_began_with() -> None:
    env = make_env()
    env.seed(0)
    env.reset()
    env.env_method("set_qps", 1e6)
    times = [env.step([0, 1])[3][0]["time_s"] for _ in range(60)]
    assert times[28] > 5.0
    assert times[58] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        CurriculumConfig(stages=STAGES),
        CurriculumConfig(stages=STAGES, advance="plateau", plateau_episodes=1),
    ],
)
@pytest.mark.parametrize("killed_at", [150, 330])
def test_a_resumed_training_goes_on_in_its_stage(
    config: CurriculumConfig, killed_at: int, tmp_path: Any
) -> None:
    def parts(stop_at: int | None = None) -> tuple[Watch, list[BaseCallback]]:
        curriculum = QPSCurriculum(config, TOTAL)
        watch = Watch(curriculum, stop_at)
        return watch, [curriculum, watch, SaveTrainingState(tmp_path / "state.zip")]

    whole, whole_callbacks = parts()
    model().learn(TOTAL, whole_callbacks)
    first, first_callbacks = parts(killed_at)
    model().learn(TOTAL, first_callbacks)
    again = load_training_state(tmp_path / "state.zip", make_env(), RouterPPO, device="cpu")
    second, second_callbacks = parts()
    again.learn(remaining_timesteps(again), second_callbacks, reset_num_timesteps=False)
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CurriculumConfig(stages=[2.5, 2.5]), "must rise, got 2.5 after 2.5"),
        (CurriculumConfig(stages=STAGES, requests=[100]), "one number per stage but the last"),
        (CurriculumConfig(stages=STAGES, advance="time"), "unknown curriculum.advance 'time'"),
        (CurriculumConfig(), "needs at least one stage"),
    ],
)
def test_wrong_stages_are_refused(config: CurriculumConfig, words: str) -> None:
    with pytest.raises(InputError, match=words):
        QPSCurriculum(config, TOTAL)
