"""What the readers of trace formats share: rows, and the checks of their values."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from llmroute_gym.sim.content import MAX_TOKENS

HASH_BLOCK_TOKENS = 512  # as in the Mooncake traces
UNITS = {1: "seconds", 1000: "milliseconds", 1_000_000: "microseconds"}
"""Ticks per second to the unit of times that are plain numbers, coarsest first."""


class BadRowError(Exception):
    """What is wrong with one row: the value and what was expected."""


@dataclass
class Rows:
    """Columns of the rows read so far; times are in the file's unit, ints where exact."""

    times: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    hashes: list[list[int]] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """How the rows of one file are read.

    Attributes:
        numbered: the rows with their line numbers.
        parse: adds a row to those read, or raises BadRowError and adds nothing.
        ticks_per_s: how many units of the file's times make a second.
        missing_times: the column of arrival times that the file lacks, and all are 0; else None.
        unit_is_certain: whether the format leaves no doubt about the unit.
        hash_block_tokens: prompt tokens per block hash.
    """

    numbered: Iterator[tuple[int, Any]]
    parse: Callable[[Rows, Any], None]
    ticks_per_s: int
    missing_times: str | None = None
    unit_is_certain: bool = True
    hash_block_tokens: int = HASH_BLOCK_TOKENS


def checked_time(column: str, value: object, unit: str) -> float:
    """Returns a time that is a finite number >= 0, its type unchanged."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise BadRowError(f"{column} is {shown(value)}, expected finite {unit} >= 0")
    return value  # type: ignore[return-value]


def checked_tokens(column: str, value: object) -> int:
    """Returns a number of tokens from 1 to the limit."""
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not 1 <= value <= MAX_TOKENS:  # type: ignore[operator]
        _reject_tokens(column, value)
    return int(value)  # type: ignore[call-overload,no-any-return]


def _reject_tokens(column: str, value: object) -> NoReturn:
    failed = ", which marks a failed request" if value == 0 else ""
    raise BadRowError(
        f"{column} is {shown(value)}{failed}, expected an integer from 1 to {MAX_TOKENS}"
    )


def shown(value: object) -> str:
    """Returns the value as it stands in a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
