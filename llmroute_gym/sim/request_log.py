"""The request log of a gateway: one line of CSV per request, never a word of a prompt."""

import csv
import math
from collections.abc import Iterator, Mapping
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from llmroute_gym.errors import InputError
from llmroute_gym.sim.trace_rows import BadRowError, checked_tokens, open_trace, shown

SERVED = "ok"
OUTCOMES = {
    SERVED: "answered to the end",
    "rejected": "turned away by the gateway",
    "refused": "a backend answered with an error",
    "failed": "no backend answered",
    "cut": "a backend broke off its answer",
    "left": "the client went away",
}
"""How a request ended."""
LARGEST_SESSION = 2**53 - 1
"""Rows of signals are float64."""


class LoggedRequest(NamedTuple):
    """One request; the field names are the columns of the file, in this order.

    Times are seconds on one clock that is never set back, such as those since 1970 at the
    gateway's start plus a monotonic clock since then. None is an empty cell.
    """

    arrived_at_s: float
    """When its head had come in."""
    backend: str
    """The configured name of the last one that it was sent to; empty for none."""
    prompt_tokens: int
    """As the backend counted them, else as the gateway took them to be."""
    output_tokens: int
    """Likewise; those that came out before the end, whatever that was."""
    cached_tokens: int | None
    """Of the prompt, found in the prefix cache; None where nobody told."""
    first_token_at_s: float | None
    """When the first piece of a streamed answer came; None for one in a single piece."""
    ended_at_s: float
    """When the last byte of the answer was passed on, or it was clear that there would be none."""
    outcome: str
    """One of `OUTCOMES`."""
    session: int | None = None
    """The conversation it belongs to, 0 to `LARGEST_SESSION`; None where none is known."""

    def line(self) -> str:
        """Returns the line of the file, with its end; times have microseconds."""
        cells = ("" if value is None else _cell(value) for value in self)
        return ",".join(cells) + "\n"

    @classmethod
    def header(cls) -> str:
        """Returns the first line of a file, with its end."""
        return ",".join(cls._fields) + "\n"

    @classmethod
    def parsed(cls, row: Mapping[str, str]) -> "LoggedRequest":
        """Returns the request of a row, given as column to cell.

        Raises:
            BadRowError: a value is out of range, or the times are not in order.
        """
        outcome = parsed_outcome(row[OUTCOME])
        arrived_at_s, ended_at_s = _time(ARRIVED, row[ARRIVED]), _time(ENDED, row[ENDED])
        first_token_at_s = _time(FIRST_TOKEN, row[FIRST_TOKEN]) if row[FIRST_TOKEN] else None
        between_s = arrived_at_s if first_token_at_s is None else first_token_at_s
        if not arrived_at_s <= between_s <= ended_at_s:
            raise BadRowError(
                f"{ARRIVED} {row[ARRIVED]}, {FIRST_TOKEN} {row[FIRST_TOKEN] or 'none'} and {ENDED} "
                f"{row[ENDED]} are not in this order"
            )
        least = 1 if outcome == SERVED else 0
        prompt, output = (_tokens(name, row[name], least) for name in (PROMPT, OUTPUT))
        cached = _tokens(CACHED, row[CACHED], 0) if row[CACHED] else None
        if cached is not None and cached > prompt:
            raise BadRowError(f"{CACHED} is {cached}, expected at most the {prompt} of the prompt")
        session = parsed_session(row.get(SESSION, ""))
        return cls(
            *(arrived_at_s, row["backend"], prompt, output, cached, first_token_at_s, ended_at_s),
            *(outcome, session),
        )


ARRIVED, _, PROMPT, OUTPUT, CACHED, FIRST_TOKEN, ENDED, OUTCOME, SESSION = LoggedRequest._fields


def parsed_outcome(cell: str) -> str:
    """Returns how a request ended, one of `OUTCOMES`.

    Raises:
        BadRowError: it is anything else.
    """
    if cell not in OUTCOMES:
        raise BadRowError(f"{OUTCOME} is {shown(cell)}, expected one of {', '.join(OUTCOMES)}")
    return cell


def parsed_session(cell: str) -> int | None:
    """Returns the number of a session, None for an empty cell.

    Raises:
        BadRowError: it is anything else.
    """
    if not cell:
        return None
    if not (cell.isdecimal() and cell.isascii() and int(cell[:20]) <= LARGEST_SESSION):
        raise BadRowError(
            f"{SESSION} is {shown(cell)}, expected nothing or an integer from 0 to "
            f"{LARGEST_SESSION}"
        )
    return int(cell)


def read_request_log(path: str | Path) -> list[LoggedRequest]:
    """Reads all requests of a log, in the file's order.

    Args:
        path: a CSV file, plain or gzip; further columns are ignored, and `session` may be missing.

    Raises:
        InputError: the file cannot be read, lacks a column or has no row, or a row is bad; the
            message names the line, the value and what was expected.
    """
    path = Path(path)
    try:
        with TextIOWrapper(open_trace(path), encoding="utf-8-sig", newline="") as text:
            requests = list(_requests(path, text))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; expected the log of a gateway") from error
    if not requests:
        raise InputError(f"{path} has no rows; expected one per request")
    return requests


def _requests(path: Path, text: TextIOWrapper) -> Iterator[LoggedRequest]:
    reader = csv.reader(text, strict=True)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in LoggedRequest._fields if name not in (*header, SESSION)]
    if missing:
        raise InputError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; expected the "
            f"log of a gateway, whose header is {LoggedRequest.header().strip()}"
        )
    for cells in filter(None, reader):
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise InputError(
                f"{where}: {len(cells)} values, expected {len(header)} as in the header; mend or "
                "remove the line"
            )
        try:
            yield LoggedRequest.parsed(dict(zip(header, cells, strict=True)))
        except BadRowError as error:
            raise InputError(f"{where}: {error}; mend or remove the line") from error


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int):
        return str(value)
    text = StringIO()
    csv.writer(text, lineterminator="").writerow([value])
    return text.getvalue() if value else ""


def _time(column: str, cell: str) -> float:
    try:
        time_s = float(cell)
    except ValueError:
        time_s = math.nan
    if not 0 <= time_s < math.inf:
        raise BadRowError(f"{column} is {shown(cell)}, expected finite seconds >= 0")
    return time_s


def _tokens(column: str, cell: str, least: int) -> int:
    whole: object = int(cell) if cell.isdecimal() and cell.isascii() and len(cell) < 20 else cell
    return 0 if whole == 0 and least == 0 else checked_tokens(column, whole)
