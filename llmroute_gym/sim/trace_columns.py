"""Reading a trace column by column, for speed; whatever is odd is left to reading it by rows.

That finds and words what is wrong, and reads unusual forms of numbers, lines and quotes. On all
else both give the same arrays.
"""

import gzip
import json
import math
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

FIRST_BYTES, CHUNK_BYTES = 1 << 18, 1 << 22
BOM = b"\xef\xbb\xbf"
INTEGER = rb"-?(?:0|[1-9][0-9]{0,17}+)"
NUMBER = INTEGER + rb"(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
TEXT = rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
INTEGERS_LIST = rb"\[([-0-9, ]*+)\]"
SEGMENTS_LIST = rb"\[((?:\[%b, ?%b\](?:, ?(?=\[))?)*+)\]" % (INTEGER, INTEGER)
COMMAS_TO_LINES = bytes.maketrans(b",", b"\n")
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
            is_json = first.lstrip()[:1] == b"{"
            reader = _JsonReader(first) if is_json else _CsvReader(file, first)
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
        parsed = reader.parsed(chunk)
        begin = min(max(start - seen, 0), len(parsed))
        end = len(parsed) if limit is None else min(start + limit - seen, len(parsed))
        if end > begin:
            yield reader.columns(parsed, begin, end - begin, seen + begin)
        seen += len(parsed)
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
        # Which rows count, and which have a session, is told row by row.
        _require(not {found.outcome, found.session} & set(header))
        self._names = header
        self._arrival = found.arrival if found.arrival in header else None
        self._lengths = found.lengths
        self.meaning = found.meaning(timed=self._arrival is not None)
        self._dated = self.meaning.ticks_per_s == NANOSECONDS_PER_S

    def parsed(self, chunk: bytes) -> Any:
        """Parses lines to a pyarrow.Table; lengths are integers where all can be read as such."""
        from pyarrow import ArrowInvalid, binary, float64, int64

        _check_text(chunk)
        # Arrow takes quotes less strictly than csv and reads hexadecimal numbers.
        _require(b'"' not in chunk)
        if b"x" in chunk or b"X" in chunk:
            _require(HEXADECIMAL.search(chunk) is None)
        times = {} if self._arrival is None else {self._arrival: float64()}
        if self._arrival is not None and self._dated:
            times[self._arrival] = binary()
        try:
            types = {**times, **dict.fromkeys(self._lengths, int64())}
            return _parsed_csv(chunk, self._names, types)
        except ArrowInvalid:
            types = {**times, **dict.fromkeys(self._lengths, float64())}
            return _parsed_csv(chunk, self._names, types)

    def columns(self, parsed: Any, begin: int, size: int, number: int) -> Columns:
        """Returns checked columns of ``size`` rows that are row ``number`` of the file and on."""
        table = parsed.slice(begin, size)
        prompts, outputs = (_tokens(table.column(name).to_numpy()) for name in self._lengths)
        numbers = np.arange(number, number + size)
        if self._arrival is None:
            return Columns(np.zeros(size), prompts, outputs, numbers)
        times = table.column(self._arrival).combine_chunks()
        times = _dates(times) if self._dated else _in_range(times.to_numpy())
        return Columns(times, prompts, outputs, numbers)


def _parsed_csv(chunk: bytes, names: list[str], types: dict[str, Any]) -> Any:
    """Returns a pyarrow.Table of those columns of all that have a type."""
    from pyarrow import BufferReader, csv

    return csv.read_csv(
        BufferReader(chunk),
        csv.ReadOptions(column_names=names, use_threads=False),
        csv.ParseOptions(quote_char=False, double_quote=False),
        csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[],
            strings_can_be_null=False,
        ),
    )


