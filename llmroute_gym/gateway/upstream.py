"""Connections to one backend, kept while they are idle."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol, cast

from llmroute_gym.http.bodies import Body, body_of
from llmroute_gym.http.heads import END, AnswerHead, HttpError, parse_answer

HEAD_BYTES = 65_536
"""Most that the head of an answer may have."""
DROPPED_BYTES = 65_536
"""Most of an unwanted answer that is read so that its connection can be used again."""


class Listener(Protocol):
    """Hears of one answer: its head, its body in pieces, its end or its failure."""

    def on_head(self, head: AnswerHead) -> None:
        """Takes the head."""

    def on_body(self, content: bytes) -> None:
        """Takes a piece of the body, which is not empty and not the last."""

    def on_end(self, content: bytes) -> None:
        """Takes the last piece of the body, which may be empty."""

    def on_broken(self, reason: str) -> None:
        """Hears that it ended before that."""


class Upstream(asyncio.Protocol):
    """One connection; one request at a time.

    Args:
        pool: that it belongs to.

    Attributes:
        reused: whether it has answered before.
        untouched: whether nothing of the answer has come.
        idle_since_s: when it became idle, of `perf_counter`.
    """

    __slots__ = (
        "_body",
        "_head",
        "_keep",
        "_listener",
        "_paused",
        "_pool",
        "_received",
        "_transport",
        "_unwanted",
        "idle_since_s",
        "reused",
        "untouched",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport
        self._listener: Listener | None = None
        self._head: AnswerHead | None = None
        self._body: Body
        self._received = b""
        self._paused = False
        self._keep = True
        self._unwanted = False
        self.reused = False
        self.untouched = True
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport, unless nobody waits for it any more."""
        self._transport = cast(asyncio.Transport, transport)
        if self._unwanted:
            self._transport.abort()
        else:
            self._pool.open.add(self)

    def send(self, request: bytes, listener: Listener, *, keep: bool = True) -> None:
        """Sends a request.

        Args:
            request: all of it.
            listener: hears of the answer.
            keep: whether others may use the connection afterwards.
        """
        self._listener = listener
        self._keep = keep
        if self._unwanted or self._transport.is_closing():
            # It was lost before it was of use, of which nobody will be told again.
            asyncio.get_running_loop().call_soon(self._break, "the connection was closed")
            return
        self._head = None
        self._received = b""
        self.untouched = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if self._listener is None:
            self.abort()  # nobody asked
            return
        self.untouched = False
        try:
            self._read(data)
        except HttpError as error:
            self._break(error.message)

    def eof_received(self) -> None:
        """Takes the end of the connection for the end of an answer that has no other."""
        if self._listener and self._head and not self._head.chunked and self._head.length is None:
            self._finish(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the listener, if there is one."""
        self._unwanted = True
        self._pool.open.discard(self)
        self._pool.forget(self)
        self._break("the connection was closed" if exc is None else "the connection was reset")

    def pause(self) -> None:
        """Reads no more for a while."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def drop(self) -> None:
        """Reads the rest of an answer that nobody wants."""
        self._listener = _Dropped(self)
        self.resume()

    def abort(self) -> None:
        """Closes at once, even while it is made; nobody is told."""
        self._listener = None
        self._unwanted = True
        if self in self._pool.open:
            self._transport.abort()

    def usable(self, oldest_s: float) -> bool:
        """Returns whether it is open, and idle since a time at the earliest."""
        if self._unwanted or self._transport.is_closing():
            return False
        return self.idle_since_s >= oldest_s

    def _read(self, data: bytes) -> None:
        listener = self._listener
        while self._head is None:
            self._received += data
            end = self._received.find(END, 0, HEAD_BYTES) + len(END)
            if end < len(END):
                if len(self._received) >= HEAD_BYTES:
                    raise HttpError(502, "the head of the answer is too large")
                return
            head, data = parse_answer(self._received[:end]), self._received[end:]
            self._received = b""
            if head.status >= 200:
                self._head, self._body = head, body_of(head)
                assert listener is not None
                listener.on_head(head)
                listener = self._listener  # it may have dropped the answer, or the connection
                if listener is None:
                    return
            elif not data:
                return
        content, rest = self._body.take(data)
        if self._body.done:
            if rest:
                self._head.keep_alive = False  # more than was asked for
            self._finish(content)
        elif content:
            assert listener is not None
            listener.on_body(content)

    def _finish(self, content: bytes) -> None:
        listener, self._listener = self._listener, None
        assert listener is not None
        assert self._head is not None
        self.resume()
        if self._keep and self._head.keep_alive and self._transport.get_write_buffer_size() == 0:
            self.reused = True
            self._pool.keep(self)
        else:
            self.abort()
        listener.on_end(content)

    def _break(self, reason: str) -> None:
        listener = self._listener
        self.abort()
        if listener is not None:
            listener.on_broken(reason)


class _Dropped:
    """Hears of an answer that nobody wants."""

    def __init__(self, connection: Upstream) -> None:
        self._connection = connection
        self._size = 0

    def on_head(self, head: AnswerHead) -> None:
        """Does nothing."""

    def on_body(self, content: bytes) -> None:
        """Ends the connection if there is too much of it."""
        self._size += len(content)
        if self._size > DROPPED_BYTES:
            self._connection.abort()

    def on_end(self, content: bytes) -> None:
        """Does nothing."""

    def on_broken(self, reason: str) -> None:
        """Does nothing."""


class Pool:
    """The connections to one backend.

    Args:
        host: of the backend.
        port: of the backend.
        connect_s: how long it may take to accept one.
        idle_s: how long an idle one is kept.

    Attributes:
        open: all connections.
    """

    def __init__(self, host: str, port: int, connect_s: float, idle_s: float) -> None:
        self._host, self._port = host, port
        self._connect_s, self._idle_s = connect_s, idle_s
        self._idle: list[Upstream] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.open: set[Upstream] = set()

    def take(self) -> Upstream | None:
        """Returns the connection that became idle last, None if there is none."""
        oldest_s = perf_counter() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.usable(oldest_s):
                return connection
            connection.abort()
        return None

    def connect(
        self, made: Callable[[Upstream], None], failed: Callable[[str], None]
    ) -> Callable[[], object]:
        """Opens a connection.

        Args:
            made: called with it.
            failed: called with the reason if it cannot be opened.

        Returns:
            What calls it off; none of the two is called then.
        """
        task = asyncio.get_running_loop().create_task(self._connect(made, failed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel

    def keep(self, connection: Upstream) -> None:
        """Takes back a connection that is idle."""
        connection.idle_since_s = perf_counter()
        self._idle.append(connection)

    def forget(self, connection: Upstream) -> None:
        """Gives up an idle connection that was closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def look(self) -> None:
        """Closes what has been idle for too long."""
        oldest_s = perf_counter() - self._idle_s
        old = [one for one in self._idle if not one.usable(oldest_s)]
        for connection in old:
            self._idle.remove(connection)
            connection.abort()

    async def close(self) -> None:
        """Closes all connections."""
        for task in list(self._tasks):
            task.cancel()
        self._idle.clear()
        while self.open or self._tasks:
            for connection in list(self.open):
                connection.abort()
            await asyncio.sleep(0)

    async def _connect(
        self, made: Callable[[Upstream], None], failed: Callable[[str], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        connection = Upstream(self)
        connecting = loop.create_connection(lambda: connection, self._host, self._port)
        try:
            async with asyncio.timeout(self._connect_s):
                await connecting
        except TimeoutError:
            self._disown(connection)
            failed("the connection was not accepted in time")
        except OSError:
            failed("the connection was refused")
        except asyncio.CancelledError:
            self._disown(connection)
            raise
        else:
            made(connection)

    def _disown(self, connection: Upstream) -> None:
        """Closes a connection that was called off, at the instant it was made perhaps."""
        connection.abort()
        self.open.discard(connection)  # uvloop does not say that such a one is lost
