"""The cached prefix that a router sees, under both views of the engines' caches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Run, Signal, Workload
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.engines import ENGINES, EngineName
from tests.sim.strategies import TICK_S, Case, seeds
from tests.sim.vllm_cases import Row, random_vllm_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
APART = 20_000_000
"""From the seeds of the engines' own tests."""
UNLIMITED = 10**6


def replica(**limits: Any) -> Replica:
    settings: dict[str, Any] = {"block_size": 4, "num_blocks": 100, **limits}
    return Replica(ONE_SECOND, scheduler="vllm_v1", **settings)


ELSEWHERE = replica(num_blocks=1000)


def requests(*sent: tuple[float, Row, int]) -> Workload:
    """Returns a workload of (arrival, segments, output)."""
    arrived_at_s, rows, outputs = zip(*sent, strict=True)
    prompts = [sum(tokens for _, tokens in row) for row in rows]
    return Workload(arrived_at_s, prompts, outputs, content=Content.of(rows))


def played(run: Run, placed: Sequence[int]) -> FloatArray:
    """Returns the column at each decision, shape (n_requests, n_replicas)."""
    seen = []
    while not run.done:
        seen.append(run.rows()[:, Signal.CACHED_PREFIX])
        run.place(int(placed[run.request]))
    assert not run.rows()[:, Signal.CACHED_PREFIX].any()
    return np.array(seen)


def shares(case: Case, engine: EngineName, **told: Any) -> FloatArray:
    """Returns a case's column at each decision, shape (n_requests, n_replicas).

    Args:
        case: but for its view.
        engine: that runs it.
        **told: the view, by default the caches as they are.
    """
    view = {"prefix_view": "events", "events_lag_s": 0.0, **told}
    observation = replace(case.options["observation"], **view)
    return played(case.start(engine, observation=observation), case.assignment.tolist())


# A prompt of one block that ends within the first batch, and probes for it that go elsewhere.
A: tuple[float, Row, int] = (0.0, [(0, 4)], 1)


def probes(*at_s: float) -> list[tuple[float, Row, int]]:
    return [(one_s, [(0, 4), (9, 1)], 1) for one_s in at_s]


def probed(
    engine: EngineName,
    sent: Sequence[tuple[float, Row, int]],
    at_s: Sequence[float],
    told: dict[str, Any],
    **limits: Any,
) -> list[float]:
    """Serves requests with one replica and returns what probes at given times see of it."""
    both = sorted([*((*one, 0) for one in sent), *((*one, 1) for one in probes(*at_s))])
    run = ENGINES[engine](
        requests(*(one[:3] for one in both)),
        Cluster((replica(**limits), ELSEWHERE)),
        observation=ObservationConfig(**told),
    )
    column = played(run, [one[3] for one in both])[:, 0]
    return [float(share) for share, one in zip(column, both, strict=True) if one[3]]


@pytest.mark.parametrize(
    ("lag_s", "at_s", "expected"),
    [
        (0.0, (0.0, 0.25), [0.0, 0.8]),  # at 0 the step is still to come
        (1.5, (1.25, 1.5, 1.75), [0.0, 0.0, 0.8]),
    ],
)
def test_what_a_step_registers_shows_after_the_lag(
    vllm_engine: EngineName, lag_s: float, at_s: list[float], expected: list[float]
) -> None:
    told = {"events_lag_s": lag_s, "information": "router", "signal_interval_s": 100.0}
    assert probed(vllm_engine, [A], at_s, told) == pytest.approx(expected)


@pytest.mark.parametrize(("lag_s", "at_s"), [(0.0, (2.25, 2.5, 2.75)), (1.0, (2.75, 3.5, 3.75))])
def test_a_decode_that_takes_a_block_evicts_as_its_step_is_scheduled(
    vllm_engine: EngineName, lag_s: float, at_s: list[float]
) -> None:
    # Of two blocks the second request takes the blank one at 1.5 s and the other at 2.5 s.
    sent: list[tuple[float, Row, int]] = [A, (1.5, [(1, 4)], 3)]
    seen = probed(vllm_engine, sent, at_s, {"events_lag_s": lag_s}, num_blocks=3)
    assert seen == pytest.approx([0.8, 0.8, 0.0])


@pytest.mark.parametrize("lag_s", [0.0, 0.5])
def test_a_block_with_two_copies_is_there_until_both_are_gone(
    vllm_engine: EngineName, lag_s: float
) -> None:
    # Both of the first two compute their last token, so both register it; later ones, at 1.5 and
    # 3.5 s, take a copy each.
    sent: list[tuple[float, Row, int]] = [A, A, (1.5, [(1, 4)], 1), (3.5, [(2, 4)], 1)]
    at_s = [one_s + lag_s for one_s in (1.25, 1.75, 3.25, 3.75)]
    seen = probed(vllm_engine, sent, at_s, {"events_lag_s": lag_s}, num_blocks=3)
    assert seen == pytest.approx([0.8, 0.8, 0.8, 0.0])


def test_the_tree_knows_what_was_sent_at_once_and_nothing_of_evictions(
    vllm_engine: EngineName,
) -> None:
    sent: list[tuple[float, Row, int]] = [A, (0.5, [(1, 8)], 1)]
    at_s = [0.0, 0.25, 9.0]
    tree = probed(vllm_engine, sent, at_s, {"prefix_view": "tree"}, num_blocks=3)
    assert tree == pytest.approx([0.8, 0.8, 0.8])
    events = probed(vllm_engine, sent, at_s, {}, num_blocks=3)
    assert events == pytest.approx([0.0, 0.8, 0.0])


