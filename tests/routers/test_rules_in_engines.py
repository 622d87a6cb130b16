"""Rules with memories, trees and lessons decide alike in both engines."""

import numpy as np
import pytest

from llmroute_gym import Cluster, Replica, Workload, simulate
from llmroute_gym.routers import make
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.engines import EngineName

MODEL = FormulaBatchTime(c0=0.01, c1=6e-5, n0=60, c2=3e-7, c3=5e-9)
CACHED = Cluster(
    tuple(
        Replica(MODEL, scheduler="vllm_v1", num_blocks=300, speed=speed)
        for speed in (1.0, 2.0, 1.0, 0.5)
    )
)
RULES = (
    "conditional_hash",
    "latency_predictor",
    "llmd_predicted:ttft_s=0.5,tpot_s=0.1",
    "oracle",
    "preble",
    "ray_prefix",
    "session_hash",
    "smg_cache_aware",
    "sticky_least_loaded",
    "vllm_router_cache_aware:absolute=3",
)


def chats(n: int = 160, seed: int = 0) -> Workload:
    """Conversations over a few system prompts, some turns without a session."""
    rng = np.random.default_rng(seed)
    session = rng.integers(-1, 25, n)
    pieces = []
    for one in session.tolist():
        pieces.append([(one % 5, 100), (100 + one if one >= 0 else 1000 + len(pieces), 150)])
    return Workload(
        np.cumsum(rng.exponential(0.012, n)),
        [250] * n,
        rng.integers(1, 60, n),
        content=Content.of(pieces),
        session=session,
    )


@pytest.mark.parametrize("rule", RULES)
def test_both_engines_decide_alike(rule: str) -> None:
    fast = simulate(chats(), CACHED, rule, seed=3)
    slow = simulate(chats(), CACHED, rule, seed=3, engine="reference")
    np.testing.assert_array_equal(fast.replica, slow.replica)
    np.testing.assert_allclose(fast.finished_at_s, slow.finished_at_s, rtol=1e-6)
    assert len(set(fast.replica.tolist())) > 1


@pytest.mark.parametrize("rule", RULES)
def test_the_seed_alone_decides(rule: str, engine: EngineName) -> None:
    router = make(rule)
    first = simulate(chats(60), CACHED, router, seed=3, engine=engine)
    again = simulate(chats(60), CACHED, router, seed=3, engine=engine)
    np.testing.assert_array_equal(first.replica, again.replica)


@pytest.mark.parametrize("rule", ["session_hash", "sticky_least_loaded"])
def test_a_session_stays(rule: str) -> None:
    requests = chats()
    assert requests.session is not None
    placed = simulate(requests, CACHED, rule).replica
    for session in range(25):
        assert len(set(placed[requests.session == session].tolist())) <= 1


@pytest.mark.parametrize("rule", ["smg_cache_aware", "ray_prefix", "vllm_router_cache_aware"])
def test_affinity_finds_more_of_the_prompts_in_the_caches(rule: str) -> None:
    affine, blind = (simulate(chats(400), CACHED, one, seed=0) for one in (rule, "random"))
    assert affine.cached_tokens.sum() > blind.cached_tokens.sum()
