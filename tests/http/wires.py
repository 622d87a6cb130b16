"""A connection without a socket: what is fed to it, and what it answers."""

import asyncio
from itertools import pairwise
from typing import Any

from llmroute_gym.config import HttpLimits, HttpTimeouts
from llmroute_gym.http.bodies import body_of
from llmroute_gym.http.connection import Connection
from llmroute_gym.http.heads import END, RequestHead, parse_answer
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.site import Routes, Site


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = self.aborted = self.ended = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Clock:
    """A loop that only tells the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class Client:
    """Talks to a server's connection.

    `requests` are those that reached the handler of ``/echo``, which answers with their bodies.
    """

    def __init__(
        self,
        limits: HttpLimits | None = None,
        timeouts: HttpTimeouts | None = None,
        routes: Routes | None = None,
    ) -> None:
        self.requests: list[tuple[RequestHead, bytes]] = []
        self.clock = Clock()
        self.wire = Wire()
        echo: Routes = {"/echo": {"POST": self.echo, "GET": self.echo}}
        limits, timeouts = limits or HttpLimits(), timeouts or HttpTimeouts()
        self.site = Site(routes or echo, limits, timeouts, None, True)
        self.connection = Connection(self.site, self.clock)  # type: ignore[arg-type]
        self.connection.connection_made(self.wire)

    def echo(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        self.requests.append((request, body))
        responder.send(200, body)

    def feed(self, *pieces: bytes) -> "Client":
        for piece in pieces:
            if not self.wire.closed:
                self.connection.data_received(piece)
        return self

    @property
    def statuses(self) -> list[int]:
        return [status for status, _ in answers(self.wire.written)]


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Takes answers apart, each of which must be whole."""
    found = []
    while written:
        end = written.index(END) + len(END)
        head = parse_answer(written[:end])
        body = body_of(head)
        content, written = body.take(written[end:])
        assert body.done
        if head.status >= 200:
            found.append((head.status, content))
    return found


def split(whole: bytes, *places: int) -> list[bytes]:
    """Cuts bytes at places."""
    edges = [0, *sorted(places), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges) if b > a]