@pytest.mark.parametrize(("tree_blocks", "expected"), [(4, 8 / 13), (3, 4 / 13), (2, 0.0)])
def test_the_tree_forgets_tails_first_and_counts_blocks_that_nobody_shares(
    vllm_engine: EngineName, tree_blocks: int, expected: float
) -> None:
    workload = requests((0.0, [(0, 12)], 1), (1.0, [(1, 11)], 1), (2.0, [(0, 12), (9, 1)], 1))
    told = ObservationConfig(prefix_view="tree", tree_blocks=tree_blocks)
    run = ENGINES[vllm_engine](workload, Cluster((replica(),)), observation=told)
    assert played(run, [0, 0, 0])[:, 0].tolist() == pytest.approx([0.0, 0.0, expected])


def test_each_replica_has_a_tree_of_its_own_blocks_and_rejected_requests_leave_none(
    vllm_engine: EngineName,
) -> None:
    workload = requests(*[(float(i), [(0, 10)], 1) for i in range(6)])
    cluster = Cluster(
        (
            replica(),
            replica(block_size=3),
            replica(num_blocks=3, oversize="reject"),  # holds 8 tokens
            replica(prefix_caching=False),
            Replica(ONE_SECOND, oversize="reject"),
        )
    )
    run = ENGINES[vllm_engine](workload, cluster, observation=ObservationConfig(prefix_view="tree"))
    assert played(run, [0, 1, 2, 3, 4, 0])[-1].tolist() == pytest.approx([0.8, 0.9, 0.0, 0.0, 0.0])


def tokens_of(workload: Workload) -> list[list[tuple[int, int]]]:
    """Returns stream and place of each token of each prompt."""
    n = len(workload)
    rows = [[]] * n if workload.content is None else workload.content.rows()
    prompts = workload.prompt_tokens.tolist()
    return [
        [
            (stream, place)
            for stream, length in row or [(-n - i - 1, prompts[i])]
            for place in range(length)
        ]
        for i, row in enumerate(rows)
    ]


def in_common(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> int:
    """Returns how many leading tokens two prompts have in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@seeds(60)
def test_an_endless_tree_finds_what_the_prompts_sent_there_have_in_common(
    seed: int, vllm_engine: EngineName
) -> None:
    case = random_vllm_case(APART + seed)
    prompts, fits = tokens_of(case.workload), []
    run = case.start(vllm_engine)
    seen = shares(case, vllm_engine, prefix_view="tree", tree_blocks=UNLIMITED)
    for request, prompt in enumerate(prompts):
        fits.append(run.fits()[case.assignment[request]])
        run.place(int(case.assignment[request]))
        for index, one in enumerate(case.cluster):
            size, known = one.block_size, 0
            if one.scheduler == "vllm_v1" and one.prefix_caching:
                sent = (e for e in range(request) if case.assignment[e] == index and fits[e])
                most = max((in_common(prompts[e], prompt) for e in sent), default=0)
                known = min(most // size, (len(prompt) - 1) // size)
            assert seen[request, index] == pytest.approx(known * size / len(prompt))


@seeds(60)
def test_a_larger_tree_finds_all_that_a_smaller_one_does(
    seed: int, vllm_engine: EngineName
) -> None:
    case = random_vllm_case(2 * APART + seed)
    seen = [
        shares(case, vllm_engine, prefix_view="tree", tree_blocks=blocks)
        for blocks in (1, 2, 7, 40, UNLIMITED)
    ]
    assert (np.diff(seen, axis=0) >= 0).all()


@seeds(60)
def test_engines_find_no_prompts_that_were_not_sent_there(
    seed: int, vllm_engine: EngineName
) -> None:
    case = random_vllm_case(3 * APART + seed)
    if case.workload.content is not None:
        # What was an earlier output is a text that the user has, so that only prompts are shared.
        rows = [
            [(stream if stream >= 0 else UNLIMITED - stream, tokens) for stream, tokens in row]
            for row in case.workload.content.rows()
        ]
        case = case._replace(workload=replace(case.workload, content=Content.of(rows)))
    most = shares(case, vllm_engine, prefix_view="tree", tree_blocks=UNLIMITED)
    for lag_s in (0.0, 0.01, 0.5):
        assert (shares(case, vllm_engine, events_lag_s=lag_s) <= most).all()


@seeds(60)
def test_late_events_show_a_prompt_what_the_same_prompt_was_shown_then(
    seed: int, vllm_engine: EngineName
) -> None:
    case = random_vllm_case(4 * APART + seed, exact=True)
    lag_s = TICK_S * float(np.random.default_rng(seed).choice([1, 3, 40, 500]))
    n, workload = len(case.workload), case.workload
    # Each request is followed, a lag later, by a probe with the same prompt that goes elsewhere.
    arrived_at_s = np.concatenate([workload.arrived_at_s, workload.arrived_at_s + lag_s])
    order = np.argsort(arrived_at_s, kind="stable")
    place = np.argsort(order)
    rows = [[]] * n if workload.content is None else workload.content.rows()
    moved = [
        [(stream if stream >= 0 else ~int(place[~stream]), tokens) for stream, tokens in row]
        for row in rows
    ]
    twice = Workload(
        arrived_at_s[order],
        np.tile(workload.prompt_tokens, 2)[order],
        np.tile(workload.output_tokens, 2)[order],
        content=Content.of([(moved * 2)[one] for one in order]),
    )
    aside = np.full(n, len(case.cluster))
    case = case._replace(
        workload=twice,
        cluster=Cluster((*case.cluster, ELSEWHERE)),
        assignment=np.concatenate([case.assignment, aside])[order],
        options={"observation": case.options["observation"]},
    )
    then = shares(case, vllm_engine)[place[:n], :-1]
    late = shares(case, vllm_engine, events_lag_s=lag_s)[place[n:], :-1]
    np.testing.assert_array_equal(late, then)
