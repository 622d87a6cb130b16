"""The vector environment is the single one, many times over."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmroute_gym  # noqa: F401  (registers the environment)
from llmroute_gym.config import RewardConfig
from llmroute_gym.envs import LLMRouteEnv, LLMRouteVectorEnv
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import IDENTITIES, SIGNAL_NAMES
from llmroute_gym.sim import Cluster, Replica, Signal
from llmroute_gym.sim.arrivals import arrival_process
from llmroute_gym.sim.batch_time import FormulaBatchTime
from llmroute_gym.sim.lengths import length_model
from llmroute_gym.sim.sources import SyntheticWorkload
from llmroute_gym.sim.workload import Workload
from tests.sim.strategies import Case, random_case, seeds, with_waiting
from tests.sim.view_cases import random_view_case
from tests.sim.vllm_cases import random_vllm_case

EPISODE = 20
SEED = 10_000_000
"""Apart from the seeds of the engines' own tests."""
FAST = FormulaBatchTime(c0=0.01, c1=0.0, n0=0.0, c2=1e-6, c3=0.0)
CASES: list[dict[str, Any]] = [
    {},
    {"observation": {"information": "router", "signal_interval_s": 0.4}},
    {"observation": {"information": "oracle", "predicted_output_sigma": 0.4}, "qps": 6.0},
    {"cluster": "a100-llama-2-7b", "replicas": 7, "qps": 30.0, "arrivals": "bursty"},
]


@pytest.mark.parametrize("kwargs", CASES)
def test_each_environment_is_the_single_one(kwargs: dict[str, Any]) -> None:
    ours = gym.make_vec("LLMRoute-v0", num_envs=3, requests_per_episode=EPISODE, **kwargs)
    theirs = [LLMRouteEnv(requests_per_episode=EPISODE, **kwargs) for _ in range(3)]
    assert_alike(ours, theirs, steps=2 * EPISODE + 5)


class Recorded:
    """A source of one workload."""

    qps = 1.0

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        assert n_requests == len(self.workload)
        return self.workload

    def with_qps(self, qps: float) -> "Recorded":
        return self


class Shortened(Recorded):
    """A source of a workload's beginnings, each of another length."""

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        return self.workload.slice(0, int(rng.integers(1, n_requests + 1)))


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@seeds(320)
def test_each_environment_is_the_reference_engine_on_a_random_case(seed: int) -> None:
    assert_reference(random_case(SEED + seed))


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@seeds(160)
def test_each_environment_is_the_reference_engine_where_prefixes_are_shared(seed: int) -> None:
    case = random_vllm_case(3 * SEED + seed)
    assert_reference(with_waiting(case, seed) if seed % 4 == 3 else case)


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@seeds(160)
def test_each_environment_shows_every_view_of_the_reference_engine(seed: int) -> None:
    case = random_view_case(4 * SEED + seed)
    columns = [name for name in SIGNAL_NAMES if SIGNAL_NAMES.index(name) not in IDENTITIES]
    told = replace(case.options["observation"], columns=columns)
    assert_reference(case._replace(options={**case.options, "observation": told}))


def assert_reference(case: Case) -> None:
    settings: dict[str, Any] = {
        "cluster": case.cluster,
        "workload": Recorded(case.workload),
        "requests_per_episode": len(case.workload),
        "reward": RewardConfig(latency_threshold=case.options["late_after_s"]),
        "observation": replace(case.options["observation"], predicted_output_sigma=0.3),
    }
    ours = LLMRouteVectorEnv(2, qps=None, **settings)
    theirs = [LLMRouteEnv(qps=None, engine="reference", **settings) for _ in range(2)]
    # Numbers that both engines round differently, as float32.
    assert_alike(ours, theirs, len(case.workload), rtol=max(10 * case.rtol, 1e-6), atol=1e-6)


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@seeds(60)
def test_waiting_requests_and_episodes_of_any_length_are_those_of_the_reference_engine(
    seed: int,
) -> None:
    case = with_waiting(random_case(2 * SEED + seed), seed)
    settings: dict[str, Any] = {
        "cluster": case.cluster,
        "workload": Shortened(case.workload),
        "requests_per_episode": len(case.workload),
        "reward": RewardConfig(latency_threshold=case.options["late_after_s"]),
        "observation": replace(
            case.options["observation"], columns=["fits", "waiting", "e2e_s", "available"]
        ),
    }
    ours = LLMRouteVectorEnv(3, qps=None, **settings)
    theirs = [LLMRouteEnv(qps=None, engine="reference", **settings) for _ in range(3)]
    rtol = max(10 * case.rtol, 1e-6)
    assert_alike(ours, theirs, 2 * len(case.workload), rtol=rtol, atol=1e-6)


