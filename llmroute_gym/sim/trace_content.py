"""From the hashes or segments of a trace to what its prompts are made of."""

import logging
from pathlib import Path

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.content import Content, block_content, recorded_content
from llmroute_gym.sim.trace_json import BAILIAN, MOONCAKE
from llmroute_gym.sim.trace_rows import Columns

logger = logging.getLogger(__name__)

PUBLISHED = BAILIAN.meaning.hash_block_tokens, MOONCAKE.meaning.hash_block_tokens
BLOCK_TOKENS = (*PUBLISHED, 32, 64, 128, 256, 1024, 2048)
"""Sizes of blocks that are tried where the format's own does not fit."""


def content_of(file: Path, columns: Columns, block_tokens: int) -> tuple[Content | None, int]:
    """Returns what the prompts are made of, and how many tokens a hash stands for.

    Args:
        file: of the trace, for the warnings.
        columns: its rows.
        block_tokens: what the format says of the hashes.
    """
    if columns.pieces is None or columns.streams is None:
        return None, block_tokens
    if columns.lengths is not None:
        parts = columns.pieces, columns.streams, columns.lengths
        return recorded_content(*parts, columns.numbers), block_tokens
    fitting = _fitting_block_tokens(file, columns.prompts, columns.pieces, block_tokens)
    if fitting is None:
        return None, block_tokens
    return block_content(columns.streams, columns.pieces, columns.prompts, fitting), fitting


def _fitting_block_tokens(
    file: Path, prompts: IntArray, hashes: IntArray, expected: int
) -> int | None:
    """Returns how many prompt tokens a hash stands for, or None where no size fits all prompts.

    Args:
        file: of the trace, for the warnings.
        prompts: shape (n,), their tokens.
        hashes: shape (n,), how many hashes each has.
        expected: what the format says.
    """
    for block_tokens in (expected, *BLOCK_TOKENS):
        if (hashes == -(-prompts // block_tokens)).all():
            if block_tokens not in (expected, *PUBLISHED):
                logger.warning(
                    "the hash_ids of %s do not fit blocks of %d prompt tokens but those of %d, and "
                    "are read as such",
                    *(file, expected, block_tokens),
                )
            return block_tokens
    odd = int((hashes != -(-prompts // expected)).argmax())
    logger.warning(
        "the hash_ids of %s are left out: they fit blocks of no size, such as %d of them for "
        "input_length %d, which is %d blocks of %d tokens",
        *(file, hashes[odd], prompts[odd], -(-prompts[odd] // expected), expected),
    )
    return None
