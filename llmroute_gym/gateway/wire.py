"""What goes over the wires, and what of it goes on: requests to backends, answers to clients."""

import json
from collections.abc import Collection

from llmroute_gym.gateway.backends import Backend
from llmroute_gym.http.heads import AnswerHead, Headers, RequestHead

REQUEST_HEADERS = frozenset(
    (b"content-type", b"accept", b"authorization", b"x-request-id", b"traceparent")
)
"""Of a client that a backend gets; no other header can do anything there."""
ANSWER_HEADERS = frozenset(
    (
        *(b"content-type", b"content-encoding", b"cache-control", b"date", b"retry-after"),
        *(b"x-request-id", b"www-authenticate", b"openai-processing-ms", b"openai-version"),
    )
)
"""Of a backend that a client gets; nothing of them tells an address."""
STREAM = b"text/event-stream"


def request_bytes(request: RequestHead, body: bytes, backend: Backend, *, own_key: bool) -> bytes:
    """Returns a request as a backend gets it: the same body under a head of its own.

    Args:
        request: of the client.
        body: of the client.
        backend: that gets it.
        own_key: whether the client showed the gateway's own key, which no backend gets.
    """
    method = "POST" if request.method == "POST" else "GET"
    withheld = b"authorization" if backend.key or own_key else b""
    parts = [
        f"{method} {backend.path}{request.path} HTTP/1.1\r\nhost: {backend.host_header}\r\n".encode(
            "ascii"
        )
    ]
    for name, value in request.headers:
        if name in REQUEST_HEADERS and name != withheld:
            parts.append(b"%b: %b\r\n" % (name, value))
    if backend.key:
        parts.append(b"authorization: Bearer %b\r\n" % backend.key)
    if method == "POST":
        parts.append(b"content-length: %d\r\n" % len(body))
    parts += (b"\r\n", body)
    return b"".join(parts)


def answer_headers(head: AnswerHead, only: Collection[str] = ()) -> Headers:
    """Returns the headers of an answer that a client gets.

    Args:
        head: of the backend.
        only: the names of those that are wanted; none means all.
    """
    wanted = frozenset(name.encode("ascii") for name in only) or ANSWER_HEADERS
    return [(name, value) for name, value in head.headers if name in wanted]


def cut_event(reason: str, last: bytes) -> bytes:
    """Returns the event that ends a stream which breaks off; nothing says that it is done.

    Args:
        reason: why, in one word.
        last: the last bytes that were sent, whose event may be incomplete.
    """
    message = f"the answer broke off: {reason}"
    error = {"message": message, "type": "upstream_error", "param": None, "code": 502}
    start = "" if last.endswith((b"\n\n", b"\r\n\r\n")) else "\n\n"
    return f"{start}data: {json.dumps({'error': error})}\n\n".encode()
