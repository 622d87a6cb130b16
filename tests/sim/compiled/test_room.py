"""Room for the books of prefix caches is found when it runs out, and no number changes."""

from collections.abc import Iterator

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.envs.episodes import Episodes
from llmroute_gym.envs.vector_env import LLMRouteVectorEnv
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, MultiTurn
from llmroute_gym.sim.compiled import caches
from llmroute_gym.sim.compiled.caches import Caches
from llmroute_gym.sim.compiled.memory import Memory
from tests.sim.strategies import Case
from tests.sim.test_engines_agree import assert_stepped_alike
from tests.sim.vllm_cases import random_vllm_case

CASE = 140
"""Of blocks of one token and many pieces per request."""


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Starts with very few nodes; the list holds the environments that got more."""
    given: list[int] = []
    add = Caches.add_room

    def noted(self: Caches, memory: Memory, index: int) -> None:
        given.append(index)
        add(self, memory, index)

    monkeypatch.setattr(Caches, "add_room", noted)
    monkeypatch.setattr(caches, "FEWEST_NODES", 4)
    monkeypatch.setattr(caches, "MOST_NODES", 4)
    yield given
    assert given


def case() -> Case:
    return random_vllm_case(CASE, n_requests=60)


def test_a_run_in_one_call_starts_again(little_room: list[int]) -> None:
    one = case()
    reference = simulate(one.workload, one.cluster, one.assignment, engine="reference")
    outcome = simulate(one.workload, one.cluster, one.assignment)
    np.testing.assert_array_equal(outcome.cached_tokens, reference.cached_tokens)
    np.testing.assert_allclose(outcome.finished_at_s, reference.finished_at_s, rtol=1e-6)


def test_a_stepped_run_goes_back_to_its_decision(little_room: list[int]) -> None:
    assert_stepped_alike(case())


LATE = ObservationConfig(events_lag_s=0.3)
FULL_AT_ROWS = ((10, 19), (13, 18), (16, 33))
"""Cases of 40 requests and the nodes that late events are the first to want more of."""


@pytest.mark.parametrize(("seed", "nodes"), FULL_AT_ROWS)
def test_late_events_find_room_when_they_are_read(
    seed: int, nodes: int, little_room: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "FEWEST_NODES", nodes)
    monkeypatch.setattr(caches, "MOST_NODES", nodes)
    one = random_vllm_case(seed, n_requests=40)
    assert_stepped_alike(one._replace(options={**one.options, "observation": LATE}))


def test_late_events_find_room_when_replayed_episodes_are_observed(
    little_room: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = random_vllm_case(10, n_requests=40)
    seen = []
    for nodes in (43, 1 << 14):
        monkeypatch.setattr(caches, "FEWEST_NODES", nodes)
        monkeypatch.setattr(caches, "MOST_NODES", nodes)
        episodes = Episodes(one.cluster, 1, 40, RewardConfig(), LATE)
        episodes.start(0, one.workload, np.zeros(40))
        episodes.replay(0, one.assignment[:3])
        before = list(little_room)
        seen.append(episodes.observe(np.array([0])))
        assert (little_room != before) == (nodes == 43)
    np.testing.assert_array_equal(*seen)


def test_all_environments_go_back_to_theirs(
    little_room: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MultiTurn(qps=2.0)
    cluster = Cluster.from_profile("h100-llama-3.1-8b", replicas=2, num_blocks=4000)
    actions = np.random.default_rng(1).integers(0, 2, (60, 3))

    def rewards() -> list[list[float]]:
        env = LLMRouteVectorEnv(3, cluster=cluster, workload=source, requests_per_episode=25)
        env.reset(seed=3)
        return [env.step(action)[1].tolist() for action in actions]

    with_little = rewards()
    monkeypatch.setattr(caches, "FEWEST_NODES", 1 << 14)
    monkeypatch.setattr(caches, "MOST_NODES", 1 << 14)
    assert rewards() == with_little