def test_masks_are_those_of_the_single_one() -> None:
    mixed = Cluster(
        (Replica(FAST, num_blocks=40, oversize="reject"), Replica(FAST, oversize="reject"))
    )
    lengths = length_model("uniform", prompt_min=1, prompt_max=1500, output_min=1, output_max=9)
    source = SyntheticWorkload(lengths, arrival_process("poisson"), 8.0)
    ours = LLMRouteVectorEnv(4, mixed, workload=source, requests_per_episode=EPISODE)
    theirs = [
        LLMRouteEnv(mixed, workload=source, qps=2.5, requests_per_episode=EPISODE) for _ in range(4)
    ]
    assert_alike(ours, theirs, steps=3 * EPISODE)
    ours.reset(seed=0)
    while ours.action_masks().all():
        ours.step(np.ones(4, dtype=int))
    wrong = int(np.flatnonzero(ours.action_masks()[:, 0] == 0)[0])
    with pytest.raises(InputError, match=f"replica 0 in environment {wrong} is masked"):
        ours.step(np.zeros(4, dtype=int))


def assert_alike(
    ours: Any, theirs: list[LLMRouteEnv], steps: int, rtol: float = 0.0, atol: float = 0.0
) -> None:
    def assert_equal(one: Any, other: Any, what: str = "") -> None:
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=what)

    rng = np.random.default_rng(1)
    observations, infos = ours.reset(seed=9)
    for index, env in enumerate(theirs):
        observation, info = env.reset(seed=9 + index)
        assert_equal(observations[index], observation)
        np.testing.assert_array_equal(infos["action_mask"][index], info["action_mask"])
    for _ in range(steps):
        masks = ours.unwrapped.action_masks()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observations, rewards, terminated, truncated, infos = ours.step(actions)
        assert not truncated.any()
        for index, env in enumerate(theirs):
            observation, reward, done, _, info = env.step(int(actions[index]))
            assert_equal(np.float32(rewards[index]), np.float32(reward), "reward")
            assert terminated[index] == done
            source = infos["final_info"] if done else infos
            for key, value in info.items():
                assert_equal(source[key][index], value, key)
                assert source[f"_{key}"][index], key
            if done:
                assert_equal(infos["final_obs"][index], observation)
                observation, _ = env.reset()
            assert_equal(observations[index], observation)


def test_results_are_not_overwritten_by_the_next_step() -> None:
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    env.reset(seed=0)
    first = env.step(np.array([0, 1]))
    kept = [np.copy(first[0]), np.copy(first[1]), np.copy(first[4]["time_s"])]
    env.step(np.array([2, 3]))
    for now, then in zip((first[0], first[1], first[4]["time_s"]), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_spaces_are_batched() -> None:
    env = gym.make_vec("LLMRoute-v0", num_envs=5, replicas=2)
    assert env.single_action_space == gym.spaces.Discrete(2)
    assert env.observation_space.shape == (5, *env.single_observation_space.shape)
    assert env.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)


def test_long_requests_extend_the_tables_on_the_way() -> None:
    lengths = length_model("fixed", prompt_tokens=9000, output_tokens=3)
    source = SyntheticWorkload(lengths, arrival_process("poisson"), 1.0)
    ours = LLMRouteVectorEnv(2, workload=source, requests_per_episode=EPISODE)
    theirs = [LLMRouteEnv(workload=source, requests_per_episode=EPISODE) for _ in range(2)]
    assert_alike(ours, theirs, steps=EPISODE)


class Growing(Recorded):
    """A source whose first workload is short and whose later ones are ever longer."""

    def __init__(self) -> None:
        self.drawn = 0

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        self.drawn += 1
        longest = 1000 * 2**self.drawn
        return Workload(
            np.arange(n_requests) * 0.5, [300] * (n_requests - 1) + [longest], [40] * 20
        )


