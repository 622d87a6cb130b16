"""Reading the traces that are published as JSON lines: Mooncake's and Qwen-Bailian's."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from llmroute_gym.sim.trace_rows import (
    HASH_BLOCK_TOKENS,
    UNITS,
    BadRowError,
    Layout,
    Rows,
    checked_time,
    checked_tokens,
    shown,
)

logger = logging.getLogger(__name__)

LENGTHS = ("input_length", "output_length")
CHAT = ("chat_id", "parent_chat_id", "turn")


@dataclass(frozen=True)
class _Format:
    """A format of JSON lines: its keys beside the hashes, and how times and hashes are meant."""

    keys: tuple[str, ...]
    ticks_per_s: int
    hash_block_tokens: int
    unit_is_certain: bool


MOONCAKE = _Format(("timestamp", *LENGTHS), 1000, HASH_BLOCK_TOKENS, unit_is_certain=False)
BAILIAN = _Format((*CHAT, "timestamp", *LENGTHS), 1, 16, unit_is_certain=True)


def json_layout(text: IO[str]) -> Layout:
    """Returns how the lines of a JSON trace are read; the text is left at its beginning."""
    found = _recognise(text)
    unit = UNITS[found.ticks_per_s]
    hashed: bool | None = None
    session = _sessions()

    def parse(rows: Rows, line: str) -> None:
        nonlocal hashed
        row = _object(line)
        missing = [key for key in found.keys if key not in row]
        if missing:
            raise BadRowError(f"lacks {', '.join(missing)}")
        time = checked_time("timestamp", row["timestamp"], unit)
        prompt_tokens, output_tokens = (checked_tokens(key, row[key]) for key in LENGTHS)
        if hashed is not None and hashed != ("hash_ids" in row):
            raise BadRowError(
                f"{'lacks' if hashed else 'has'} hash_ids unlike the rows before; "
                "expected them in all rows or in none"
            )
        hashes = _checked_hashes(row["hash_ids"]) if "hash_ids" in row else None
        if found is BAILIAN:
            rows.sessions.append(session(row))
        if hashes is not None:
            rows.hashes.append(hashes)
        hashed = hashes is not None
        rows.times.append(time)
        rows.prompts.append(prompt_tokens)
        rows.outputs.append(output_tokens)

    numbered = ((i, line) for i, line in enumerate(text, 1) if line.strip())
    return Layout(
        numbered,
        parse,
        found.ticks_per_s,
        unit_is_certain=found.unit_is_certain,
        hash_block_tokens=found.hash_block_tokens,
    )


def _recognise(text: IO[str]) -> _Format:
    """Returns the format of the first line that is a request."""
    found = MOONCAKE
    for line in text:
        try:
            row = _object(line)
        except BadRowError:
            continue
        if set(MOONCAKE.keys) <= set(row):
            found = BAILIAN if set(BAILIAN.keys) <= set(row) else MOONCAKE
            break
    text.seek(0)
    return found


def _object(line: str) -> dict[str, Any]:
    """Returns the JSON object that a line is."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadRowError(f"is not a JSON object, got {shown(line.strip())}")
    return row


def _sessions() -> Callable[[dict[str, Any]], int]:
    """Returns what tells a row's session: the chat at the root of its chat.

    A parent that has not been read counts as a root.
    """
    roots: dict[int, int] = {}

    def session(row: dict[str, Any]) -> int:
        chat, parent = (_checked_integer(key, row[key]) for key in ("chat_id", "parent_chat_id"))
        roots[chat] = chat if parent < 0 else roots.get(parent, parent)
        return roots[chat]

    return session


def _is_integer(value: object) -> bool:
    limits = np.iinfo(np.int64)
    return type(value) is int and limits.min <= value <= limits.max


def _checked_integer(key: str, value: object) -> int:
    """Returns the number of a chat."""
    if not _is_integer(value):
        raise BadRowError(f"{key} is {shown(value)}, expected a 64-bit integer")
    return value  # type: ignore[return-value]


def _checked_hashes(value: object) -> list[int]:
    """Returns the block hashes of a row."""
    if not isinstance(value, list) or not all(map(_is_integer, value)):
        raise BadRowError(f"hash_ids is {shown(value)}, expected a list of 64-bit integers")
    return value


def fitting_block_tokens(file: Path, rows: Rows, expected: int) -> int:
    """Returns how many prompt tokens a hash stands for, and drops hashes that fit no format.

    Args:
        file: of the trace, for the warning.
        rows: all that were read.
        expected: what the format says.
    """
    prompts, hashes = np.array(rows.prompts), np.array([len(row) for row in rows.hashes])
    if not hashes.size:
        return expected
    known = sorted({MOONCAKE.hash_block_tokens, BAILIAN.hash_block_tokens})
    for block_tokens in (expected, *known):
        if (hashes == -(-prompts // block_tokens)).all():
            return block_tokens
    odd = int((hashes != -(-prompts // expected)).argmax())
    logger.warning(
        "the hash_ids of %s are left out: they fit blocks of neither %d nor %d prompt tokens, such "
        "as %d of them for input_length %d",
        *(file, *known, hashes[odd], prompts[odd]),
    )
    rows.hashes = []
    return expected
