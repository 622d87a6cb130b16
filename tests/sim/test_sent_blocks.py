"""The index of the blocks that were sent to each replica."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmroute_gym.sim.sent_blocks import SentBlocks

PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=6)), max_size=40
)


def chained(tokens: list[int]) -> list[int]:
    """Returns names of blocks of one token, equal where they and all before are equal."""
    return [hash((len(tokens[: i + 1]), *tokens[: i + 1])) for i in range(len(tokens))]


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 8))
def test_it_knows_what_one_list_per_replica_would_know(
    prompts: list[tuple[int, list[int]]], most: int
) -> None:
    index = SentBlocks(4, most)
    kept: list[list[int]] = [[] for _ in range(4)]
    for replica, tokens in prompts:
        names = chained(tokens)
        known = [next((i for i, n in enumerate(names) if n not in k), len(names)) for k in kept]
        assert index.leading(iter(names)) == known
        index.send(replica, names)
        fresh = names[:most]
        kept[replica] = [*(n for n in kept[replica] if n not in fresh), *reversed(fresh)][-most:]
        assert [index.count(r) for r in range(4)] == [len(k) for k in kept]


def test_it_forgets_replicas_beyond_the_bits_of_a_machine_word() -> None:
    index = SentBlocks(200, 2)
    index.send(199, [1, 2, 3])
    index.send(0, [1])
    assert np.flatnonzero(index.leading([1, 2, 3])).tolist() == [0, 199]
    assert index.leading([1, 2, 3])[199] == 2
    index.send(199, [7, 8])
    assert np.flatnonzero(index.leading([1, 2])).tolist() == [0]
