"""Conversations: prompts hold what was said before, open and closed loop, at the rate asked for."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, simulate
from llmroute_gym.errors import InputError
from llmroute_gym.sim.conversations import AgentLoop, Conversations, MultiTurn
from llmroute_gym.sim.sources import prompt_source
from llmroute_gym.sim.workload import Workload
from tests.sim.endless_cache import cacheable_share

Rows = list[list[tuple[int, int]]]


def rows_of(workload: Workload) -> Rows:
    assert workload.content is not None
    return workload.content.rows()


def sessions_of(workload: Workload) -> list[list[int]]:
    """The requests of each conversation, in order of arrival."""
    assert workload.session is not None
    found: dict[int, list[int]] = defaultdict(list)
    for request, session in enumerate(workload.session.tolist()):
        found[session].append(request)
    return list(found.values())


@pytest.mark.parametrize(
    "source", [MultiTurn(3.0), AgentLoop(3.0), MultiTurn(3.0, system_tokens=0)]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_holds_the_prompt_and_the_output_before_it(
    source: Conversations, seed: int
) -> None:
    workload = source.sample(400, np.random.default_rng(seed))
    rows = rows_of(workload)
    turns = 0
    for requests in sessions_of(workload):
        for before, request in pairwise(requests):
            output = (~before, int(workload.output_tokens[before]))
            assert rows[request][:-1] == [*rows[before], output]
            assert rows[request][-1][0] >= 0
            turns += 1
    assert turns > 200
    if source.system_tokens:
        assert {row[0] for row in rows} == {(0, source.system_tokens)}
    messages = [row[-1][0] for row in rows]
    assert len(set(messages)) == len(messages)


def test_conversations_that_began_before_are_cut_at_time_zero() -> None:
    workload = MultiTurn(3.0, turns_min=5, turns_max=5).sample(300, np.random.default_rng(0))
    lengths = [len(row) for row in rows_of(workload)]
    opening = [lengths[requests[0]] for requests in sessions_of(workload)]
    assert set(opening) == {2, 4, 6, 8, 10}
    assert workload.arrived_at_s[0] < 3.0
    assert max(lengths) == 10


@pytest.mark.parametrize("source", [MultiTurn(4.0), AgentLoop(4.0)])
def test_the_rate_is_as_asked_for_from_the_start(source: Conversations) -> None:
    drawn = [source.sample(200, np.random.default_rng(seed)) for seed in range(60)]
    # The mean time of the 100th and of the last arrival, at 4 requests/s.
    assert np.mean([one.arrived_at_s[99] for one in drawn]) == pytest.approx(25.0, rel=0.08)
    assert np.mean([one.arrived_at_s[199] for one in drawn]) == pytest.approx(50.0, rel=0.08)


def test_pauses_of_the_open_loop_allow_for_the_answer() -> None:
    source = MultiTurn(3.0, sigma=0.0, think_s=10.0, token_s=0.05, output_tokens=100.0)
    workload = source.sample(3000, np.random.default_rng(0))
    pauses = np.concatenate(
        [np.diff(workload.arrived_at_s[requests]) for requests in sessions_of(workload)]
    )
    assert pauses.min() > 5.0
    assert pauses.mean() == pytest.approx(15.0, rel=0.05)
    assert set(workload.output_tokens.tolist()) == {100}
    assert workload.after is None


@pytest.mark.parametrize("name", ["multi_turn", "agent_loop"])
def test_in_a_closed_loop_requests_wait_for_the_answer(name: str) -> None:
    options: dict[str, Any] = {"system_tokens": 100, "qps": 1.0, "closed_loop": True}
    workload = prompt_source(name, **options).sample(60, np.random.default_rng(0))
    opened = prompt_source(name, **{**options, "closed_loop": False})
    assert rows_of(opened.sample(60, np.random.default_rng(0))) == rows_of(workload)
    assert workload.after is not None
    assert workload.gap_s is not None
    for requests in sessions_of(workload):
        assert workload.after[requests].tolist() == [-1, *requests[:-1]]
        assert (workload.gap_s[requests[1:]] > 0).all()
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=2)
    outcome = simulate(workload, cluster, "lor", engine="reference")
    waits = workload.after >= 0
    before = outcome.finished_at_s[workload.after[waits]]
    gaps = outcome.arrived_at_s[waits] - before
    np.testing.assert_allclose(gaps, workload.gap_s[waits], atol=1e-6)


@pytest.mark.parametrize(
    ("source", "prompt", "output", "share"),
    [(MultiTurn(5.0), 2017, 200, 0.93), (AgentLoop(5.0), 5892, 94, 0.93)],
)
def test_the_defaults_are_as_documented(
    source: Conversations, prompt: int, output: int, share: float
) -> None:
    drawn = [source.sample(5000, np.random.default_rng(seed)) for seed in range(8)]
    assert np.mean([one.prompt_tokens.mean() for one in drawn]) == pytest.approx(prompt, rel=0.02)
    assert np.mean([one.output_tokens.mean() for one in drawn]) == pytest.approx(output, rel=0.02)
    assert np.mean([one.qps for one in drawn]) == pytest.approx(5.0, rel=0.03)
    assert cacheable_share(drawn[0]) == pytest.approx(share, abs=0.005)


def test_one_seed_gives_one_workload() -> None:
    source = AgentLoop(2.0)
    one, two = (source.sample(50, np.random.default_rng(3)) for _ in range(2))
    assert one.arrived_at_s.tolist() == two.arrived_at_s.tolist()
    assert rows_of(one) == rows_of(two)
    faster = source.with_qps(8.0).sample(50, np.random.default_rng(3))
    assert faster.arrived_at_s[-1] < one.arrived_at_s[-1]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("multi_turn", {"turns_min": 0}, "turns_min must be an integer >= 1, got 0"),
        ("multi_turn", {"turns_max": 1}, "turns_max must be at least turns_min=2, got 1"),
        ("multi_turn", {"think_s": -1}, "think_s must be a finite number >= 0, got -1"),
        ("multi_turn", {"system_tokens": -1}, "system_tokens must be an integer >= 0, got -1"),
        ("multi_turn", {"closed_loop": 1}, "closed_loop must be True or False, got 1"),
        ("agent_loop", {"call_tokens": 0.5}, "call_tokens must be a finite number >= 1, got 0.5"),
        ("agent_loop", {"steps_max": 2.5}, "steps_max must be an integer >= 1, got 2.5"),
        ("agent_loop", {"sigma": float("nan")}, "sigma must be a finite number >= 0, got nan"),
        ("agent_loop", {"think_s": 2.0}, "unknown option of workload source 'agent_loop'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prompt_source(name, **{"qps": 1.0, **options})
