"""One client's connection: heads and bodies are read, and requests answered one by one."""

import asyncio
import logging
from contextlib import suppress
from enum import Enum
from typing import cast

from llmroute_gym.http.answers import CONTINUE, JSON_TYPE, error_body, head_bytes
from llmroute_gym.http.bodies import Body, body_of
from llmroute_gym.http.heads import (
    HttpError,
    RequestHead,
    find_request_head,
    parse_request,
)
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.site import Handler, Site

log = logging.getLogger(__name__)

AHEAD_BYTES = 65_536
"""Of requests that a client sent before it was answered; beyond, no more is read until then."""
LINGER_S = 2.0
"""How long a client may go on sending what nobody reads, so that it sees the last answer."""


class Phase(Enum):
    """What is waited for, which says what its timeout means."""

    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    IDLE = "next request"
    CLOSING = "end"


class Connection(asyncio.Protocol):
    """Reads requests of one client, strictly in order.

    While one is answered, what follows is kept and not looked at. A client that ends its side of
    the connection is taken to have left.

    Args:
        site: what all connections share.
        loop: that it lives in.
    """

    __slots__ = (
        "_advancing",
        "_body",
        "_deadline_s",
        "_full",
        "_handler",
        "_head",
        "_held",
        "_last_s",
        "_line_left_out",
        "_loop",
        "_parts",
        "_phase",
        "_reading",
        "_received",
        "_responder",
        "_site",
        "_transport",
    )

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site = site
        self._loop = loop
        self._transport: asyncio.Transport
        self._received = b""
        self._head: RequestHead | None = None
        self._handler: Handler
        self._body: Body
        self._parts: list[bytes] = []
        self._held = 0
        self._responder: Responder | None = None
        self._advancing = False
        self._line_left_out = False
        self._reading = True
        self._phase = Phase.HEAD
        self._deadline_s = 0.0
        self._last_s = 0.0
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.set_write_buffer_limits(high=self._site.limits.unsent_bytes)
        self._wait(Phase.HEAD, self._site.timeouts.head_s)
        crowded = len(self._site.connections) >= self._site.limits.connections
        self._site.connections.add(self)
        if crowded:
            self._refuse(HttpError(503, "too many connections", [(b"retry-after", b"1")]))
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if self._phase is Phase.CLOSING:
            return
        self._received = self._received + data if self._received else data
        if self._responder is None:
            self._advance()
        elif len(self._received) > AHEAD_BYTES and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """Takes the client to have left."""
        if self._responder is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything."""
        self._site.connections.discard(self)
        self._phase = Phase.CLOSING
        self._let_go()
        if self._responder is not None:
            responder, self._responder = self._responder, None
            responder.lose()

    def pause_writing(self) -> None:
        """Passes on that the client takes less than it gets."""
        self._full = True
        if self._phase is not Phase.CLOSING:
            self._deadline_s = self._loop.time() + self._site.timeouts.send_s
        if self._responder is not None:
            self._responder.hold(True)

    def resume_writing(self) -> None:
        """Passes on that the client has caught up."""
        self._full = False
        if self._phase is Phase.ANSWER:
            self._deadline_s = float("inf")
        elif self._phase is Phase.IDLE:
            self._wait(Phase.IDLE, self._site.timeouts.idle_s)
        if self._responder is not None:
            self._responder.hold(False)
        elif self._phase is Phase.IDLE and self._received:
            self._advance()

    def look(self, now_s: float) -> None:
        """Ends what has taken too long."""
        if now_s < self._deadline_s:
            return
        unsent = self._transport.get_write_buffer_size() > 0
        if self._phase is Phase.CLOSING and unsent and now_s < self._last_s:
            return
        if unsent or self._phase in (Phase.ANSWER, Phase.CLOSING):
            self._transport.abort()
        elif self._phase is Phase.IDLE or (not self._received and self._head is None):
            self._transport.close()
        else:
            self._refuse(HttpError(408, f"the {self._phase.value} took too long"))

    def wind_up(self) -> None:
        """Closes, after the answer to a request that is under way."""
        if self._responder is not None:
            self._responder.keep_alive = False
        elif self._head is None and not self._received:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        self._transport.abort()

    def _wait(self, phase: Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline_s = self._loop.time() + seconds

    def _advance(self) -> None:
        """Reads what is there, request by request, until one is not answered at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._may_read() and self._step():
                pass
        except HttpError as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _may_read(self) -> bool:
        return not self._full and self._responder is None and self._phase is not Phase.CLOSING

    def _step(self) -> bool:
        """Reads a head, or on in a body; returns whether there may be more to do.

        Raises:
            HttpError: the request cannot be taken.
        """
        if self._head is None:
            return self._read_head()
        mine, self._received = self._body.take(self._received)
        if mine:
            self._site.hold(len(mine))
            self._held += len(mine)
            self._parts.append(mine)
        if self._body.done:
            self._dispatch()
        return self._body.done

    def _read_head(self) -> bool:
        if self._received[:1] == b"\r" and not self._line_left_out:
            # One line end after the body of the last request is an old client's habit.
            if self._received == b"\r":
                return False
            if self._received[1:2] == b"\n":
                self._received = self._received[2:]
                self._line_left_out = True
        if self._phase is Phase.IDLE and self._received:
            self._wait(Phase.HEAD, self._site.timeouts.head_s)
        end = find_request_head(self._received, self._site.limits)
        if end < 0:
            return False
        head = parse_request(self._received[:end], self._site.limits)
        self._received = self._received[end:]
        self._line_left_out = False
        try:
            self._handler = self._site.handler(head)
        except HttpError as error:
            if head.length != 0 or error.status == 411:
                raise
            # Nothing of it is left unread, so that the connection goes on.
            self._site.refused[error.status] += 1
            self._answer(head).refuse(error)
            return True
        self._head = head
        self._body = body_of(head, self._site.limits.body_bytes)
        if not self._body.done:
            self._wait(Phase.BODY, self._site.timeouts.body_s)
            if head.expects_continue and not self._received:
                self._transport.write(CONTINUE)
        return True

    def _dispatch(self) -> None:
        """Gives a whole request to its handler."""
        assert self._head is not None
        head, self._head = self._head, None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        responder = self._answer(head)
        try:
            self._handler(head, body, responder)
        except Exception:
            log.exception("a handler of %s failed", head.path)
            fail(responder)

    def _answer(self, head: RequestHead) -> Responder:
        self._wait(Phase.ANSWER, float("inf"))
        if self._site.stopping:
            head.keep_alive = False
        self._responder = Responder(self._transport, head, self._finished)
        return self._responder

    def _finished(self) -> None:
        """Goes on after an answer."""
        assert self._responder is not None
        keep_alive = self._responder.keep_alive and not self._site.stopping
        self._responder = None
        self._let_go()
        if not keep_alive:
            self._linger()
            return
        self._wait(Phase.IDLE, self._site.timeouts.idle_s)
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if self._received:
            self._advance()

    def _let_go(self) -> None:
        self._site.hold(-self._held)
        self._held = 0
        self._parts.clear()

    def _refuse(self, error: HttpError) -> None:
        """Answers to what cannot be read on, and closes."""
        self._site.refused[error.status] += 1
        content = error_body(error.status, error.message)
        length = (b"content-length", b"%d" % len(content))
        closing = (b"connection", b"close")
        self._transport.write(
            head_bytes(error.status, [JSON_TYPE, *error.headers, length, closing]) + content
        )
        self._let_go()
        self._linger()

    def _linger(self) -> None:
        """Ends this side and reads on for a while: a reset would cost the client the answer."""
        self._received = b""
        self._wait(Phase.CLOSING, LINGER_S)
        self._last_s = self._deadline_s + self._site.timeouts.send_s
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if not self._transport.is_closing() and self._transport.can_write_eof():
            with suppress(OSError):  # the client has reset it, which is told of later
                self._transport.write_eof()


def fail(responder: Responder) -> None:
    """Ends an answer whose handler failed."""
    if not responder.started:
        responder.refuse(HttpError(500, "the server failed"))
    else:
        responder.cut()
