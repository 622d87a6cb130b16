"""What a prefix cache that never forgets would find: the upper bound of what caching saves."""

import numpy as np

from llmroute_gym.sim.workload import Workload


def cacheable_share(workload: Workload, block_tokens: int = 16) -> float:
    """Returns the share of all prompt tokens that one endless cache holds at each arrival.

    Whole blocks of prompts and of outputs that came before are found, the last token of a prompt
    never.
    """
    assert workload.content is not None
    seen: set[tuple[int, ...]] = set()
    found = 0
    lengths = zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    rows = workload.content.rows()
    for request, (row, (prompt, output)) in enumerate(zip(rows, lengths, strict=True)):
        blocks = _blocks([*row, (~request, output)], prompt + output - 1, block_tokens)
        hits = 0
        for block in blocks[: (prompt - 1) // block_tokens]:
            if block not in seen:
                break
            hits += 1
        found += hits * block_tokens
        seen.update(blocks)
    return found / int(np.sum(workload.prompt_tokens))


def _blocks(row: list[tuple[int, int]], tokens: int, block_tokens: int) -> list[tuple[int, ...]]:
    """Returns a key of each whole block among the first tokens and of all tokens before it."""
    keys: list[tuple[int, ...]] = []
    before, begin = hash(()), 0
    for stream, length in row:
        first = begin // block_tokens + 1
        last = min(begin + length, tokens) // block_tokens
        keys += [(before, stream, block * block_tokens - begin) for block in range(first, last + 1)]
        before, begin = hash((before, stream, length)), begin + length
    return keys
