"""Reading recorded workloads in the formats in which LLM traces are published."""

import csv
import gzip
import logging
import math
import os
import zlib
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.sim.trace_columns import read_columns
from llmroute_gym.sim.trace_content import content_of
from llmroute_gym.sim.trace_csv import csv_layout
from llmroute_gym.sim.trace_json import BAILIAN, json_layout
from llmroute_gym.sim.trace_rows import (
    UNITS,
    BadRowError,
    Columns,
    Layout,
    Meaning,
    Rows,
    UnservedRowError,
    open_trace,
)
from llmroute_gym.sim.workload import Workload

logger = logging.getLogger(__name__)

SENSIBLE_QPS = (0.005, 1000.0)
"""Rates in requests/s that a published trace may have; beyond, its unit is in doubt."""
ENOUGH_REQUESTS = 10
"""Fewer say nothing about a rate."""
# Advice that the command line words otherwise.
SKIP = "on_error='skip'"
ONLY_LENGTHS = (
    "read it with need_times=False, and draw times with TraceWorkload(workload, qps, "
    "PoissonArrivals())"
)


def load_trace(
    path: str | os.PathLike[str],
    *,
    qps: float | None = None,
    limit: int | None = None,
    start: int = 0,
    max_prompt_tokens: int | None = None,
    on_error: str = "raise",
    rebase: bool = True,
    need_times: bool = True,
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
    - Qwen-Bailian: the same with ``timestamp`` in seconds, ``chat_id``, ``parent_chat_id``,
      ``turn`` and ``hash_ids`` of 16-token blocks; a request's session is the root of its chat
    - a gateway's request log, see ``llmroute_gym.sim.request_log``: seconds, with its sessions;
      requests that were not served are left out, and how many is logged as a warning
    - segments: JSON lines with ``arrived_at_s``, ``input_length``, ``output_length`` and
      optionally ``hash_ids`` of 512-token blocks or ``segments``, a list of [stream, tokens] as in
      ``Content``, where stream -(i + 1) is the output of row i of the file, counted from 0

    A CSV file of one of these formats may lack its arrival times and serve where times are drawn:
    see ``need_times``.

    Where the unit of the times is in doubt, a warning says how they were read and what other
    reading would make sense. So it does of hashes that fit blocks of another size than the
    format's; those that fit none are left out.

    Rows are cut by ``start`` and ``limit`` in the file's order, checked, sorted by arrival
    (stable, with a warning where the file was not), moved so that the first kept arrival is at
    time 0, and rescaled to ``qps``.

    Args:
        path: the file.
        qps: mean rate to rescale to in requests/s, > 0; None keeps the recorded one.
        limit: keep at most this many rows, >= 1.
        start: leave out this many rows first, >= 0.
        max_prompt_tokens: longer prompts (and their content) are cut to this; how many is
            logged as a warning.
        on_error: ``"raise"`` stops at the first bad row, ``"skip"`` leaves bad rows out and logs
            how many as a warning.
        rebase: move the first arrival to time 0; False keeps the file's own times.
        need_times: refuse a file of lengths only; False reads it, and all its requests arrive at
            time 0, in the file's order.

    Returns:
        The workload, with ``content`` and ``session`` where the file has them.

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

    columns, meaning = _read(file, start, limit, skip=on_error == "skip")
    if meaning.missing_times is not None and (need_times or qps is not None):
        raise InputError(
            f"{file} has no arrival times (no column {meaning.missing_times}), which are needed "
            f"here; {ONLY_LENGTHS}",
            in_commands={ONLY_LENGTHS: "choose workload/arrivals=poisson, or another trace"},
        )
    content, block_tokens = content_of(file, columns, meaning.hash_block_tokens)
    prompts = columns.prompts
    if max_prompt_tokens is not None and prompts.max() > max_prompt_tokens:
        logger.warning(
            "cut %d of %d prompts of %s to max_prompt_tokens=%d",
            *(np.count_nonzero(prompts > max_prompt_tokens), len(columns), file),
            max_prompt_tokens,
        )
        prompts = np.minimum(prompts, max_prompt_tokens)
        content = content and content.cut(max_prompt_tokens)
    arrived_at_s = _seconds(file, columns.times, meaning, rebase=rebase)
    try:
        workload = Workload(arrived_at_s, prompts, columns.outputs, content, columns.sessions)
    except InputError as error:
        raise InputError(f"{file} is no workload: {error}") from error
    if qps is not None:  # then the unit makes no difference
        return workload.with_qps(qps)
    _warn_of_doubtful_unit(file, columns, meaning, workload, block_tokens)
    return workload


def recorded_workload(
    path: str | os.PathLike[str] | None, workload: Workload | None, *, need_times: bool = True
) -> Workload:
    """Returns the workload, or the one in the file; for options that accept either.

    Raises:
        InputError: both or none are given, the file is no trace, or it lacks times that are needed.
    """
    if workload is not None and path is None:
        return workload
    if path is None or workload is not None:
        raise InputError("give exactly one of path and workload")
    return load_trace(path, need_times=need_times)


def _read(file: Path, start: int, limit: int | None, *, skip: bool) -> tuple[Columns, Meaning]:
    """Returns the rows asked for, and how their numbers are meant."""
    read = read_columns(file, start, limit)
    if read is None:
        return _read_rows(file, start, limit, skip=skip)
    _warn_of_few(file, start, limit, len(read[0]))
    return read


def _warn_of_few(file: Path, start: int, limit: int | None, total: int) -> None:
    if limit is not None and total < limit:
        logger.warning(
            "limit=%d asks for more rows than the %d that %s has from row %d; all are used",
            *(limit, total, file, start),
        )


def _read_rows(file: Path, start: int, limit: int | None, *, skip: bool) -> tuple[Columns, Meaning]:
    """Reads row by row, which says what is wrong with the file or with a row."""
    try:
        with TextIOWrapper(open_trace(file), encoding="utf-8-sig", newline="") as text:
            layout = json_layout(text) if _is_json(text) else csv_layout(file, text)
            rows = _parse_rows(file, layout, start, limit, skip=skip)
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
    return rows.columns(), layout.meaning


def _whence(file: Path) -> str:
    """Says where a missing trace may come from."""
    from llmroute_gym.sim.fetch import PUBLIC_TRACES

    name = file.name.partition(".")[0]
    if name in PUBLIC_TRACES:
        return f"python -m llmroute_gym.fetch {name} downloads it"
    return "give the path of a trace"


def _is_json(text: IO[str]) -> bool:
    """Returns whether the text begins as JSON lines do; the text is left at its beginning."""
    head = text.read(4096)
    text.seek(0)
    return head.lstrip().startswith("{")


def _parse_rows(file: Path, layout: Layout, start: int, limit: int | None, *, skip: bool) -> Rows:
    """Cuts and parses rows; raises on the first bad one or reports how many were skipped."""
    rows = Rows()
    first_bad, bad, unserved, total = "", 0, 0, 0
    cut = sum(1 for _ in islice(layout.numbered, start))
    for number, (line, row) in enumerate(islice(layout.numbered, limit), start):
        total += 1
        try:
            layout.parse(rows, number, row)
        except UnservedRowError:
            unserved += 1
        except BadRowError as error:
            first_bad = first_bad or f"{file}, line {line}: {error}"
            bad += 1
            if not skip:
                raise InputError(
                    f"{first_bad}; mend the row or use {SKIP}",
                    in_commands={SKIP: "workload.on_error=skip"},
                ) from error
        else:
            rows.numbers.append(number)
    if total == 0:
        if start:
            raise InputError(f"start={start} is beyond the {cut} rows of {file}")
        raise InputError(f"{file} has a header but no rows; expected one row per request")
    if unserved == total:
        raise InputError(f"{file} has no request among {total} that was served; log more of them")
    if bad + unserved == total:
        raise InputError(f"{file} has no usable row among {total}; the first: {first_bad}")
    if bad:
        logger.warning("skipped %d of %d rows; the first: %s", bad, total, first_bad)
    if unserved:
        logger.warning("left out %d of %d requests of %s, not served", unserved, total, file)
    _warn_of_few(file, start, limit, total)
    return rows


def _seconds(file: Path, ticks: npt.NDArray[Any], meaning: Meaning, *, rebase: bool) -> FloatArray:
    """Returns times in seconds; integers are rebased before the division, so exactly."""
    earlier = int(np.count_nonzero(ticks[1:] < ticks[:-1]))
    if earlier and meaning.by_arrival:
        logger.warning(
            "%d arrivals in %s are earlier than the row before; sorted by arrival", earlier, file
        )
    return np.asarray((ticks - ticks.min() if rebase else ticks) / meaning.ticks_per_s)


def _warn_of_doubtful_unit(
    file: Path, columns: Columns, meaning: Meaning, workload: Workload, block_tokens: int
) -> None:
    """Warns where times may be meant in another unit, and says what they would be in that."""
    ticks = meaning.ticks_per_s
    if ticks not in UNITS or not math.isfinite(workload.qps):
        return
    low, high = SENSIBLE_QPS
    units = list(UNITS)
    finer, coarser = units[units.index(ticks) + 1 :], units[: units.index(ticks)]
    other, why = 0, ""
    if not meaning.unit_is_certain and (columns.times % 1 != 0).any():
        other, why = coarser[-1], "some of them are fractions"
    elif not meaning.unit_is_certain and block_tokens == BAILIAN.meaning.hash_block_tokens:
        other, why = coarser[-1], f"its hash_ids are of {block_tokens}-token blocks"
    elif len(workload) >= ENOUGH_REQUESTS and workload.qps > high and coarser:
        other, why = coarser[-1], "that is a lot"
    elif len(workload) >= ENOUGH_REQUESTS and workload.qps < low and finer:
        other, why = finer[0], "that is very little"
    if other:
        logger.warning(
            "the times of %s are read as %s, which gives %.3g requests/s, but %s; as %s they give "
            "%.3g requests/s: convert them if they are that; rescaled to a qps both are the same",
            *(file, UNITS[ticks], workload.qps, why, UNITS[other]),
            workload.qps * other / ticks,
        )
