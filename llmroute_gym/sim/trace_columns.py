"""Reading a trace column by column, for speed; whatever is odd is left to reading it by rows.

That finds and words what is wrong, and reads unusual forms of numbers, lines and quotes. On all
else both give the same arrays.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.trace_csv import NANOSECONDS_PER_S, TIMESTAMP, recognised
from llmroute_gym.sim.trace_json import (
    BAILIAN,
    CHAT,
    LENGTHS,
    SEGMENTS,
    json_format,
    json_object,
    sessions,
)
from llmroute_gym.sim.trace_rows import BadRowError, Columns, Meaning, open_trace

FIRST_BYTES, CHUNK_BYTES = 1 << 20, 1 << 24
BOM = b"\xef\xbb\xbf"
HEXADECIMAL = re.compile(rb"0[xX]")


class OddError(Exception):
    """The file holds what is left to reading by rows."""


def read_columns(file: Path, start: int, limit: int | None) -> tuple[Columns, Meaning] | None:
    """Returns rows ``start`` to ``start + limit - 1`` of a file and how its numbers are meant.

    None where a row may be bad or anything else is odd.
    """
    from pyarrow import ArrowException

    try:
        with open_trace(file) as raw:
            chunks = _chunks(raw)
            first = next(chunks, b"").removeprefix(BOM)
            json = first.lstrip()[:1] == b"{"
            reader = _JsonReader(first) if json else _CsvReader(file, first)
            columns = _joined(list(_parts(reader, chunks, start, limit)))
        _require(_segments_fit(columns))
    except (OddError, BadRowError, InputError, UnicodeDecodeError, ArrowException):
        return None
    except (OSError, EOFError, zlib.error):
        return None
    return columns, reader.meaning


def _chunks(raw: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Yields whole lines, many at a time; fewer at first, as few may be asked for."""
    rest, size = b"", FIRST_BYTES
    while block := raw.read(size):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end]
            rest = b""
        rest += block[end:]
        _require(len(rest) <= CHUNK_BYTES)
        size = min(2 * size, CHUNK_BYTES)
    if rest:
        yield rest + b"\n"


def _parts(
    reader: "_CsvReader | _JsonReader", chunks: Iterator[bytes], start: int, limit: int | None
) -> Iterator[Columns]:
    """Yields the rows asked for; those before them are looked at only as far as needed."""
    seen = 0
    for chunk in chain([reader.rest], chunks):
        if not chunk.strip():
            continue
        table = reader.table(chunk)
        begin = min(max(start - seen, 0), len(table))
        kept = table.slice(begin, None if limit is None else max(start + limit - seen - begin, 0))
        if len(kept):
            yield reader.columns(kept, seen + begin)
        seen += len(table)
        if limit is not None and seen >= start + limit:
            return


def _joined(parts: list[Columns]) -> Columns:
    """Returns all rows together."""
    _require(len(parts) > 0)
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        columns = [getattr(part, name) for part in parts]
        _require(len({column is None for column in columns}) == 1)
        joined[name] = None if first is None else np.concatenate(columns)
    return Columns(**joined)


