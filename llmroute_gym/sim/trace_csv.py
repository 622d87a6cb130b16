"""Reading the traces that are published as CSV."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO

from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import NO_NAME
from llmroute_gym.sim import request_log
from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.request_log import SERVED, parsed_outcome, parsed_session
from llmroute_gym.sim.trace_rows import (
    BadRowError,
    Layout,
    Meaning,
    Rows,
    UnservedRowError,
    checked_time,
    checked_tokens,
    shown,
)

NANOSECONDS_PER_S = 1_000_000_000
TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)


@dataclass(frozen=True)
class CsvFormat:
    """A CSV format: the columns that count, and how its times are written.

    Attributes:
        outcome: the column, where there is one, that says which requests were served.
        session: the column, where there is one, of conversations.
        by_arrival: whether its rows are in order of arrival.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    parse_time: Callable[[str, str], float]
    ticks_per_s: int
    outcome: str | None = None
    session: str | None = None
    by_arrival: bool = True

    @property
    def lengths(self) -> tuple[str, str]:
        """Prompt and output column."""
        return self.prompt, self.output

    def meaning(self, *, timed: bool) -> Meaning:
        """Returns how its numbers are meant, ``timed`` where it has its arrival times."""
        missing = None if timed else self.arrival
        return Meaning(self.ticks_per_s, missing_times=missing, by_arrival=self.by_arrival)

    @property
    def columns(self) -> tuple[str, str, str]:
        """Arrival, prompt and output column."""
        return self.arrival, *self.lengths


def csv_layout(file: Path, text: IO[str]) -> Layout:
    """Returns how the rows of a CSV file are read, which may lack its arrival times.

    Raises:
        InputError: it has no header, or one of no known format.
    """
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    header = next((row for row in reader if row), None)
    if header is None:
        raise InputError(f"{file} is empty; expected a trace with a header line")
    header = [name.strip() for name in header]
    found = recognised(file, header)
    timed = found.arrival in header
    arrival = header.index(found.arrival) if timed else 0
    prompt, output = (header.index(name) for name in found.lengths)
    outcome, session = (
        header.index(name) if name in header else None for name in (found.outcome, found.session)
    )

    def parse(rows: Rows, _: int, row: list[str]) -> None:
        if len(row) != len(header):
            raise BadRowError(f"has {len(row)} fields, expected {len(header)} as in the header")
        if outcome is not None and parsed_outcome(row[outcome]) != SERVED:
            raise UnservedRowError(f"{found.outcome} is {row[outcome]}")
        if session is not None:
            number = parsed_session(row[session])
        time = found.parse_time(found.arrival, row[arrival]) if timed else 0.0
        prompt_tokens = _tokens(found.prompt, row[prompt])
        rows.outputs.append(_tokens(found.output, row[output]))
        rows.prompts.append(prompt_tokens)
        if session is not None:
            rows.sessions.append(int(NO_NAME) if number is None else number)
        rows.times.append(time)

    numbered = ((reader.line_num, row) for row in reader if row)
    return Layout(numbered, parse, found.meaning(timed=timed))


def recognised(file: Path, header: list[str]) -> CsvFormat:
    """Returns the format with these columns, or with these but the arrival times.

    Raises:
        InputError: there is none, or a column that counts stands there twice.
    """
    for known in FORMATS:
        if set(known.lengths) <= set(header):
            repeated = [name for name in known.columns if header.count(name) > 1]
            if repeated:
                raise InputError(f"{file} has more than one column {repeated[0]!r}")
            return known
    if any("\0" in name for name in header):
        raise InputError(f"{file} is binary; expected a CSV or JSON-lines trace, plain or gzip")
    given = ",".join(header)
    given = given if len(given) <= 100 else given[:97] + "..."
    nearest = max(FORMATS, key=lambda known: len(set(known.columns) & set(header)))
    missing = [name for name in nearest.columns if name not in header]
    if len(missing) < len(nearest.columns):
        raise InputError(
            f"{file} looks like a {nearest.name} trace but lacks the column(s) "
            f"{', '.join(missing)}; its header is {given!r}"
        )
    formats = "; ".join(f"{known.name}: {','.join(known.columns)}" for known in FORMATS)
    raise InputError(
        f"{file} has the unknown header {given!r}; known formats are {formats}; Mooncake: JSON "
        "lines with timestamp, input_length, output_length"
    )


def _tokens(column: str, text: str) -> int:
    """Parses a number of tokens; 374.0 is accepted as 374."""
    if text.isdecimal() and len(text) <= 10 and text.isascii():
        value = int(text)
        return value if 1 <= value <= MAX_TOKENS else checked_tokens(column, value)
    return checked_tokens(column, _number(text))


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
    return checked_time(column, _number(text), "seconds")


def _date_field(column: str, text: str) -> int:
    """Parses a date and time; returns nanoseconds since 1970, taking it as UTC by default."""
    match = TIMESTAMP.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        whole = _epoch_s(match[1] + (match[3] or ""))
    except ValueError:
        raise BadRowError(
            f"{column} is {shown(text)}, expected a date and time such as "
            "2023-11-16 18:15:46.6805900"
        ) from None
    return whole * NANOSECONDS_PER_S + int((match[2] or "0").ljust(9, "0"))


@lru_cache(maxsize=1024)
def _epoch_s(text: str) -> int:
    """Returns whole seconds since 1970."""
    parsed = datetime.fromisoformat(text)
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


FORMATS = (
    CsvFormat(
        "Vidur",
        "arrived_at",
        "num_prefill_tokens",
        "num_decode_tokens",
        _seconds_field,
        1,
    ),
    CsvFormat(
        "Azure",
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        _date_field,
        NANOSECONDS_PER_S,
    ),
    CsvFormat(
        "BurstGPT",
        "Timestamp",
        "Request tokens",
        "Response tokens",
        _seconds_field,
        1,
    ),
    CsvFormat(
        "splitwise-sim",
        "arrival_timestamp",
        "prompt_size",
        "token_size",
        _seconds_field,
        1,
    ),
    CsvFormat(
        "request log",
        request_log.ARRIVED,
        request_log.PROMPT,
        request_log.OUTPUT,
        _seconds_field,
        1,
        request_log.OUTCOME,
        request_log.SESSION,
        by_arrival=False,
    ),
)
