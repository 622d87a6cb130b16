"""Reading traces that are JSON lines: Mooncake's, Qwen-Bailian's, and ones with segments."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.trace_rows import (
    UNITS,
    BadRowError,
    Layout,
    Meaning,
    Rows,
    checked_time,
    checked_tokens,
    shown,
)

LENGTHS = ("input_length", "output_length")
CHAT = ("chat_id", "parent_chat_id", "turn")
HASHES, SEGMENTS = "hash_ids", "segments"


@dataclass(frozen=True)
class JsonFormat:
    """A format of JSON lines.

    Attributes:
        time: the key of the arrival time.
        meaning: of its numbers.
        chat: the keys that tell of chats.
        contents: the keys of which one may tell what the prompt is made of.
    """

    time: str
    meaning: Meaning
    chat: tuple[str, ...] = ()
    contents: tuple[str, ...] = (HASHES,)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that each row has."""
        return *self.chat, self.time, *LENGTHS


BAILIAN = JsonFormat("timestamp", Meaning(1, hash_block_tokens=16), chat=CHAT)
MOONCAKE = JsonFormat("timestamp", Meaning(1000, unit_is_certain=False))
SEGMENTED = JsonFormat("arrived_at_s", Meaning(1), contents=(HASHES, SEGMENTS))
FORMATS = (BAILIAN, MOONCAKE, SEGMENTED)
"""A row is of the first of these all of whose keys it has."""


def json_layout(text: IO[str]) -> Layout:
    """Returns how the lines of a JSON trace are read; the text is left at its beginning."""
    found = _first_format(text)
    unit = UNITS[found.meaning.ticks_per_s]
    before: str | None = None
    session, outputs = sessions(), dict[int, int]()

    def parse(rows: Rows, number: int, line: str) -> None:
        nonlocal before
        row = json_object(line)
        missing = [key for key in found.keys if key not in row]
        if missing:
            raise BadRowError(f"lacks {', '.join(missing)}")
        time = checked_time(found.time, row[found.time], unit)
        prompt_tokens, output_tokens = (checked_tokens(key, row[key]) for key in LENGTHS)
        content = _content_key(row, found)
        if rows.times and content != before:
            raise BadRowError(
                f"{f'has {content}' if before is None else f'lacks {before}'} unlike the rows "
                "before; expected them in all rows or in none"
            )
        if content == HASHES:
            hashes = _checked_hashes(row[HASHES])
        elif content == SEGMENTS:
            segments = _checked_segments(row[SEGMENTS], prompt_tokens, number, outputs)
        if found is BAILIAN:
            rows.sessions.append(session(*(_checked_integer(key, row[key]) for key in CHAT[:2])))
        if content == HASHES:
            rows.hashes.append(hashes)
        elif content == SEGMENTS:
            rows.segments.append(segments)
        before = content
        outputs[number] = output_tokens
        rows.times.append(time)
        rows.prompts.append(prompt_tokens)
        rows.outputs.append(output_tokens)

    numbered = ((i, line) for i, line in enumerate(text, 1) if line.strip())
    return Layout(numbered, parse, found.meaning)


def _first_format(text: IO[str]) -> JsonFormat:
    """Returns the format of the first line that is a request."""
    found = None
    for line in text:
        try:
            found = json_format(json_object(line))
        except BadRowError:
            continue
        if found is not None:
            break
    text.seek(0)
    return found or MOONCAKE


def json_format(row: dict[str, Any]) -> JsonFormat | None:
    """Returns the format of a row, None where it is no request."""
    return next((one for one in FORMATS if set(one.keys) <= set(row)), None)


def json_object(line: str) -> dict[str, Any]:
    """Returns the JSON object that a line is."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadRowError(f"is not a JSON object, got {shown(line.strip())}")
    return row


def sessions() -> Callable[[int, int], int]:
    """Returns what tells a row's session, from its chat and that one's parent.

    It is the chat at the root of its chat. A parent that has not been read counts as a root.
    """
    roots: dict[int, int] = {}

    def session(chat: int, parent: int) -> int:
        root = roots[chat] = chat if parent < 0 else roots.get(parent, parent)
        return root

    return session


def _content_key(row: dict[str, Any], found: JsonFormat) -> str | None:
    """Returns the key that tells what the row's prompt is made of."""
    keys = [key for key in found.contents if key in row]
    if len(keys) > 1:
        raise BadRowError(f"has both {' and '.join(keys)}, expected one of them")
    return keys[0] if keys else None


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


def _checked_segments(
    value: object, prompt_tokens: int, number: int, outputs: dict[int, int]
) -> list[tuple[int, int]]:
    """Returns the segments of a row.

    Args:
        value: what stands in the row.
        prompt_tokens: what they must add up to, unless there are none.
        number: the row's place in the file, from 0.
        outputs: output tokens of the rows read before, by their places.
    """
    if not isinstance(value, list) or not all(map(_is_segment, value)):
        raise BadRowError(
            f"{SEGMENTS} is {shown(value)}, expected a list of [stream, tokens] pairs of integers, "
            f"tokens from 1 to {MAX_TOKENS}"
        )
    total = sum(tokens for _, tokens in value)
    if value and total != prompt_tokens:
        raise BadRowError(
            f"{SEGMENTS} have {total} tokens, expected them to add up to the input_length of "
            f"{prompt_tokens}"
        )
    for stream, tokens in value:
        if stream < 0 and ~stream >= number:
            raise BadRowError(
                f"{SEGMENTS} has stream {stream}, the output of row {~stream} counted from 0, "
                f"expected one before this row, {number}"
            )
        if stream < 0 and tokens > outputs.get(~stream, tokens):
            raise BadRowError(
                f"{SEGMENTS} has {tokens} tokens of stream {stream}, expected at most the "
                f"output_length of {outputs[~stream]} of row {~stream} counted from 0"
            )
    return [(stream, tokens) for stream, tokens in value]


def _is_segment(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_integer, value)):
        return False
    return bool(1 <= value[1] <= MAX_TOKENS)