def test_tables_that_grow_leave_running_episodes_alone() -> None:
    slow = [Replica(FAST, num_blocks=9000, slowdowns=((at_s, 5.0),)) for at_s in (1.0, 3.0)]
    table = Cluster.from_profile("a100-llama-2-7b", 1, num_blocks=9000, slowdowns=((2.0, 3.0),))
    cluster = Cluster((*slow, *table))
    settings: dict[str, Any] = {"qps": None, "requests_per_episode": EPISODE}
    ours = LLMRouteVectorEnv(4, cluster, workload=Growing(), **settings)
    source = Growing()
    theirs = [LLMRouteEnv(cluster, workload=source, **settings) for _ in range(4)]
    assert_alike(ours, theirs, steps=EPISODE - 1)


def test_a_source_may_not_give_more_requests_than_asked_for() -> None:
    class TooMany(Recorded):
        def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
            return self.workload

    source = TooMany(Workload(np.arange(30) * 0.5, [300] * 30, [4] * 30))
    env = LLMRouteVectorEnv(2, workload=source, qps=None, requests_per_episode=20)
    with pytest.raises(InputError, match="gave 30 requests where 20 were asked for"):
        env.reset(seed=0)


def test_a_replica_that_takes_no_requests_and_one_that_is_too_small_are_told_apart() -> None:
    cluster = Cluster((Replica(FAST), Replica(FAST), Replica(FAST, num_blocks=8)))
    workload = Workload(np.arange(20) * 0.1, [300] * 20, [4] * 20)
    settings: dict[str, Any] = {"cluster": cluster, "workload": Recorded(workload), "qps": None}
    settings |= {"requests_per_episode": 20, "observation": {"columns": ["available", "fits"]}}
    ours = LLMRouteVectorEnv(2, **settings)
    ours.reset(seed=0)
    ours.set_available(1, 0, False)
    theirs = LLMRouteEnv(**settings, engine="reference")
    theirs.reset(seed=0)
    theirs.set_available(0, False)
    observations, *_, infos = ours.step([0, 1])
    observation, *_, info = theirs.step(1)
    assert info["available"].tolist() == infos["available"][1].tolist() == [0, 1, 1]
    assert info["action_mask"].tolist() == infos["action_mask"][1].tolist() == [0, 1, 0]
    assert observation.tolist() == observations[1].tolist() == [[0, 1], [1, 1], [1, 0]]
    assert infos["available"][0].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(theirs.rows()[:, Signal.AVAILABLE], [0, 1, 1])
    np.testing.assert_array_equal(theirs.rows()[:, Signal.FITS], [1, 1, 0])
    with pytest.raises(InputError, match="replica 0 in environment 1 is masked: it takes no"):
        ours.step([0, 0])
    with pytest.raises(InputError, match="replica 2 is masked: it cannot hold request 1"):
        theirs.step(2)
    with pytest.raises(InputError, match="replica 0 is masked: it takes no requests now"):
        theirs.step(0)
    for env in (lambda *state: ours.set_available(1, *state), theirs.set_available):
        env(0, True)
        env(0, False)
        env(2, False)
        with pytest.raises(InputError, match="replica 1 is the last one that takes requests"):
            env(1, False)
    for index in (2, -1, 0.5, True):
        with pytest.raises(
            InputError, match=f"environment must be an integer from 0 to 1, got {index}"
        ):
            ours.set_available(index, 0, True)  # type: ignore[arg-type]
    ours.reset(seed=0)
    assert ours.action_masks().tolist() == [[1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], "shape"),
        ([0.0, 1.0], "integers"),
        ([0, 4], "environment 1 must be an integer from 0 to 3, got 4"),
        ([-1, 0], "environment 0"),
    ],
)
def test_wrong_actions_get_one_sentence(actions: list[Any], message: str) -> None:
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(actions)


def test_wrong_settings_get_one_sentence() -> None:
    with pytest.raises(InputError, match="num_envs"):
        LLMRouteVectorEnv(0)
    with pytest.raises(InputError, match="compiled"):
        LLMRouteVectorEnv(2, engine="reference")
    env = LLMRouteVectorEnv(2, requests_per_episode=EPISODE)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0, 0])
    with pytest.raises(InputError, match="seeds"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(InputError, match="reset option"):
        env.reset(options={"workload": None})
