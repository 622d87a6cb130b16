"""Reading recorded workloads in the formats in which LLM traces are published."""

import csv
import gzip
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.sim.workload import HASH_BLOCK_TOKENS, MAX_TOKENS, Workload

logger = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"
NANOSECONDS_PER_S = 1_000_000_000
TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)


class _BadRowError(Exception):
    """What is wrong with one row: the value and what was expected."""


@dataclass
class _Rows:
    """Columns of the rows read so far; times are in the file's unit, ints where exact."""

    times: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    hashes: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Format:
    """A CSV format: the three columns that count, and how its times are written."""

    name: str
    arrival: str
    prompt: str
    output: str
    parse_time: Callable[[str, str], float]
    ticks_per_s: int

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.arrival, self.prompt, self.output


def load_trace(
    path: str | os.PathLike[str],
    *,
    qps: float | None = None,
    limit: int | None = None,
    start: int = 0,
    max_prompt_tokens: int | None = None,
    on_error: str = "raise",
    rebase: bool = True,
) -> Workload:
    """Reads a recorded workload; the format is recognised by its header.

    Formats, plain or compressed with gzip (further columns are ignored):

    - Vidur and Splitwise, processed: ``arrived_at,num_prefill_tokens,num_decode_tokens``, seconds
    - Azure, as published: ``TIMESTAMP,ContextTokens,GeneratedTokens``, date and time
    - BurstGPT: ``Timestamp,...,Request tokens,Response tokens,...``, seconds; a response of 0
      tokens marks a failed request and is a bad row
    - splitwise-sim: ``...,arrival_timestamp,...,prompt_size,token_size``, seconds
    - Mooncake: JSON lines with ``timestamp`` (milliseconds), ``input_length``,
      ``output_length`` and optionally ``hash_ids`` of 512-token blocks

    Rows are cut by ``start`` and ``limit`` in the file's order, checked, sorted by arrival
    (stable, with a warning where the file was not), moved so that the first kept arrival is at
    time 0, and rescaled to ``qps``.

    Args:
        path: the file.
        qps: mean rate to rescale to in requests/s, > 0; None keeps the recorded one.
        limit: keep at most this many rows, >= 1.
        start: leave out this many rows first, >= 0.
        max_prompt_tokens: longer prompts (and their block hashes) are cut to this; how many is
            logged as a warning.
        on_error: ``"raise"`` stops at the first bad row, ``"skip"`` leaves bad rows out and logs
            how many as a warning.
        rebase: move the first arrival to time 0; False keeps the file's own times.

    Returns:
        The workload, with ``block_hashes`` where the file has them.

    Raises:
        InputError: the file cannot be read, is in no known format or has no usable row; a row is
            bad (with file, line, value and what was expected); or an argument is out of range.
    """
    file = Path(path)
    limit = None if limit is None else count("limit", limit)
    start = count("start", start, at_least=0)
    qps = None if qps is None else positive("qps", qps)
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if max_prompt_tokens is not None:
        count("max_prompt_tokens", max_prompt_tokens)

    rows, ticks_per_s = _read(file, start, limit, skip=on_error == "skip")
    if max_prompt_tokens is not None:
        _clip(file, rows, max_prompt_tokens)
    arrived_at_s = _seconds(file, rows.times, ticks_per_s, rebase=rebase)
    workload = Workload(
        arrived_at_s,
        np.array(rows.prompts),
        np.array(rows.outputs),
        tuple(np.array(row, dtype=np.int64) for row in rows.hashes) or None,
    )
    return workload if qps is None else workload.with_qps(qps)


def recorded_workload(path: str | os.PathLike[str] | None, workload: Workload | None) -> Workload:
    """Returns the workload, or the one in the file; for options that accept either.

    Raises:
        InputError: both or none are given, or the file is no trace.
    """
    if workload is not None and path is None:
        return workload
    if path is None or workload is not None:
        raise InputError("give exactly one of path and workload")
    return load_trace(path)


def _read(file: Path, start: int, limit: int | None, *, skip: bool) -> tuple[_Rows, int]:
    """Reads the rows asked for and the number of the file's time units per second."""
    numbered: Iterator[tuple[int, Any]]
    parse: Callable[[_Rows, Any], None]
    try:
        with _open(file) as text:
            if _is_json(text):
                numbered, parse = _json_rows(text)
                ticks_per_s = 1000
            else:
                numbered, parse, ticks_per_s = _csv_rows(file, text)
            rows = _parse_rows(file, numbered, parse, start, limit, skip=skip)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{file} is not UTF-8 text (byte 0x{byte:02x}: {error.reason}); expected a CSV or "
            "JSON-lines trace, plain or gzip, saved as UTF-8"
        ) from error
    except EOFError as error:
        raise InputError(
            f"{file} ends in the middle of its gzip stream; download or copy it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{file} is a damaged gzip file ({error}); download or copy it again"
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{file} is not well-formed CSV ({error}); check its quotes and separators"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{file} is a folder; expected a trace file") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}; {_whence(file)}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    return rows, ticks_per_s


