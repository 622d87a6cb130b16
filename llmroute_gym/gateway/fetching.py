"""Asking a backend for something of its own: whether it is well, or what it measures."""

import asyncio

from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.upstream import Upstream
from llmroute_gym.http.heads import AnswerHead

MOST_BYTES = 4_194_304
"""Of an answer; what engines publish has some hundred kilobytes."""


class _Answer:
    """Gathers an answer; `whole` is its status and body, or None."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[tuple[int, bytes] | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0

    def on_head(self, head: AnswerHead) -> None:
        """Takes the status."""
        self._status = head.status

    def on_body(self, content: bytes) -> None:
        """Keeps a piece."""
        self._size += len(content)
        if self._size <= MOST_BYTES:
            self._parts.append(content)

    def on_end(self, content: bytes) -> None:
        """Gives the answer."""
        self.on_body(content)
        self._give((self._status, b"".join(self._parts)) if self._size <= MOST_BYTES else None)

    def on_broken(self, reason: str) -> None:
        """Gives none."""
        self._give(None)

    def _give(self, found: tuple[int, bytes] | None) -> None:
        if not self.whole.done():
            self.whole.set_result(found)


async def fetch(backend: Backend, path: str, timeout_s: float) -> tuple[int, bytes] | None:
    """Returns status and body of what a backend has at a path, None if it does not answer well.

    A connection of its own is used, so that a backend which only lets old ones live is seen.

    Args:
        backend: that is asked.
        path: without the one in front of ``/v1``.
        timeout_s: for the whole.
    """
    answer = _Answer()
    request = (
        f"GET {path} HTTP/1.1\r\nhost: {backend.host_header}\r\nconnection: close\r\n\r\n"
    ).encode("ascii")
    made: list[Upstream] = []

    def connected(connection: Upstream) -> None:
        made.append(connection)
        connection.send(request, answer, keep=False)

    call_off = backend.pool.connect(connected, answer.on_broken)
    try:
        async with asyncio.timeout(timeout_s):
            return await answer.whole
    except TimeoutError:
        return None
    finally:
        call_off()
        for connection in made:
            connection.abort()