class _CsvReader:
    """Reads a CSV file; ``rest`` is what follows the header in the first lines."""

    def __init__(self, file: Path, first: bytes) -> None:
        line, _, self.rest = first.lstrip(b"\r\n").partition(b"\n")
        _check_text(line + b"\n")
        _require(b'"' not in line)
        header = [name.strip() for name in line.decode().split(",")]
        found = recognised(file, header)
        self._names = list(map(str, range(len(header))))
        self._arrival = header.index(found.arrival) if found.arrival in header else None
        self._lengths = [header.index(name) for name in found.lengths]
        self.meaning = found.meaning(timed=self._arrival is not None)
        self._dated = self.meaning.ticks_per_s == NANOSECONDS_PER_S

    def table(self, chunk: bytes) -> Any:
        """Parses lines to a pyarrow.Table; lengths are integers where all can be read as such."""
        from pyarrow import ArrowInvalid, binary, float64, int64

        _check_text(chunk)
        # Arrow takes quotes less strictly than csv and reads hexadecimal numbers.
        _require(b'"' not in chunk)
        if b"x" in chunk or b"X" in chunk:
            _require(HEXADECIMAL.search(chunk) is None)
        types = {} if self._arrival is None else {self._arrival: float64()}
        if self._arrival is not None and self._dated:
            types[self._arrival] = binary()
        try:
            return self._parsed(chunk, {**types, **dict.fromkeys(self._lengths, int64())})
        except ArrowInvalid:
            return self._parsed(chunk, {**types, **dict.fromkeys(self._lengths, float64())})

    def _parsed(self, chunk: bytes, types: dict[int, Any]) -> Any:
        from pyarrow import BufferReader, csv

        named = {str(index): kind for index, kind in types.items()}
        return csv.read_csv(
            BufferReader(chunk),
            csv.ReadOptions(column_names=self._names, use_threads=False),
            csv.ParseOptions(quote_char=False, double_quote=False),
            csv.ConvertOptions(
                column_types=named,
                include_columns=list(named),
                null_values=[],
                strings_can_be_null=False,
            ),
        )

    def columns(self, table: Any, number: int) -> Columns:
        """Returns checked columns of rows that begin at ``number`` of the file."""
        prompts, outputs = (_tokens(table.column(str(index))) for index in self._lengths)
        numbers = np.arange(number, number + len(table))
        if self._arrival is None:
            return Columns(np.zeros(len(table)), prompts, outputs, numbers)
        times = table.column(str(self._arrival)).combine_chunks()
        return Columns(_dates(times) if self._dated else _times(times), prompts, outputs, numbers)


class _JsonReader:
    """Reads JSON lines; ``rest`` is the first ones."""

    def __init__(self, first: bytes) -> None:
        self.rest = first
        found = json_format(json_object(first.lstrip().partition(b"\n")[0].decode()))
        if found is None:
            raise OddError
        self._format = found
        self.meaning = found.meaning
        self._session = sessions()

    def table(self, chunk: bytes) -> Any:
        """Parses lines to a pyarrow.Table; times are integers where all can be read as such."""
        from pyarrow import ArrowInvalid, float64, int64

        chunk = chunk.strip() + b"\n"
        _check_text(chunk)
        try:
            table = self._parsed(chunk, int64())
        except ArrowInvalid:
            table = self._parsed(chunk, float64())
        # Arrow reads objects wherever they are; here each has its line.
        _require(len(table) == chunk.count(b"\n") == chunk.count(b"\n{") + 1)
        for key in self._format.contents:
            if table.column(key).null_count == len(table):  # absent, or null
                _require(f'"{key}"'.encode() not in chunk)
        return table

    def _parsed(self, chunk: bytes, time: Any) -> Any:
        from pyarrow import BufferReader, int64, json, list_, schema

        kinds = dict.fromkeys((*self._format.chat, *LENGTHS), int64())
        kinds[self._format.time] = time
        for key in self._format.contents:
            kinds[key] = list_(list_(int64())) if key == SEGMENTS else list_(int64())
        return json.read_json(
            BufferReader(chunk),
            json.ReadOptions(block_size=len(chunk), use_threads=False),
            json.ParseOptions(
                explicit_schema=schema(kinds.items()), unexpected_field_behavior="ignore"
            ),
        )

    def columns(self, table: Any, number: int) -> Columns:
        """Returns checked columns of rows that begin at ``number`` of the file."""
        found = self._format
        _require(all(table.column(key).null_count == 0 for key in found.keys))
        times = _times(table.column(found.time).combine_chunks())
        prompts, outputs = (_tokens(table.column(key)) for key in LENGTHS)
        numbers = np.arange(number, number + len(table))
        chats = None
        if found is BAILIAN:
            pairs = (table.column(key).to_pylist() for key in CHAT[:2])
            chats = np.array(list(map(self._session, *pairs)))
        given = [key for key in found.contents if table.column(key).null_count < len(table)]
        _require(len(given) < 2)
        pieces = streams = lengths = None
        if given:
            pieces, streams, lengths = _pieces(table.column(given[0]).combine_chunks())
        return Columns(times, prompts, outputs, numbers, pieces, streams, lengths, chats)