class _JsonReader:
    """Reads JSON lines that are all built like the first one; ``rest`` is the first ones.

    A regular expression takes them apart: Arrow's reader of JSON, which is no faster, has crashed
    on damaged files.
    """

    def __init__(self, first: bytes) -> None:
        self.rest = first.lstrip()
        line = self.rest.partition(b"\n")[0].decode()
        found = json_format(json_object(line))
        pairs = json.loads(line, object_pairs_hook=list)
        if found is None or len(dict(pairs)) < len(pairs):
            raise OddError
        self._format = found
        self._keys = [key for key, _ in pairs if key in (*found.keys, *found.contents)]
        self._line = re.compile(
            rb"^\{%b\}[ \r]*$" % rb", ?".join(self._field(key) for key, _ in pairs), re.MULTILINE
        )
        self.meaning = found.meaning
        self._session = sessions()

    def _field(self, key: str) -> bytes:
        """Returns the pattern of a key and its value, which is a group where it counts."""
        value = rb"(?:%b|true|false|null|%b)" % (TEXT, NUMBER)
        if key in self._format.keys:
            value = rb"(%b)" % NUMBER
        elif key in self._format.contents:
            value = SEGMENTS_LIST if key == SEGMENTS else INTEGERS_LIST
        return rb"%b: ?%b" % (re.escape(json.dumps(key).encode()), value)

    def parsed(self, chunk: bytes) -> list[Any]:
        """Parses lines to the texts of their values."""
        _check_text(chunk)
        rows = self._line.findall(chunk)
        if len(rows) != chunk.count(b"\n"):
            _require(len(rows) == sum(1 for line in chunk.split(b"\n") if line.strip()))
        return rows

    def columns(self, parsed: list[Any], begin: int, size: int, number: int) -> Columns:
        """Returns checked columns of ``size`` rows that are row ``number`` of the file and on."""
        texts = dict(zip(self._keys, zip(*parsed[begin : begin + size], strict=True), strict=True))
        values = {key: _numbers(texts[key]) for key in self._format.keys}
        chats = None
        if self._format is BAILIAN:
            pairs = (_whole(values[key]).tolist() for key in CHAT[:2])
            chats = np.array(list(map(self._session, *pairs)))
        pieces = streams = lengths = None
        for key in self._format.contents:
            if key in texts:
                _require(pieces is None)
                pieces, streams = _listed(texts[key])
                if key == SEGMENTS:
                    pieces, (streams, lengths) = pieces // 2, streams.reshape(-1, 2).T
        times = _in_range(values[self._format.time])
        prompts, outputs = (_tokens(_whole(values[key])) for key in LENGTHS)
        numbers = np.arange(number, number + size)
        return Columns(times, prompts, outputs, numbers, pieces, streams, lengths, chats)


def _numbers(texts: tuple[bytes, ...]) -> npt.NDArray[Any]:
    """Returns numbers, integers where all are; longer ones do not get here."""
    try:
        return np.array(list(map(int, texts)))
    except ValueError:
        return np.array(list(map(float, texts)))


def _whole(numbers: npt.NDArray[Any]) -> IntArray:
    _require(numbers.dtype == np.int64)
    return numbers


def _listed(texts: tuple[bytes, ...]) -> tuple[IntArray, IntArray]:
    """Returns how many integers each list has, and all of them in a row."""
    from pyarrow import int64

    counts = np.array([text.count(b",") + (text != b"") for text in texts])
    joined = b",".join(filter(None, texts))
    if not joined:
        return counts, np.empty(0, dtype=np.int64)
    text = b"\n%b\n" % joined.translate(COMMAS_TO_LINES, b"[]" if b"[" in joined else b"")
    flat = _parsed_csv(text, ["0"], {"0": int64()}).column("0").to_numpy()
    # Arrow takes less for a mistake than JSON does: 01, and nothing between two commas.
    byte = np.frombuffer(text, np.uint8)
    zeros = (byte[:-2] < ord("0")) & (byte[1:-1] == ord("0")) & (byte[2:] >= ord("0"))
    _require(len(flat) == counts.sum() and not zeros.any())
    return counts, flat


def _tokens(tokens: npt.NDArray[Any]) -> IntArray:
    """Returns numbers of tokens, each a whole number within the limits."""
    _require(tokens.min() >= 1 and tokens.max() <= MAX_TOKENS)
    whole: IntArray = tokens.astype(np.int64, copy=False)
    _require((whole == tokens).all())
    return whole


def _in_range(times: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns times, each finite and >= 0; nan fails the first comparison."""
    _require(times.min() >= 0 and times.max() < math.inf)
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
