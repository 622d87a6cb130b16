"""What prompts are made of: checked, and right after every cut and change of order."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.content import Content, block_content
from llmroute_gym.sim.workload import Workload

Row = list[tuple[int, int]]

# Two chats, the second with a prompt of its own in between; request 4 reads outputs of both.
ROWS: list[Row] = [
    [(0, 20)],
    [(0, 20), (-1, 5), (1, 10)],
    [],
    [(7, 30)],
    [(7, 30), (-4, 3), (-1, 5), (-2, 6)],
]
PROMPTS = [20, 35, 999, 30, 44]
OUTPUTS = [5, 6, 7, 8, 9]


def chats(times: list[float] | None = None) -> Workload:
    arrived_at_s = np.arange(5.0) if times is None else np.array(times)
    return Workload(arrived_at_s, np.array(PROMPTS), np.array(OUTPUTS), Content.of(ROWS))


def rows_of(workload: Workload) -> list[Row]:
    assert workload.content is not None
    return workload.content.rows()


def tokens(row: Row, names: dict[int, object]) -> list[object]:
    """A prompt's tokens, each named by its stream's name and its position."""
    return [(names.get(stream, stream), i) for stream, length in row for i in range(length)]


def test_content_holds_what_it_was_given() -> None:
    content = Content.of(ROWS)
    assert content.rows() == ROWS
    assert len(content) == 5
    assert content.offsets.tolist() == [0, 1, 4, 4, 5, 9]
    assert {part.dtype for part in (content.offsets, content.streams, content.lengths)} == {
        np.dtype(np.int64)
    }
    with pytest.raises(ValueError, match="read-only"):
        content.streams[0] = 1
    assert repr(content) == "Content(5 requests, 9 segments)"
    assert pickle.loads(pickle.dumps(content)).rows() == ROWS
    assert rows_of(chats().with_qps(3.0)) == ROWS
    assert rows_of(replace(chats(), session=np.arange(5))) == ROWS
    assert Content.of([[], []]).rows() == [[], []]


def test_input_arrays_stay_the_callers() -> None:
    streams = np.array([3])
    content = Content(np.array([0, 1]), streams, np.array([5]))
    streams[0] = 4
    assert content.rows() == [[(3, 5)]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[(0, 20), (1, 0)]], "segment 1 of request 0 of the content has 0 tokens"),
        ([[(1, 3)], [(0, -2)]], "segment 0 of request 1 of the content has -2 tokens"),
        ([[(0, 2**31)]], "has 2147483648 tokens; expected an integer from 1 to 2147483647"),
        ([[(0, 1.5)]], r"pairs of 64-bit integers, got \(0, 1.5\) in it"),
        ([[(0, 1), (0,)]], r"got \(0,\) in it"),
        ([[(0, 1), "ab"]], r"got 'ab' in it"),
        ([[(2**63, 1)]], r"got \(9223372036854775808, 1\) in it"),
    ],
)
def test_wrong_rows_are_named(rows: list[Row], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Content.of(rows)


@pytest.mark.parametrize(
    ("offsets", "streams", "lengths", "words"),
    [
        ([0, 1], [1, 2], [3], "has 2 streams and 1 lengths"),
        ([0, 1], [1, 2], [3, 4], r"offsets must go from 0 to the number of segments \(2\)"),
        ([1, 2], [1, 2], [3, 4], "offsets must go from 0"),
        ([], [], [], "offsets must go from 0"),
        ([0, 2, 1, 2], [1, 2], [3, 4], "offsets must not fall"),
        ([0, 1], [0.5], [3], "content.streams must be one-dimensional and hold integers"),
        ([[0, 1]], [0], [3], "content.offsets must be one-dimensional"),
    ],
)
def test_wrong_arrays_are_named(
    offsets: list[int], streams: list[int], lengths: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Content(offsets, streams, lengths)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "row", "words"),
    [
        (1, [(0, 30)], "content of request 1 has 30 tokens, but its prompt has 35; make its"),
        (1, [(-9, 5), (0, 30)], "stream -9, the output of request 8, which is not among the 5"),
        (1, [(-(2**63), 5), (0, 30)], "which is not among the 5 requests"),
        (1, [(-2, 5), (0, 30)], "request 1 is of stream -2, the output of request 1, which does"),
        (1, [(0, 30), (-4, 5)], "output of request 3, which does not arrive earlier"),
        (1, [(0, 29), (-1, 6)], "has 6 tokens; expected at most that request's 5 output tokens"),
    ],
)
def test_a_workload_refuses_content_that_is_not_its_own(
    request_: int, row: Row, words: str
) -> None:
    rows = [*ROWS[:request_], row, *ROWS[request_ + 1 :]]
    with pytest.raises(InputError, match=words):
        Workload(np.arange(5.0), np.array(PROMPTS), np.array(OUTPUTS), Content.of(rows))


def test_a_workload_needs_content_for_each_request() -> None:
    with pytest.raises(InputError, match="content has 1 prompts for 2 requests"):
        Workload(np.arange(2.0), np.ones(2), np.ones(2), Content.of([[]]))
    with pytest.raises(InputError, match=r"content must be a Content, got \[\[\]\]; build it"):
        Workload(np.arange(1.0), np.ones(1), np.ones(1), [[]])  # type: ignore[arg-type]


def test_an_output_comes_before_who_reads_it_in_order_of_arrival() -> None:
    # Request 0 arrives last, so that request 1 cannot know its output.
    with pytest.raises(InputError, match="output of request 0, which does not arrive earlier"):
        chats([9.0, 1.0, 2.0, 3.0, 4.0])
    # Equal times keep their order.
    assert rows_of(chats([0.0] * 5)) == ROWS


def test_requests_out_of_order_take_their_outputs_names_along() -> None:
    mixed = chats([1.0, 3.0, 0.0, 2.0, 4.0])  # by arrival: 2, 0, 3, 1, 4
    assert rows_of(mixed) == [
        [],
        [(0, 20)],
        [(7, 30)],
        [(0, 20), (-2, 5), (1, 10)],
        [(7, 30), (-3, 3), (-2, 5), (-4, 6)],
    ]
    assert mixed.prompt_tokens.tolist() == [999, 20, 30, 35, 44]


def test_cut_off_outputs_stay_shared_among_those_left() -> None:
    rows = [[(0, 8)], [(0, 8), (-1, 4)], [(0, 8), (-1, 4), (-2, 4)], [(0, 8), (-1, 2)]]
    whole = Workload(np.arange(4.0), np.array([8, 12, 16, 10]), np.full(4, 4), Content.of(rows))
    assert rows_of(whole.slice(1)) == [
        [(0, 8), (1, 4)],
        [(0, 8), (1, 4), (-1, 4)],
        [(0, 8), (1, 2)],
    ]
    assert rows_of(whole.slice(2)) == [[(0, 8), (1, 4), (2, 4)], [(0, 8), (1, 2)]]
    assert rows_of(whole.slice(0, 2)) == rows[:2]


def test_new_streams_are_free_whatever_numbers_are_taken() -> None:
    top = 2**63 - 1
    rows: list[Row] = [[(5, 8)], [(top, 8), (-1, 4)], [(0, 8), (-1, 4)]]
    whole = Workload(np.arange(3.0), np.array([8, 12, 12]), np.full(3, 4), Content.of(rows))
    assert rows_of(whole.slice(1)) == [[(top, 8), (1, 4)], [(0, 8), (1, 4)]]


@pytest.mark.parametrize("seed", range(20))
def test_cuts_and_orders_keep_which_tokens_are_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    outputs = rng.integers(2, 6, n)
    rows: list[Row] = []
    for i in range(n):
        streams = rng.integers(-i, 4, rng.integers(0, 5)).tolist() if i else []
        rows.append([(s, int(rng.integers(1, 1 + (outputs[~s] if s < 0 else 6)))) for s in streams])
    prompts = np.array([sum(length for _, length in row) or 3 for row in rows])
    whole = Workload(np.arange(float(n)), prompts, outputs, Content.of(rows))
    start, stop = sorted(rng.choice(n + 1, 2, replace=False).tolist())
    part = whole.slice(start, stop)
    # A token's name in the part must stand for one token of the whole, and the reverse.
    pairs = set()
    for i, row in enumerate(rows_of(part)):
        before, after = tokens(rows[start + i], {}), tokens(row, {})
        pairs |= set(zip(before, after, strict=True))
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    for old, new in pairs:
        if (stream := old[0]) < 0 and ~stream >= start:  # type: ignore[index]
            assert new[0] == stream + start  # type: ignore[index]
    # Given in another order, with the names that go with it, it is the same workload.
    order = rng.permutation(n)
    place = np.argsort(order)
    given = [[(s if s >= 0 else ~int(place[~s]), k) for s, k in rows[i]] for i in order]
    times = np.arange(float(n))[order]
    mixed = Workload(times, prompts[order], outputs[order], Content.of(given))
    assert rows_of(mixed) == rows


def test_prompts_are_cut_with_their_content() -> None:
    cut = Content.of(ROWS).cut(22)
    assert cut.rows() == [[(0, 20)], [(0, 20), (-1, 2)], [], [(7, 22)], [(7, 22)]]
    assert Content.of(ROWS).cut(50).rows() == ROWS
    assert Content.of([[], []]).cut(3).rows() == [[], []]


def test_hashes_of_blocks_are_streams_and_the_last_block_is_cut() -> None:
    hashes = np.array([4, 9, 4, -3, 8, -3])
    content = block_content(hashes, np.array([2, 0, 4]), np.array([20, 5, 64]), 16)
    assert content.rows() == [[(4, 16), (9, 4)], [], [(4, 16), (12, 16), (8, 16), (12, 16)]]


def test_checks_of_large_workloads_are_fast() -> None:
    n, segments = 200_000, 24
    rng = np.random.default_rng(0)
    streams = rng.integers(0, 10**6, n * segments)
    streams[segments * 100 :: 7] = -rng.integers(1, 100, streams[segments * 100 :: 7].size)
    content = Content(np.arange(n + 1) * segments, streams, np.full(n * segments, 16))
    workload = Workload(np.arange(float(n)), np.full(n, 16 * segments), np.full(n, 16), content)
    began = time.perf_counter()
    workload.with_arrivals(workload.arrived_at_s + 1.0)
    assert time.perf_counter() - began < 2e-6 * n
