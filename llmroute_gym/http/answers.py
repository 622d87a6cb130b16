"""Answers as bytes, and the form of an error's body."""

import json
from collections.abc import Iterable
from http import HTTPStatus

LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode("ascii") for one in HTTPStatus}
"""Status to the first line of an answer."""
CONTINUE = LINES[100] + b"\r\n"
JSON_TYPE = (b"content-type", b"application/json")
TEXT_TYPE = (b"content-type", b"text/plain; charset=utf-8")


def head_bytes(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns a head as it goes over the wire.

    Args:
        status: its code, 100 to 599.
        headers: names and values, which hold no line end.
    """
    line = LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"".join((line, *(b"%b: %b\r\n" % one for one in headers), b"\r\n"))


def chunk(content: bytes) -> bytes:
    """Returns a chunk, which must not be empty: that would be the last one."""
    return b"%x\r\n%b\r\n" % (len(content), content)


LAST_CHUNK = b"0\r\n\r\n"


def error_body(status: int, message: str, kind: str | None = None) -> bytes:
    """Returns the body of an error as OpenAI's API words it.

    Args:
        status: of the answer.
        message: what is said.
        kind: its ``type``; None goes by the status.
    """
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    return json.dumps({"error": error}).encode("utf-8")
