"""Blocks of the reference engine's memory."""

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.reference.block_names import BlockNames
from llmroute_gym.sim.reference.blocks import BlockPool
from llmroute_gym.sim.reference.request import Request

NAMES = BlockNames({}, [(0, 33)], output=-1)


def test_what_was_admitted_comes_back() -> None:
    pool, request = BlockPool(10, 16, 1), Request(0, 0.0, 33, 5, NAMES)
    pool.admit(request)
    assert (pool.used, pool.holders, request.blocks) == (3, 1, 3)
    pool.free(request)
    assert (pool.used, pool.holders, request.blocks) == (0, 0, 0)


def test_blocks_that_are_not_in_use_are_a_fault_of_the_engine() -> None:
    with pytest.raises(RuntimeError, match="request 7 frees blocks that are not in use") as error:
        BlockPool(10, 16, 1).free(Request(7, 0.0, 33, 5, NAMES, blocks=3))
    # Commands take an InputError for the user's mistake, and hide where it came from.
    assert not isinstance(error.value, InputError)
