"""What a handler answers with."""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable

from llmroute_gym.http.answers import JSON_TYPE, LAST_CHUNK, chunk, error_body, head_bytes
from llmroute_gym.http.heads import HttpError, RequestHead


class Responder:
    """Writes one answer; the head goes with the first bytes of the body.

    What is written after the client has gone is dropped.

    Args:
        transport: of the connection.
        request: that is answered.
        finished: called when the answer is over, and the connection lives.

    Attributes:
        keep_alive: whether the connection may be used again afterwards.
        started: whether something of the answer has been given.
        ended: whether nothing more can be given.
        gone: whether the client left before the end.
        paused: whether the client takes less than it gets.
        on_disconnect: called once if the client leaves before the end.
        on_pause: called when the client takes less than it gets.
        on_resume: called when it has caught up.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_finished",
        "_head",
        "_left",
        "_minor",
        "_transport",
        "ended",
        "gone",
        "keep_alive",
        "on_disconnect",
        "on_pause",
        "on_resume",
        "paused",
        "started",
    )

    def __init__(
        self, transport: asyncio.Transport, request: RequestHead, finished: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._finished = finished
        self._minor = request.minor
        self._bodiless = request.method == "HEAD"
        self._head = b""
        self._chunked = False
        self._left: int | None = None
        self.keep_alive = request.keep_alive
        self.started = self.ended = self.gone = self.paused = False
        self.on_disconnect: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]] = (), length: int | None = None
    ) -> None:
        """Fixes the head.

        Args:
            status: its code.
            headers: without those of framing and connection, which are added.
            length: of the body in bytes; None sends chunks, or to the connection's end to a client
                of HTTP/1.0.
        """
        if self.started:
            raise RuntimeError("an answer starts once")
        self.started = True
        added: list[tuple[bytes, bytes]] = []
        if status in (204, 304):
            self._bodiless, length = True, 0
        elif length is not None:
            added.append((b"content-length", b"%d" % length))
        elif self._minor:
            self._chunked = not self._bodiless
            added.append((b"transfer-encoding", b"chunked"))
        else:
            self.keep_alive = False
        if not self.keep_alive:
            added.append((b"connection", b"close"))
        elif not self._minor:
            added.append((b"connection", b"keep-alive"))
        self._left = length
        self._head = head_bytes(status, (*headers, *added))

    def write(self, content: bytes) -> None:
        """Sends a part of the body; with nothing, the head."""
        self._check()
        if not self.gone:
            self._send(self._framed(content))

    def end(self, content: bytes = b"") -> None:
        """Sends the last part of the body; an answer shorter than its length is cut."""
        self._check()
        framed = self._framed(content)
        if self._left and not self._bodiless:
            self._send(framed)
            self.cut()
            return
        self.ended = True
        if not self.gone:
            self._send(framed + LAST_CHUNK if self._chunked else framed)
            self._finished()

    def send(
        self, status: int, content: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Sends a whole answer."""
        self.start(status, headers, len(content))
        self.end(content)

    def refuse(self, error: HttpError) -> None:
        """Sends an error."""
        content = error_body(error.status, error.message)
        self.send(error.status, content, [JSON_TYPE, *error.headers])

    def cut(self) -> None:
        """Closes after what is written, so that no client takes the answer for a whole one."""
        if self.ended:
            return
        self.ended = True
        if self.gone:
            return
        if not self._minor or not self.started:
            # The end of the connection would be taken for the end of the body.
            self.reset()
            return
        self.keep_alive = False
        self._send(b"")
        self._finished()

    def abort(self) -> None:
        """Closes at once, and drops what the client has not taken."""
        self.ended = True
        if not self.gone:
            self._transport.abort()

    def reset(self) -> None:
        """Closes at once in such a way that the client takes it for an error of the connection."""
        found = self._transport.get_extra_info("socket")
        if found is not None and not self.gone:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def lose(self) -> None:
        """Says that the client has gone; for the connection."""
        self.gone = True
        if not self.ended and self.on_disconnect is not None:
            self.on_disconnect()

    def hold(self, paused: bool) -> None:
        """Says whether the client takes less than it gets; for the connection."""
        self.paused = paused
        told = self.on_pause if paused else self.on_resume
        if not self.ended and told is not None:
            told()

    def _check(self) -> None:
        if not self.started or self.ended:
            raise RuntimeError("an answer is written between its start and its end")

    def _framed(self, content: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(content)
            if self._left < 0:
                raise RuntimeError("an answer is longer than it says")
        if self._bodiless:
            return b""
        return chunk(content) if self._chunked and content else content

    def _send(self, framed: bytes) -> None:
        if self._head:
            framed, self._head = self._head + framed, b""
        if framed and not self._transport.is_closing():
            self._transport.write(framed)
