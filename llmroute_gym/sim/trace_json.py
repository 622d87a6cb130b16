"""Reading the traces that are published as JSON lines."""

import json
from typing import IO

import numpy as np

from llmroute_gym.sim.trace_rows import (
    BadRowError,
    Layout,
    Rows,
    checked_time,
    checked_tokens,
    shown,
)

MILLISECONDS_PER_S = 1000


def json_layout(text: IO[str]) -> Layout:
    """Returns how the lines of a Mooncake trace are read."""
    hashed: bool | None = None

    def parse(rows: Rows, line: str) -> None:
        nonlocal hashed
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadRowError(f"is not a JSON object, got {shown(line.strip())}")
        missing = [key for key in ("timestamp", "input_length", "output_length") if key not in row]
        if missing:
            raise BadRowError(f"lacks {', '.join(missing)}")
        time = checked_time("timestamp", row["timestamp"], "milliseconds")
        prompt_tokens = checked_tokens("input_length", row["input_length"])
        output_tokens = checked_tokens("output_length", row["output_length"])
        if hashed is not None and hashed != ("hash_ids" in row):
            raise BadRowError(
                f"{'lacks' if hashed else 'has'} hash_ids unlike the rows before; "
                "expected them in all rows or in none"
            )
        if "hash_ids" in row:
            rows.hashes.append(_checked_hashes(row["hash_ids"]))
        hashed = "hash_ids" in row
        rows.times.append(time)
        rows.prompts.append(prompt_tokens)
        rows.outputs.append(output_tokens)

    numbered = ((i, line) for i, line in enumerate(text, 1) if line.strip())
    return Layout(numbered, parse, MILLISECONDS_PER_S)


def _checked_hashes(value: object) -> list[int]:
    """Returns the block hashes of a Mooncake row."""
    limits = np.iinfo(np.int64)
    if not isinstance(value, list) or not all(
        type(entry) is int and limits.min <= entry <= limits.max for entry in value
    ):
        raise BadRowError(f"hash_ids is {shown(value)}, expected a list of 64-bit integers")
    return value