def _whence(file: Path) -> str:
    """Says where a missing trace may come from."""
    from llmroute_gym.sim.fetch import PUBLIC_TRACES

    name = file.name.partition(".")[0]
    if name in PUBLIC_TRACES:
        return f"python -m llmroute_gym.fetch {name} downloads it"
    return "give the path of a trace"


def _open(file: Path) -> IO[str]:
    """Opens plain or gzip text; compression is told by the content, not the name."""
    with file.open("rb") as raw:
        packed = raw.read(2) == GZIP_MAGIC
    if packed:
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _is_json(text: IO[str]) -> bool:
    """Returns whether the text begins as JSON lines do; the text is left at its beginning."""
    head = text.read(4096)
    text.seek(0)
    return head.lstrip().startswith("{")


def _parse_rows(
    file: Path,
    numbered: Iterator[tuple[int, Any]],
    parse: Callable[[_Rows, Any], None],
    start: int,
    limit: int | None,
    *,
    skip: bool,
) -> _Rows:
    """Cuts and parses rows; raises on the first bad one or reports how many were skipped."""
    rows = _Rows()
    first_bad, bad, total = "", 0, 0
    cut = sum(1 for _ in islice(numbered, start))
    for line, row in islice(numbered, limit):
        total += 1
        try:
            parse(rows, row)
        except _BadRowError as error:
            first_bad = first_bad or f"{file}, line {line}: {error}"
            bad += 1
            if not skip:
                raise InputError(f"{first_bad}; mend the row or use on_error='skip'") from error
    if total == 0:
        if start:
            raise InputError(f"start={start} is beyond the {cut} rows of {file}")
        raise InputError(f"{file} has a header but no rows; expected one row per request")
    if bad == total:
        raise InputError(f"{file} has no usable row among {total}; the first: {first_bad}")
    if bad:
        logger.warning("skipped %d of %d rows; the first: %s", bad, total, first_bad)
    if limit is not None and total < limit:
        logger.warning(
            "limit=%d asks for more rows than the %d that %s has from row %d; all are used",
            *(limit, total, file, start),
        )
    return rows


def _clip(file: Path, rows: _Rows, max_prompt_tokens: int) -> None:
    """Cuts prompts, and their hashes to the blocks that are left."""
    longer = sum(tokens > max_prompt_tokens for tokens in rows.prompts)
    if not longer:
        return
    rows.prompts = [min(tokens, max_prompt_tokens) for tokens in rows.prompts]
    blocks = math.ceil(max_prompt_tokens / HASH_BLOCK_TOKENS)
    rows.hashes = [hashes[:blocks] for hashes in rows.hashes]
    logger.warning(
        "cut %d of %d prompts of %s to max_prompt_tokens=%d",
        *(longer, len(rows.prompts), file, max_prompt_tokens),
    )


def _seconds(file: Path, times: list[float], ticks_per_s: int, *, rebase: bool) -> FloatArray:
    """Returns times in seconds; integers are rebased before the division, so exactly."""
    ticks = np.array(times)
    earlier = int(np.count_nonzero(ticks[1:] < ticks[:-1]))
    if earlier:
        logger.warning(
            "%d arrivals in %s are earlier than the row before; sorted by arrival", earlier, file
        )
    return np.asarray((ticks - ticks.min() if rebase else ticks) / ticks_per_s)


def _csv_rows(
    file: Path, text: IO[str]
) -> tuple[Iterator[tuple[int, list[str]]], Callable[[_Rows, list[str]], None], int]:
    """Returns numbered rows, their parser and the time unit of the CSV format at hand."""
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    header = next((row for row in reader if row), None)
    if header is None:
        raise InputError(f"{file} is empty; expected a trace with a header line")
    header = [name.strip() for name in header]
    found = _recognise(file, header)
    arrival, prompt, output = (header.index(name) for name in found.columns)

    def parse(rows: _Rows, row: list[str]) -> None:
        if len(row) != len(header):
            raise _BadRowError(f"has {len(row)} fields, expected {len(header)} as in the header")
        time = found.parse_time(found.arrival, row[arrival])
        prompt_tokens = _tokens(found.prompt, row[prompt])
        rows.outputs.append(_tokens(found.output, row[output]))
        rows.prompts.append(prompt_tokens)
        rows.times.append(time)

    return ((reader.line_num, row) for row in reader if row), parse, found.ticks_per_s


def _recognise(file: Path, header: list[str]) -> _Format:
    """Returns the format with these columns."""
    for known in FORMATS:
        if set(known.columns) <= set(header):
            repeated = [name for name in known.columns if header.count(name) > 1]
            if repeated:
                raise InputError(f"{file} has more than one column {repeated[0]!r}")
            return known
    if any("\0" in name for name in header):
        raise InputError(f"{file} is binary; expected a CSV or JSON-lines trace, plain or gzip")
    shown = ",".join(header)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    nearest = max(FORMATS, key=lambda known: len(set(known.columns) & set(header)))
    missing = [name for name in nearest.columns if name not in header]
    if len(missing) < len(nearest.columns):
        raise InputError(
            f"{file} looks like a {nearest.name} trace but lacks the column(s) "
            f"{', '.join(missing)}; its header is {shown!r}"
        )
    formats = "; ".join(f"{known.name}: {','.join(known.columns)}" for known in FORMATS)
    raise InputError(
        f"{file} has the unknown header {shown!r}; known formats are {formats}; Mooncake: JSON "
        "lines with timestamp, input_length, output_length"
    )


