"""The environment as its users rely on it: Gymnasium's contract, exact rewards, clear errors."""

import json
import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import llmroute_gym  # noqa: F401  (registers the environment)
from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.envs.observation import HIGH, SCALE, scale_rows
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import N_SIGNALS
from llmroute_gym.sim import Cluster, Replica, Signal, Workload
from llmroute_gym.sim.batch_time import FormulaBatchTime

ENGINES = ["compiled", "reference"]
FAST = FormulaBatchTime(c0=0.01, c1=0.0, n0=0.0, c2=1e-6, c3=0.0)


def play(env: LLMRouteEnv, seed: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Plays an episode with random allowed actions and gathers what it showed."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options=options)
    seen: dict[str, Any] = {"observations": [observation], "rewards": [], "infos": [info]}
    done = False
    while not done:
        action = int(rng.choice(np.flatnonzero(env.action_masks())))
        observation, reward, done, truncated, info = env.step(action)
        assert not truncated
        seen["observations"].append(observation)
        seen["rewards"].append(reward)
        seen["infos"].append(info)
    return seen


@pytest.mark.parametrize("engine", ENGINES)
def test_gymnasium_finds_nothing_to_warn_about(engine: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("LLMRoute-v0", requests_per_episode=40, engine=engine)
        check_env(env.unwrapped, skip_render_check=True)
        drawing = gym.make("LLMRoute-v0", requests_per_episode=10, render_mode="rgb_array")
        check_env(drawing.unwrapped)


def test_sb3_only_remarks_on_rows() -> None:
    """SB3's checker has one remark on every two-dimensional Box; flattened, it has none."""
    env = LLMRouteEnv(requests_per_episode=40)
    with pytest.warns(UserWarning, match="unconventional shape") as remarks:
        check_env_for_sb3(env)
    assert len(remarks) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_for_sb3(FlattenObservation(env))


def test_registered_kwargs_fit_into_json() -> None:
    spec = gym.spec("LLMRoute-v0")
    env = gym.make(spec, replicas=3, reward={"latency_weight": 2.0})
    assert env.spec is not None
    assert json.loads(json.dumps(env.spec.kwargs))["replicas"] == 3
    assert gym.make("llmroute_gym:LLMRoute-v0").action_space == gym.spaces.Discrete(4)


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_seeds_give_equal_episodes(engine: str) -> None:
    env = LLMRouteEnv(
        requests_per_episode=30, engine=engine, observation={"predicted_output_sigma": 0.5}
    )
    first, second, other = play(env, 3), play(env, 3), play(env, 4)
    np.testing.assert_array_equal(first["observations"], second["observations"])
    assert first["rewards"] == second["rewards"]
    assert first["rewards"] != other["rewards"]


@pytest.mark.parametrize("information", ["engine", "router", "oracle"])
def test_engines_show_the_same(information: str) -> None:
    config = ObservationConfig(information, signal_interval_s=0.7, predicted_output_sigma=0.3)
    ours, theirs = (
        play(LLMRouteEnv(requests_per_episode=60, engine=engine, observation=config), 11)
        for engine in ENGINES
    )
    np.testing.assert_allclose(ours["observations"], theirs["observations"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours["rewards"], theirs["rewards"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_reward_terms_sum_to_closed_forms(engine: str) -> None:
    weights = RewardConfig(latency_threshold=2.5, throughput_target=0.8)
    env = LLMRouteEnv(requests_per_episode=80, engine=engine, qps=4.0, reward=weights)
    seen = play(env, 7)
    outcome = env.outcome()
    threshold = weights.latency_threshold
    infos = seen["infos"][1:]
    assert sum(i["reward/latency"] for i in infos) == pytest.approx(outcome.e2e_s.sum() / threshold)
    late_s = np.maximum(outcome.e2e_s - threshold, 0.0).sum()
    assert sum(i["reward/tail"] for i in infos) == pytest.approx(late_s / threshold)
    assert all(0.0 <= i["reward/throughput"] <= 1.0 for i in infos)
    for reward, info in zip(seen["rewards"], infos, strict=True):
        assert reward == pytest.approx(
            weights.throughput_weight * info["reward/throughput"]
            - weights.latency_weight * info["reward/latency"]
            - weights.latency_penalty_scale * info["reward/tail"]
            - weights.load_balance_penalty * info["reward/imbalance"]
        )


def test_throughput_term_follows_the_exponential_average() -> None:
    env = LLMRouteEnv(requests_per_episode=50, reward={"throughput_target": 100.0})
    seen = play(env, 5)
    finished = env.outcome().finished_at_s
    for info in seen["infos"][1:]:
        ages = info["time_s"] - finished[finished < info["time_s"] + 1e-9]
        rate = np.exp(-ages / 30.0).sum() / 30.0
        assert info["reward/throughput"] == pytest.approx(rate / 100.0, rel=1e-6, abs=1e-9)


def test_the_end_reports_every_request() -> None:
    env = LLMRouteEnv(requests_per_episode=64)
    info = play(env, 0)["infos"][-1]
    e2e_s = env.outcome().e2e_s
    assert info["episode_metrics/requests"] == 64
    assert info["episode_metrics/e2e_p99_s"] == pytest.approx(np.percentile(e2e_s, 99))
    shares = [value for key, value in info.items() if key.startswith("episode_metrics/share_")]
    assert sum(shares) == pytest.approx(1.0)
    assert len(shares) == 4
    with pytest.raises(InputError, match="reset"):
        env.step(0)


def test_rows_are_scaled_without_loss_of_whole_numbers() -> None:
    rows = np.zeros((2, N_SIGNALS))
    rows[:, Signal.WAITING] = 0.0, 4097.0
    rows[:, Signal.PENDING_PROMPT_TOKENS] = 123_457.0, 1e12
    scaled = scale_rows(rows)
    assert scaled.dtype == np.float32
    assert (scaled[:, Signal.WAITING] / SCALE[Signal.WAITING]).tolist() == [0.0, 4097.0]
    assert scaled[1, Signal.PENDING_PROMPT_TOKENS] == HIGH[Signal.PENDING_PROMPT_TOKENS]


@pytest.mark.parametrize("engine", ENGINES)
def test_masked_replicas_are_refused_not_remapped(engine: str) -> None:
    small = Replica(FAST, num_blocks=8, oversize="reject")
    large = Replica(FAST, num_blocks=64, oversize="reject")
    env = LLMRouteEnv(Cluster((small, large)), requests_per_episode=3, engine=engine)
    workload = Workload([0.0, 1.0, 2.0], [200, 10, 5000], [4, 4, 4])
    _, info = env.reset(options={"workload": workload})
    assert info["action_mask"].tolist() == [0, 1]
    with pytest.raises(InputError, match=r"replica 0 is masked.*request 0.*choose one of \[1\]"):
        env.step(0)
    _, _, _, _, info = env.step(1)
    assert info["action_mask"].tolist() == [1, 1]
    env.step(0)
    _, _, done, _, info = env.step(0)  # fits nowhere: counted, with infinite latency
    assert done
    assert info["episode_metrics/rejected"] == 1
    assert info["episode_metrics/e2e_p99_s"] == np.inf


@pytest.mark.parametrize("action", [4, -1, 1.0, None, "1", True, np.float32(1), np.array([0, 1])])
def test_wrong_actions_get_one_sentence(action: Any) -> None:
    env = LLMRouteEnv(requests_per_episode=3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the action must be an integer from 0 to 3"):
        env.step(action)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cluster": "a100-internlm-20"}, "did you mean 'a100-internlm-20b'"),
        ({"replicas": 0}, "replicas"),
        ({"qps": 0.0}, "qps must be"),
        ({"qps": float("nan")}, "qps must be"),
        ({"workload": "azure"}, "azure_conv"),
        ({"arrivals": "poison"}, "poisson"),
        ({"requests_per_episode": 0}, "requests_per_episode"),
        ({"reward": {"latency_wait": 1.0}}, "latency_weight"),
        ({"reward": {"latency_weight": -1.0}}, "latency_weight must be >= 0"),
        ({"observation": {"information": "all"}}, "information"),
        ({"engine": "fast"}, "compiled"),
        ({"render_mode": "rgb"}, "rgb_array"),
    ],
)
def test_wrong_settings_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        LLMRouteEnv(**kwargs)
    assert "\n" not in str(error.value)


def test_reset_options_are_checked() -> None:
    env = LLMRouteEnv(requests_per_episode=3)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(InputError, match="workload"):
        env.reset(options={"work": 1})
    with pytest.raises(InputError, match="must be a Workload"):
        env.reset(options={"workload": [1, 2]})


def test_load_changes_from_the_next_episode() -> None:
    env = LLMRouteEnv(requests_per_episode=400)
    play(env, 1)
    calm_s = env.outcome().arrived_at_s[-1]
    env.set_qps(10.0)
    play(env, 1)
    assert env.outcome().arrived_at_s[-1] == pytest.approx(calm_s / 4)


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_renders(mode: str) -> None:
    env = LLMRouteEnv(requests_per_episode=30, render_mode=mode)
    play(env, 0)
    picture = env.render()
    if mode == "ansi":
        assert "LLMRoute-v0" in picture
    else:
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
    env.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"qps": "fast"}, "qps must be a finite number > 0, got 'fast'"),
        (
            {"workload": 7},
            "workload must be a WorkloadSource, or the name of a length model or source, got 7",
        ),
        ({"requests_per_episode": "a"}, "requests_per_episode must be an integer >= 1, got 'a'"),
        ({"observation": "oracle"}, "expected a ObservationConfig or a mapping of its fields"),
    ],
)
def test_wrong_arguments_get_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        gym.make("LLMRoute-v0", **settings)
    with pytest.raises(InputError, match=re.escape(words)):
        gym.make_vec("LLMRoute-v0", num_envs=2, **settings)


def test_the_vector_environment_draws_nothing() -> None:
    gym.make_vec("LLMRoute-v0", num_envs=2, render_mode=None)
    with pytest.raises(InputError, match="render a single environment"):
        gym.make_vec("LLMRoute-v0", num_envs=2, render_mode="rgb_array")
