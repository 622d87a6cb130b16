"""Where a body ends: readers that are fed whatever comes and say what belongs to it."""

import re

from llmroute_gym.http.heads import Head, HttpError

LONGEST_LINE = 256
"""Bytes of the line that tells a chunk's size."""
LONGEST_TRAILERS = 8_192
"""Bytes of the headers after the last chunk, which are read and dropped."""

_SIZE = re.compile(rb"([0-9a-fA-F]{1,12})[ \t]*(?:;[\t\x20-\x7e]*)?\r\n")
_SIZES = {b"%x" % size: size for size in range(1, 4096)}
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class LengthBody:
    """A body whose length is known.

    Args:
        length: in bytes; None means to the connection's end.
    """

    __slots__ = ("_left", "done")

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.done = length == 0

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Returns what of the bytes is of the body, and what follows it."""
        if self._left is None:
            return received, b""
        mine, rest = received[: self._left], received[self._left :]
        self._left -= len(mine)
        self.done = self._left == 0
        return mine, rest


class ChunkedBody:
    """A body in chunks.

    Args:
        limit: most bytes of all chunks; None sets no limit.
    """

    __slots__ = ("_between", "_last", "_left", "_limit", "_line", "_trailers", "done")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._left = 0
        self._line = b""
        self._between = False
        self._last = False
        self._trailers = 0
        self.done = False

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Returns what of the bytes is of the body, and what follows it.

        Raises:
            HttpError: they are no chunks, or too many.
        """
        mine: list[bytes] = []
        at = 0
        if self._limit is None and not (self._left or self._between or self._last or self._line):
            at = _whole_chunks(received, mine)
        while at < len(received) and not self.done:
            if self._left:
                piece = received[at : at + self._left]
                mine.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._between = self._left == 0
                continue
            end = received.find(b"\n", at) + 1
            self._line += received[at : end or len(received)]
            at = end or len(received)
            if len(self._line) > (LONGEST_TRAILERS if self._last else LONGEST_LINE):
                raise HttpError(400, "a line between chunks is too long")
            if end:
                line, self._line = self._line, b""
                self._read(line)
        return (mine[0] if len(mine) == 1 else b"".join(mine)), received[at:]

    def _read(self, line: bytes) -> None:
        """Takes a line between chunks."""
        if self._between:
            if line != b"\r\n":
                raise HttpError(400, "a chunk is longer than it says")
            self._between = False
        elif self._last:
            self._trailers += len(line)
            if line == b"\r\n":
                self.done = True
            elif self._trailers > LONGEST_TRAILERS or not _TRAILER.fullmatch(line):
                raise HttpError(400, "the headers after the last chunk are malformed")
        else:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise HttpError(400, "a chunk must begin with its size")
            self._left = int(size[1], 16)
            self._last = self._left == 0
            if self._limit is not None:
                self._limit -= self._left
                if self._limit < 0:
                    raise HttpError(413, "the body is too large")


def _whole_chunks(received: bytes, mine: list[bytes]) -> int:
    """Takes whole chunks of a few kilobytes; returns where something else begins.

    Most answers come in such ones, and a line for each is slow.

    Args:
        received: begins with a chunk.
        mine: gets their contents.
    """
    at = 0
    while True:
        end = received.find(b"\r\n", at, at + 5)
        size = _SIZES.get(received[at:end]) if end > 0 else None
        if size is None:
            return at
        start = end + 2
        stop = start + size
        if received[stop : stop + 2] != b"\r\n":
            return at
        mine.append(received[start:stop])
        at = stop + 2


Body = LengthBody | ChunkedBody


def body_of(head: Head, limit: int | None = None) -> Body:
    """Returns the reader of the body that follows a head.

    Args:
        head: of a request or an answer.
        limit: most bytes of chunks; None sets no limit.
    """
    return ChunkedBody(limit) if head.chunked else LengthBody(head.length)
