"""Names of blocks: equal exactly where all tokens up to the block's end are."""

import numpy as np
import pytest

from llmroute_gym.sim.reference.block_names import BlockNames, Names, block_names
from tests.sim.strategies import seeds
from tests.sim.vllm_cases import random_vllm_case


@seeds(40)
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_names_are_equal_where_tokens_are(seed: int, block_size: int) -> None:
    workload = random_vllm_case(seed).workload
    rows = [[]] * len(workload) if workload.content is None else workload.content.rows()
    rng = np.random.default_rng(seed)
    known: dict[tuple[tuple[int, int], ...], int] = {}
    for index, names in enumerate(block_names(workload)):
        prompt, output = workload.prompt_tokens[index], workload.output_tokens[index]
        segments = rows[index] or [(10**6 + index, int(prompt))]
        tokens = [
            (stream, place)
            for stream, length in [*segments, (-(index + 1), int(output))]
            for place in range(length)
        ]
        full = len(tokens) // block_size
        names.leading(int(rng.integers(0, full + 1)), block_size)  # found out in two parts
        for block, name in enumerate(names.leading(full, block_size), start=1):
            assert known.setdefault(tuple(tokens[: block * block_size]), name) == name
    assert len(set(known.values())) == len(known)


def test_names_tell_how_much_of_each_stream_there_is() -> None:
    names = Names()
    rows = [[(0, 2), (1, 2)], [(0, 3), (1, 1)], [(0, 2), (1, 1), (2, 1)], [(0, 4)]]
    assert len({BlockNames(names, row, output=-1).leading(1, 4)[0] for row in rows}) == 4


def test_blocks_of_other_sizes_have_other_names() -> None:
    names = BlockNames({}, [(0, 12)], output=-1)
    assert not {*names.leading(3, 4)} & {*names.leading(2, 6)}