def _pieces(rows: Any) -> tuple[IntArray, IntArray, IntArray | None]:
    """Returns how many pieces each row has, and their hashes or their streams and lengths."""
    flat = rows.flatten()
    _require(rows.null_count == 0 and flat.null_count == 0)
    counts = rows.value_lengths().to_numpy().astype(np.int64)
    if flat.type.num_fields == 0:
        return counts, flat.to_numpy(), None
    numbers = flat.flatten()
    _require((flat.value_lengths().to_numpy() == 2).all() and numbers.null_count == 0)
    streams, lengths = numbers.to_numpy().reshape(-1, 2).T
    return counts, streams, lengths


def _tokens(column: Any) -> IntArray:
    """Returns numbers of tokens, each a whole number within the limits."""
    tokens = column.to_numpy()
    _require(tokens.min() >= 1 and tokens.max() <= MAX_TOKENS)
    whole: IntArray = tokens.astype(np.int64, copy=False)
    _require((whole == tokens).all())
    return whole


def _times(column: Any) -> npt.NDArray[Any]:
    """Returns times, each finite and >= 0; nan fails the first comparison."""
    times: npt.NDArray[Any] = column.to_numpy()
    # Python's integers have no end, Arrow's have.
    _require(times.min() >= 0 and times.max() < 2**63)
    return times


def _dates(texts: Any) -> IntArray:
    """Returns nanoseconds since 1970 of dates and times, all with a zone or all without."""
    from pyarrow import int64, string, timestamp

    match = TIMESTAMP.fullmatch(texts[0].as_py().decode())
    if match is None:
        raise OddError
    zone = "UTC" if match[3] else None
    ticks: IntArray = texts.cast(string()).cast(timestamp("ns", zone)).cast(int64()).to_numpy()
    # Arrow also reads times without seconds or colons, and zones without minutes.
    _, ends, characters = texts.buffers()
    end = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    text = np.frombuffer(characters, np.uint8)
    _require((np.diff(end) >= len("2023-11-16 18:15:46")).all())
    _require(all((text[end[:-1] + place] == ord(":")).all() for place in (13, 16)))
    if zone:
        _require(not np.isin(text[end[1:] - 3], (ord("+"), ord("-"))).any())
    return ticks


def _segments_fit(columns: Columns) -> bool:
    """Returns whether segments add up to their prompts and are of earlier rows' outputs."""
    pieces, streams, lengths = columns.pieces, columns.streams, columns.lengths
    if pieces is None or streams is None or lengths is None or not lengths.size:
        return True
    if lengths.min() < 1 or lengths.max() > MAX_TOKENS:
        return False
    row = np.repeat(np.arange(len(columns)), pieces)
    total = np.bincount(row, lengths, minlength=len(columns))  # exact, as all are below 2**53
    refers = streams < 0
    number, longest = ~streams[refers], lengths[refers]
    known = number - columns.numbers[0]  # numbers are consecutive here
    inside = np.clip(known, 0, len(columns) - 1)
    return bool(
        ((total == columns.prompts) | (pieces == 0)).all()
        and (number < columns.numbers[row[refers]]).all()
        and ((longest <= columns.outputs[inside]) | (known < 0)).all()
    )


def _check_text(chunk: bytes) -> None:
    """Checks that lines are UTF-8 and end as lines do."""
    if not chunk.isascii():
        chunk.decode()
    _require(b"\0" not in chunk and chunk.count(b"\r") == chunk.count(b"\r\n"))


def _require(sound: bool | np.bool_) -> None:
    if not sound:
        raise OddError
