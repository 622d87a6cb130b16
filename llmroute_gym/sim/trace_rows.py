"""What the readers of trace formats share: rows, and the checks of their values."""

import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.content import MAX_TOKENS

GZIP_MAGIC = b"\x1f\x8b"
HASH_BLOCK_TOKENS = 512  # as in the Mooncake traces
UNITS = {1: "seconds", 1000: "milliseconds", 1_000_000: "microseconds"}
"""Ticks per second to the unit of times that are plain numbers, coarsest first."""


class BadRowError(Exception):
    """What is wrong with one row: the value and what was expected."""


class UnservedRowError(BadRowError):
    """The row is of a request that got no whole answer, which is no fault of the row."""


@dataclass(frozen=True)
class Columns:
    """The rows of a trace that were kept, of which there are n.

    Attributes:
        times: shape (n,), in the file's unit, integers where all are.
        prompts: shape (n,), tokens.
        outputs: shape (n,), tokens.
        numbers: shape (n,), the place of each row in the file, from 0.
        pieces: shape (n,), how many hashes or segments each prompt has, or None.
        streams: shape (sum of pieces,), all prompts' hashes or streams of segments in a row; a
            stream of -(i + 1) is the output of row i of the file. None without pieces.
        lengths: shape (sum of pieces,), tokens of the segments; None where they are hashes.
        sessions: shape (n,), or None.
    """

    times: npt.NDArray[Any]
    prompts: IntArray
    outputs: IntArray
    numbers: IntArray
    pieces: IntArray | None = None
    streams: IntArray | None = None
    lengths: IntArray | None = None
    sessions: IntArray | None = None

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.prompts)


@dataclass
class Rows:
    """The rows read so far; times are in the file's unit, ints where exact."""

    times: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    hashes: list[list[int]] = field(default_factory=list)
    segments: list[list[tuple[int, int]]] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)

    def columns(self) -> Columns:
        """Returns the rows as columns."""
        pieces = streams = lengths = None
        if self.hashes or self.segments:
            listed: list[Any] = self.hashes or self.segments
            pieces = np.array([len(row) for row in listed])
            flat = np.array(list(chain.from_iterable(listed)), dtype=np.int64)
            streams, lengths = (flat, None) if self.hashes else flat.reshape(-1, 2).T
        return Columns(
            np.array(self.times),
            np.array(self.prompts),
            np.array(self.outputs),
            np.array(self.numbers),
            pieces,
            streams,
            lengths,
            np.array(self.sessions) if self.sessions else None,
        )


@dataclass(frozen=True)
class Meaning:
    """How the numbers of a file are meant.

    Attributes:
        ticks_per_s: how many units of the file's times make a second.
        missing_times: the column of arrival times that the file lacks, and all are 0; else None.
        unit_is_certain: whether the format leaves no doubt about the unit.
        hash_block_tokens: prompt tokens per block hash.
        by_arrival: whether rows are in order of arrival where nothing is wrong.
    """

    ticks_per_s: int
    missing_times: str | None = None
    unit_is_certain: bool = True
    hash_block_tokens: int = HASH_BLOCK_TOKENS
    by_arrival: bool = True


@dataclass(frozen=True)
class Layout:
    """How a file is read row by row.

    Attributes:
        numbered: the rows with their line numbers.
        parse: adds a row to those read, given its place in the file from 0, or raises BadRowError
            and adds nothing.
        meaning: of its numbers.
    """

    numbered: Iterator[tuple[int, Any]]
    parse: Callable[[Rows, int, Any], None]
    meaning: Meaning


def open_trace(file: Path) -> gzip.GzipFile | BufferedReader:
    """Opens a plain or gzip file; compression is told by the content, not the name."""
    with file.open("rb") as raw:
        packed = raw.read(2) == GZIP_MAGIC
    return gzip.open(file) if packed else file.open("rb")


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
