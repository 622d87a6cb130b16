"""What routers see: engine against engine on random cases, and small runs worked by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Signal, Workload
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.engines import ENGINES, EngineName
from llmroute_gym.sim.identities import identities
from llmroute_gym.sim.run import Run
from tests.sim.strategies import seeds
from tests.sim.test_engines_agree import APART, assert_stepped_alike
from tests.sim.view_cases import random_view_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
VLLM = Replica(ONE_SECOND, scheduler="vllm_v1", num_blocks=100, block_size=4)
OWN = (
    Signal.WAITING,
    Signal.RUNNING,
    Signal.PENDING_PROMPT_TOKENS,
    Signal.CONTEXT_TOKENS,
    Signal.IN_FLIGHT,
    Signal.UNCACHED_TOKENS,
    Signal.UNCACHED_PAIRS,
)
"""Sums over requests, which several gateways share among them."""


@seeds(320)
def test_views_agree(seed: int) -> None:
    assert_stepped_alike(random_view_case(20 * APART + seed))


def start(engine: EngineName, workload: Workload, *replicas: Replica, **told: Any) -> Run:
    return ENGINES[engine](workload, Cluster(replicas), observation=ObservationConfig(**told))


def seen(run: Run, placed: list[int], *signals: Signal) -> FloatArray:
    """Places requests; returns columns at each decision and at the end, (n, n_replicas, ...)."""
    rows = [run.rows()]
    for replica in placed:
        run.place(replica)
        rows.append(run.rows())
    return np.array(rows)[..., list(signals)]


@pytest.mark.parametrize("information", ["engine", "router", "metrics", "oracle"])
def test_requests_in_flight_are_those_sent_and_not_ended(
    information: str, vllm_engine: EngineName
) -> None:
    # Batches of 1 s. A: 0 to 3 s, B: 0.5, batched at 1, first token at 2, the second at 3.
    workload = Workload([0.0, 0.5, 2.5, 3.5], [8, 8, 8, 8], [3, 2, 1, 1])
    run = start(vllm_engine, workload, VLLM, VLLM, information=information, signal_interval_s=9.0)
    found = seen(run, [0, 0, 1, 1], Signal.IN_FLIGHT, Signal.NOW_S)
    assert found[..., 0].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [0, 0]]
    assert found[:4, 0, 1].tolist() == [0.0, 0.5, 2.5, 3.5]


@pytest.mark.parametrize("prefix_view", ["events", "tree"])
def test_what_was_cached_when_it_was_sent_counts_until_the_first_token(
    prefix_view: str, vllm_engine: EngineName
) -> None:
    # A's 10 tokens leave 2 full blocks of 4, B begins with 8 of them and has 14, so u = 6. Both
    # are sent to the other replica as well, which knows nothing of B's.
    content = Content.of([[(0, 10)], [(0, 10), (1, 4)], [(0, 10), (1, 4)], [(2, 5)]])
    workload = Workload([0.0, 3.0, 3.25, 3.5], [10, 14, 14, 5], [2, 9, 9, 1], content=content)
    run = start(vllm_engine, workload, VLLM, VLLM, prefix_view=prefix_view)
    signals = Signal.UNCACHED_TOKENS, Signal.UNCACHED_PAIRS, Signal.HIT_RATE, Signal.VIEW_TOKENS
    found = seen(run, [0, 0, 1], *signals)
    assert found[1, 0, :2].tolist() == [0.0, 0.0]  # A's first token came at 1 s
    assert found[2, 0, :2].tolist() == [6.0, 6 * (14 - 3)]
    assert found[3, :, 0].tolist() == [6.0, 14.0]
    assert found[3, :, 1].tolist() == [66.0, 14 * 7]
    # At 3.5 s the first replica has found 8 of 24 tokens, the other none of 14.
    assert found[3, :, 2].tolist() == pytest.approx([8 / 24, 0.0])
    sent = [[0, 0], [8, 0], [12, 0], [12, 12]]
    assert found[..., 3].tolist() == (sent if prefix_view == "tree" else [[0, 0]] * 4)


def test_a_tree_grows_up_to_its_size_whatever_the_prompts_are(vllm_engine: EngineName) -> None:
    workload = Workload([0.0, 1.0, 2.0], [10, 10, 10], [1, 1, 1])
    run = start(vllm_engine, workload, VLLM, prefix_view="tree", tree_blocks=3)
    found = seen(run, [0, 0, 0], Signal.VIEW_TOKENS, Signal.CACHED_PREFIX)
    assert found[:, 0, 0].tolist() == [0, 8, 12, 12]
    assert not found[..., 1].any()


def test_heads_are_named_by_their_first_256_tokens() -> None:
    rows = [
        [(0, 300)],
        [(0, 256), (1, 10)],  # the same head
        [(0, 200), (1, 100)],
        [(0, 200), (1, 57)],  # the same, 56 of its last segment
        [(0, 200)],  # a shorter one
        [(0, 200)],
        [(0, 100), (0, 100)],
        [],
        [],
    ]
    prompts = [sum(tokens for _, tokens in row) or 7 for row in rows]
    n = len(rows)
    workload = Workload(np.arange(n) * 1.0, prompts, [1] * n, content=Content.of(rows))
    names = identities(workload)[:, 1].tolist()
    assert min(names) >= 0
    alike = [[names[i] == names[j] for j in range(n)] for i in range(n)]
    same = [{0, 1}, {2, 3}, {4, 5}, {6}, {7}, {8}]
    assert alike == [[any({i, j} <= group for group in same) for j in range(n)] for i in range(n)]


def test_names_stand_in_all_rows_and_are_minus_one_where_there_are_none(
    vllm_engine: EngineName,
) -> None:
    bare = Workload([0.0, 1.0], [5, 5], [1, 1])
    named = replace(bare, session=[7, 3], content=Content.of([[(0, 5)], [(0, 5)]]))
    for workload, expected in ((bare, [-1.0, -1.0]), (named, [7.0, 3.0])):
        found = seen(
            start(vllm_engine, workload, VLLM, VLLM), [0, 1], Signal.SESSION, Signal.PROMPT_HEAD
        )
        assert found[:2, 0, 0].tolist() == found[:2, 1, 0].tolist() == expected
        assert found[2].tolist() == [[-1.0, -1.0]] * 2  # there is no request any more
        assert found[0, 0, 1] == found[1, 1, 1] == (0.0 if workload.content else -1.0)


def test_metrics_are_polled_and_own_counts_are_fresh(engine: EngineName) -> None:
    replica = Replica(ONE_SECOND, chunk_size=8, max_batch=1, speed=1.0)
    workload = Workload([0.0, 0.25, 0.5, 2.25, 2.5], [4] * 5, [9] * 5)
    run = start(engine, workload, replica, information="metrics", signal_interval_s=2.0)
    columns = Signal.WAITING, Signal.RUNNING, Signal.PENDING_PROMPT_TOKENS, Signal.IN_FLIGHT
    found = seen(run, [0] * 4, *columns)[:, 0]
    assert found.tolist() == [
        [0, 0, 0, 0],
        [0, 0, 4, 1],
        [0, 0, 8, 2],
        [2, 1, 8, 3],  # read at 2 s: one runs, two wait
        [2, 1, 12, 4],
    ]


def test_gateways_poll_at_times_of_their_own(engine: EngineName) -> None:
    # Nobody ends. Decision d is at d / 2 + 1 / 8 s. Gateway 0 polls at 2 and 4 s, when 4 and 8
    # requests have been sent, and decides when d is even; gateway 1 at 1 and 3 s: 2 and 6 requests.
    replica = Replica(ONE_SECOND, chunk_size=8, max_batch=1)
    n = 10
    workload = Workload(np.arange(n) / 2 + 0.125, [4] * n, [99] * n)
    run = start(engine, workload, replica, signal_interval_s=2.0, gateways=2)
    found = seen(run, [0] * (n - 1), Signal.WAITING, Signal.RUNNING)[:, 0].sum(1)
    polls = [0, 0, 0, 2, 4, 2, 4, 6, 8, 6]
    assert found.tolist() == polls


def test_gateways_count_their_own_and_together_all(vllm_engine: EngineName) -> None:
    told = {"information": "router", "gateways": 3}
    workload = Workload(np.arange(12) / 4, np.arange(12) + 5, [6] * 12)
    run, all_run = (
        start(vllm_engine, workload, VLLM, VLLM, **{**told, "gateways": g}) for g in (3, 1)
    )
    sums = []
    for decision in range(12):
        mine = run.rows()
        sent = [d for d in range(decision) if d % 3 == decision % 3]
        assert mine[:, Signal.IN_FLIGHT].sum() <= len(sent)
        rate = np.exp((np.array(sent) - decision) / 4 / 30).sum() / 30 / 2 if sent else 0.0
        assert mine[0, Signal.ARRIVAL_RATE] == pytest.approx(rate)
        since = 0.75 if sent else decision / 4
        assert mine[0, Signal.SINCE_LAST_ARRIVAL_S] == pytest.approx(since)
        sums.append((mine[:, list(OWN)], all_run.rows()[:, list(OWN)]))
        run.place(decision % 2)
        all_run.place(decision % 2)
    assert all((mine <= everyone).all() for mine, everyone in sums)
    assert any((mine < everyone).any() for mine, everyone in sums)


def test_rounds_are_counted_in_a_gateways_own_decisions(engine: EngineName) -> None:
    workload = Workload(np.arange(6) * 1.0, [4] * 6, [1] * 6)
    replica = Replica(ONE_SECOND)
    run = start(engine, workload, replica, replica, gateways=2)
    found = seen(run, [0, 1, 0, 1, 1, 0], Signal.ROUNDS_SINCE_CHOSEN)[..., 0] * 2
    assert found[:6].tolist() == [[2, 1], [2, 1], [1, 2], [3, 1], [1, 3], [4, 1]]


def test_a_gateway_has_a_tree_of_its_own(vllm_engine: EngineName) -> None:
    workload = Workload(np.arange(4) * 0.125, [9] * 4, [1] * 4, content=Content.of([[(0, 9)]] * 4))
    run = start(vllm_engine, workload, VLLM, prefix_view="tree", gateways=2)
    found = seen(run, [0] * 4, Signal.CACHED_PREFIX, Signal.VIEW_TOKENS)[:4, 0]
    assert found[:, 0] == pytest.approx([0.0, 0.0, 8 / 9, 8 / 9])
    assert found[:, 1].tolist() == [0, 0, 8, 8]


def test_a_hidden_speed_is_one(engine: EngineName) -> None:
    workload = Workload([0.0], [4], [1])
    fast = Replica(ONE_SECOND, speed=2.0)
    for hidden, speed in ((False, 2.0), (True, 1.0)):
        run = start(engine, workload, fast, speed_hidden=hidden)
        assert run.rows()[0, Signal.SPEED] == speed
        run.place(0)
        assert run.now_s == 0.5
