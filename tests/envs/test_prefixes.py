"""The environments where prompts share their beginnings and replicas remember them."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, Signal
from llmroute_gym.sim.conversations import AgentLoop, MultiTurn
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.prefixes import PrefixRepetition, SharedPrefix
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource
from llmroute_gym.sim.traces import load_trace
from tests.envs.test_llmroute_env import play
from tests.envs.test_vector_env import assert_alike

EPISODE = 25
CLUSTER = Cluster.from_profile("h100-llama-3.1-8b", replicas=3, num_blocks=2000)
VIEWS: list[dict[str, Any]] = [
    {},
    {"events_lag_s": 5.0},
    {"prefix_view": "tree"},
    {"prefix_view": "tree", "tree_blocks": 40},
]
SOURCES = ["shared_prefix", "prefix_repetition", "multi_turn", "closed_loop", "agent_loop", "trace"]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> WorkloadSource:
    made: dict[str, WorkloadSource] = {
        "shared_prefix": SharedPrefix(
            qps=8.0, groups=4, prompts=3, system_tokens=2000, question_tokens=200, output_tokens=90
        ),
        "prefix_repetition": PrefixRepetition(qps=8.0, prefixes=3),
        "multi_turn": MultiTurn(qps=8.0),
        "closed_loop": MultiTurn(qps=8.0, closed_loop=True),
        "agent_loop": AgentLoop(qps=8.0),
    }
    return made.get(request.param) or recorded(tmp_path / "trace.jsonl")


def recorded(file: Path) -> TraceWorkload:
    """Returns a source of windows of a file in Mooncake's form."""
    with file.open("w") as lines:
        for index in range(60):
            blocks = [index % 4, 10 + index % 4, 100 + index]
            row = {"timestamp": 150 * index, "input_length": 1500, "output_length": 30}
            lines.write(json.dumps({**row, "hash_ids": blocks}) + "\n")
    return TraceWorkload(load_trace(file))


def settings(source: WorkloadSource) -> dict[str, Any]:
    return {
        "cluster": CLUSTER,
        "workload": source,
        "qps": None,
        "requests_per_episode": EPISODE,
    }


def test_gymnasium_finds_nothing_to_warn_about(
    source: WorkloadSource, vllm_engine: EngineName
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("LLMRoute-v0", engine=vllm_engine, **settings(source))
        check_env(env.unwrapped, skip_render_check=True)


def test_what_is_found_is_seen_before_and_counted_at_the_end(
    source: WorkloadSource, vllm_engine: EngineName
) -> None:
    env = LLMRouteEnv(engine=vllm_engine, **settings(source))
    seen = play(env, 3)
    shown = np.array(seen["observations"])[..., Signal.CACHED_PREFIX]
    assert 0.0 < shown.max() < 1.0
    outcome = env.outcome()
    share = outcome.cached_tokens.sum() / outcome.prompt_tokens.sum()
    assert seen["infos"][-1]["episode_metrics/cached_token_share"] == pytest.approx(share)
    assert share > 0


@pytest.mark.parametrize("view", VIEWS)
def test_engines_and_the_vector_environment_show_the_same(
    source: WorkloadSource, view: dict[str, Any]
) -> None:
    given = {"observation": view, **settings(source)}
    ours = gym.make_vec("LLMRoute-v0", num_envs=2, **given)
    theirs = [LLMRouteEnv(engine="reference", **given) for _ in range(2)]
    assert_alike(ours, theirs, steps=EPISODE + 5, rtol=1e-5, atol=1e-6)


def test_the_prefix_view_changes_its_column_alone(
    source: WorkloadSource, vllm_engine: EngineName
) -> None:
    seen = [
        play(LLMRouteEnv(engine=vllm_engine, observation=one, **settings(source)), 3)
        for one in VIEWS
    ]
    columns = [np.array(one["observations"]) for one in seen]
    for one, other in zip(seen, columns, strict=True):
        np.testing.assert_allclose(one["rewards"], seen[0]["rewards"], rtol=1e-12)
        rest = (np.delete(part, Signal.CACHED_PREFIX, axis=2) for part in (columns[0], other))
        np.testing.assert_allclose(*rest, rtol=1e-6)
    now, late, tree, small = (one[..., Signal.CACHED_PREFIX] for one in columns)
    assert late.sum() < now.sum()
    assert (small <= tree).all()
    assert small.sum() < tree.sum()


def test_a_source_can_be_named() -> None:
    env = LLMRouteEnv(cluster=CLUSTER, workload="shared_prefix", qps=7.0, arrivals="poisson")
    assert isinstance(env.source, SharedPrefix)
    assert env.source.qps == 7.0
    with pytest.raises(InputError, match=r"unknown workload 'shared_prefixes'.*shared_prefix"):
        LLMRouteEnv(workload="shared_prefixes")