def _json_rows(
    text: IO[str],
) -> tuple[Iterator[tuple[int, str]], Callable[[_Rows, str], None]]:
    """Returns numbered lines of a Mooncake trace and their parser."""
    hashed: bool | None = None

    def parse(rows: _Rows, line: str) -> None:
        nonlocal hashed
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _BadRowError(f"is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise _BadRowError(f"is not a JSON object, got {_shown(line.strip())}")
        missing = [key for key in ("timestamp", "input_length", "output_length") if key not in row]
        if missing:
            raise _BadRowError(f"lacks {', '.join(missing)}")
        time = _checked_time("timestamp", row["timestamp"], "milliseconds")
        prompt_tokens = _checked_tokens("input_length", row["input_length"])
        output_tokens = _checked_tokens("output_length", row["output_length"])
        if hashed is not None and hashed != ("hash_ids" in row):
            raise _BadRowError(
                f"{'lacks' if hashed else 'has'} hash_ids unlike the rows before; "
                "expected them in all rows or in none"
            )
        if "hash_ids" in row:
            rows.hashes.append(_checked_hashes(row["hash_ids"]))
        hashed = "hash_ids" in row
        rows.times.append(time)
        rows.prompts.append(prompt_tokens)
        rows.outputs.append(output_tokens)

    return ((i, line) for i, line in enumerate(text, 1) if line.strip()), parse


def _checked_hashes(value: object) -> list[int]:
    """Returns the block hashes of a Mooncake row."""
    limits = np.iinfo(np.int64)
    if not isinstance(value, list) or not all(
        type(entry) is int and limits.min <= entry <= limits.max for entry in value
    ):
        raise _BadRowError(f"hash_ids is {_shown(value)}, expected a list of 64-bit integers")
    return value


def _number(text: str) -> float | str:
    """Returns the number that the text is, or the text where it is none."""
    if "_" in text or not text.isascii():  # float() would read 1_0 as 10
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _seconds_field(column: str, text: str) -> float:
    """Parses a time in seconds."""
    return _checked_time(column, _number(text), "seconds")


def _checked_time(column: str, value: object, unit: str) -> float:
    """Returns a time that is a finite number >= 0, its type unchanged."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise _BadRowError(f"{column} is {_shown(value)}, expected finite {unit} >= 0")
    return value  # type: ignore[return-value]


def _date_field(column: str, text: str) -> int:
    """Parses a date and time; returns nanoseconds since 1970, taking it as UTC by default."""
    match = TIMESTAMP.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        whole = _epoch_s(match[1] + (match[3] or ""))
    except ValueError:
        raise _BadRowError(
            f"{column} is {_shown(text)}, expected a date and time such as "
            "2023-11-16 18:15:46.6805900"
        ) from None
    return whole * NANOSECONDS_PER_S + int((match[2] or "0").ljust(9, "0"))


@lru_cache(maxsize=1024)
def _epoch_s(text: str) -> int:
    """Returns whole seconds since 1970."""
    parsed = datetime.fromisoformat(text)
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


def _tokens(column: str, text: str) -> int:
    """Parses a number of tokens; 374.0 is accepted as 374."""
    if text.isdecimal() and len(text) <= 10 and text.isascii():
        value = int(text)
        return value if 1 <= value <= MAX_TOKENS else _checked_tokens(column, value)
    return _checked_tokens(column, _number(text))


def _checked_tokens(column: str, value: object) -> int:
    """Returns a number of tokens from 1 to the limit."""
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not 1 <= value <= MAX_TOKENS:  # type: ignore[operator]
        _reject_tokens(column, value)
    return int(value)  # type: ignore[call-overload,no-any-return]


def _reject_tokens(column: str, value: object) -> NoReturn:
    failed = ", which marks a failed request" if value == 0 else ""
    raise _BadRowError(
        f"{column} is {_shown(value)}{failed}, expected an integer from 1 to {MAX_TOKENS}"
    )


def _shown(value: object) -> str:
    """Returns the value as it stands in a message, cut to a readable length."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


FORMATS = (
    _Format(
        "Vidur",
        "arrived_at",
        "num_prefill_tokens",
        "num_decode_tokens",
        _seconds_field,
        1,
    ),
    _Format(
        "Azure",
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        _date_field,
        NANOSECONDS_PER_S,
    ),
    _Format(
        "BurstGPT",
        "Timestamp",
        "Request tokens",
        "Response tokens",
        _seconds_field,
        1,
    ),
    _Format(
        "splitwise-sim",
        "arrival_timestamp",
        "prompt_size",
        "token_size",
        _seconds_field,
        1,
    ),
)
