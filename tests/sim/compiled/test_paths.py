"""The tree of contents tells the same blocks apart as a comparison of all tokens does."""

import numpy as np
import pytest

from llmroute_gym.sim import Workload
from llmroute_gym.sim.compiled.paths import Paths, paths_of
from llmroute_gym.sim.content import Content
from tests.sim.strategies import seeds
from tests.sim.vllm_cases import random_vllm_case

Token = tuple[int, int]


def tokens_of(workload: Workload, request: int) -> list[Token]:
    """Returns a request's prompt and output as (stream, position) pairs."""
    assert workload.content is not None
    row = workload.content.rows()[request]
    segments = row or [(10**15 + request, int(workload.prompt_tokens[request]))]
    output = (-request - 1, int(workload.output_tokens[request]))
    return [(stream, at) for stream, length in (*segments, output) for at in range(length)]


def names_of(paths: Paths, request: int, blocks: int) -> list[tuple[int, int]]:
    """Returns what the tree calls each block of a request."""
    names: list[tuple[int, int]] = []
    for edge in paths.edges[paths.offsets[request] : paths.offsets[request + 1]].tolist():
        assert paths.first[edge] == len(names)
        names += [(edge, block) for block in range(paths.first[edge], paths.last[edge])]
    assert len(names) == paths.private[request]
    return names[:blocks] + [(-request - 1, block) for block in range(len(names), blocks)]


def with_content(seed: int) -> Workload:
    """Draws requests of which some share contents."""
    for attempt in range(seed, seed + 100):
        workload = random_vllm_case(attempt, n_requests=25).workload
        if workload.content is not None:
            return workload
    raise AssertionError("no case has contents")


@seeds(40)
def test_blocks_have_one_name_if_and_only_if_all_tokens_up_to_their_end_are_equal(
    seed: int,
) -> None:
    workload = with_content(7_000_000 + 100 * seed)
    for block_size in (1, 4, 16):
        paths = paths_of(workload, block_size)
        seen: dict[tuple[Token, ...], tuple[int, int]] = {}
        names = set()
        for request in range(len(workload)):
            tokens = tokens_of(workload, request)
            blocks = len(tokens) // block_size
            for block, name in enumerate(names_of(paths, request, blocks)):
                content = tuple(tokens[: (block + 1) * block_size])
                assert seen.setdefault(content, name) == name
                names.add(name)
        assert len(names) == len(seen)


def test_an_output_is_written_by_its_request() -> None:
    content = Content.of([[(0, 8)], [(0, 8), (-1, 6), (5, 4)], [(0, 8), (-1, 3)]])
    workload = Workload(np.arange(3.0), np.array([8, 18, 11]), np.array([9, 2, 2]), content=content)
    paths = paths_of(workload, 2)
    of_output = paths.first[paths.writer == 0]
    assert sorted(of_output.tolist()) == [4, 5]  # parted where the third request ends
    assert paths.last.max() == 7
    assert paths.private.tolist() == [7, 7, 5]


def test_what_nobody_shares_is_no_edge() -> None:
    content = Content.of([[(0, 40)], [(1, 40)], []])
    workload = Workload(np.arange(3.0), np.full(3, 40), np.full(3, 5), content=content)
    paths = paths_of(workload, 16)
    assert len(paths.first) == 0
    assert paths.private.tolist() == [0, 0, 0]


@pytest.mark.parametrize("block_size", [1, 16])
def test_paths_are_kept_with_their_workload(block_size: int) -> None:
    workload = with_content(7_900_000)
    assert paths_of(workload, block_size) is paths_of(workload, block_size)
    assert paths_of(workload, block_size) is not paths_of(workload, block_size + 1)
