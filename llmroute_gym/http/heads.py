"""Heads of requests and answers: found, checked, taken apart.

llhttp judges every head. On top of it stands what it leaves open and what lets two readers of the
same bytes disagree about where a request ends.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

from llmroute_gym.config import HttpLimits

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, with values, in the order of the wire."""

METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
)
END = b"\r\n\r\n"

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_METHOD = re.compile(rb"[A-Z]{1,20}")
_VERSION = re.compile(rb"HTTP/\d(\.\d)?")
_TARGET = re.compile(rb"/[\x21-\x22\x24-\x7e]*")
_LENGTH = re.compile(rb"\d{1,15}")


class HttpError(Exception):
    """What the other end sent cannot be taken.

    Args:
        status: what a server answers to it.
        message: why, in words that may be shown to anybody.
        headers: of that answer, besides those of its body.
    """

    def __init__(
        self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


@dataclass(slots=True)
class Head:
    """What heads of both kinds have.

    Attributes:
        headers: all of them.
        length: bytes of the body; None if the head does not tell.
        chunked: whether the body comes in chunks.
        keep_alive: whether the connection may be used again.
    """

    headers: Headers
    length: int | None
    chunked: bool
    keep_alive: bool

    def get(self, name: bytes) -> bytes | None:
        """Returns the value of the first header of a name in lower case."""
        for one, value in self.headers:
            if one == name:
                return value
        return None


@dataclass(slots=True)
class RequestHead(Head):
    """The head of a request.

    Attributes:
        method: in upper case.
        target: in origin form, with its query.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        expects_continue: whether the client waits for leave to send the body.
        framed: whether it says how long its body is; without, it has none.
    """

    method: str
    target: bytes
    minor: int
    expects_continue: bool
    framed: bool

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition(b"?")[0].decode("ascii")


@dataclass(slots=True)
class AnswerHead(Head):
    """The head of an answer.

    Attributes:
        status: its code.
    """

    status: int


def find_request_head(received: bytes, limits: HttpLimits) -> int:
    """Returns where a request's head ends, or -1 when there is more to come.

    What is wrong is found at the same byte however the bytes were split.

    Raises:
        HttpError: no request can begin so, or the head is too large.
    """
    end = received.find(END, 0, limits.head_bytes)
    within = min(len(received), limits.head_bytes) if end < 0 else end + len(END)
    if received[:1] and not received[:1].isupper():
        raise HttpError(400, "a request must begin with its method")
    ends = received.count(b"\r\n", 0, within)
    if received.count(b"\n", 0, within) != ends or received.count(b"\r", 0, within) != ends:
        bare = _BARE.search(received, 0, within)
        line = received.find(b"\r\n", 0, within)
        if bare and (bare.start() <= limits.target_bytes or 0 <= line <= limits.target_bytes):
            raise HttpError(400, "lines of a head must end with CR LF")
    line = received.find(b"\r\n", 0, within)
    if line > limits.target_bytes or (line < 0 and len(received) > limits.target_bytes + 1):
        raise HttpError(414, f"the request line must have at most {limits.target_bytes} bytes")
    if end < 0 and len(received) >= limits.head_bytes:
        raise HttpError(431, f"the head must have at most {limits.head_bytes} bytes")
    return -1 if end < 0 else end + len(END)


class _Sink:
    """Takes what llhttp finds."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))


def parse_request(head: bytes, limits: HttpLimits) -> RequestHead:
    """Takes the head of a request apart.

    Args:
        head: to its empty line, that one included.
        limits: of headers and body.

    Raises:
        HttpError: it is malformed, ambiguous, too large, or wants what is not offered.
    """
    words = head[: head.index(b"\r\n")].split(b" ")
    if len(words) != 3:
        raise HttpError(400, "a request line must be METHOD TARGET VERSION")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise HttpError(400, "the version must be HTTP/1.1 or HTTP/1.0")
    if method not in METHODS:
        known = _METHOD.fullmatch(method)
        raise HttpError(501 if known else 400, "the method is not one of HTTP")
    if not _TARGET.fullmatch(target) and not (method == b"OPTIONS" and target == b"*"):
        raise HttpError(400, "the target must be a path that begins with /")
    sink = _Sink()
    try:
        httptools.HttpRequestParser(sink).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # no other protocol is offered, so the request is taken as it is
    except httptools.HttpParserError as error:
        raise _judged(error, sink.headers) from None
    headers = sink.headers
    if len(headers) > limits.headers:
        raise HttpError(431, f"at most {limits.headers} headers are taken")
    minor = int(version == b"HTTP/1.1")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (minor and not hosts):
        raise HttpError(400, "a request must name its host once")
    length, chunked = _framing(headers, minor)
    if length is not None and length > limits.body_bytes:
        raise HttpError(413, f"a body must have at most {limits.body_bytes} bytes")
    framed = chunked or length is not None
    return RequestHead(
        headers=headers,
        length=length if framed else 0,
        chunked=chunked,
        keep_alive=_keeps_alive(headers, minor),
        method=method.decode("ascii"),
        target=target,
        minor=minor,
        expects_continue=bool(minor and _expectation(headers)),
        framed=framed,
    )


def parse_answer(head: bytes) -> AnswerHead:
    """Takes the head of an answer apart.

    Args:
        head: to its empty line, that one included.

    Raises:
        HttpError: it is malformed or ambiguous.
    """
    sink = _Sink()
    parser = httptools.HttpResponseParser(sink)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        raise HttpError(502, "the answer changes the protocol") from None
    except httptools.HttpParserError as error:
        raise HttpError(502, f"the answer is malformed: {error}") from None
    status, version = parser.get_status_code(), parser.get_http_version()
    if version not in ("1.1", "1.0") or not 100 <= status <= 599:
        raise HttpError(502, "the answer is not one of HTTP/1.1")
    minor = int(version == "1.1")
    try:
        length, chunked = _framing(sink.headers, minor)
    except HttpError as error:
        raise HttpError(502, f"the answer is malformed: {error.message}") from None
    if status < 200 or status in (204, 304):
        length, chunked = 0, False
    keep_alive = _keeps_alive(sink.headers, minor) and (chunked or length is not None)
    return AnswerHead(sink.headers, length, chunked, keep_alive, status)


def _judged(error: Exception, headers: Headers) -> HttpError:
    """Returns what to answer to a head that llhttp refuses."""
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = any(name == b"content-length" for name, _ in headers)
    if codings and codings != [b"chunked"] and not lengths and "ncoding" in str(error):
        return HttpError(501, "chunked is the only transfer coding that is taken")
    return HttpError(400, f"the head is malformed: {error}")


def _framing(headers: Headers, minor: int) -> tuple[int | None, bool]:
    """Returns how long a body is by its headers, and whether it comes in chunks."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if codings and (lengths or not minor):
        raise HttpError(400, "a body has either a length or a transfer coding of HTTP/1.1")
    if codings:
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HttpError(501, "chunked is the only transfer coding that is taken")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise HttpError(400, "a length must be one whole number")
    return int(lengths[0]), False


def _keeps_alive(headers: Headers, minor: int) -> bool:
    words = {
        word.strip().lower()
        for name, value in headers
        if name == b"connection"
        for word in value.split(b",")
    }
    return b"close" not in words and (minor == 1 or b"keep-alive" in words)


def _expectation(headers: Headers) -> bool:
    for name, value in headers:
        if name == b"expect":
            if value.lower() != b"100-continue":
                raise HttpError(417, "100-continue is the only expectation that is met")
            return True
    return False
