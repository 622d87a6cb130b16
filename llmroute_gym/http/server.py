"""The server: its sockets, and the clock that ends what takes too long."""

import asyncio
from collections.abc import Callable

from llmroute_gym.config import HttpLimits, HttpTimeouts
from llmroute_gym.errors import InputError
from llmroute_gym.http.connection import Connection
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.site import Routes, Site

LOOKS = 8
"""How often connections are looked at during the shortest timeout, but at least once a second."""


class Server:
    """Serves routes on sockets of the running loop.

    Args:
        routes: what is served; other paths get 404, other methods 405.
        limits: of requests; None takes the defaults.
        timeouts: of clients; None takes the defaults.
        gate: called with each head of a known route before its body is read; raises `HttpError` to
            refuse it.
        lengths: whether a POST without a length gets 411; else it has no body.

    Attributes:
        site: what its connections share, its counts among them.
    """

    def __init__(
        self,
        routes: Routes,
        limits: HttpLimits | None = None,
        timeouts: HttpTimeouts | None = None,
        gate: Callable[[RequestHead], None] | None = None,
        *,
        lengths: bool = True,
    ) -> None:
        timeouts = (timeouts or HttpTimeouts()).validate()
        self.site = Site(routes, (limits or HttpLimits()).validate(), timeouts, gate, lengths)
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        shortest_s = min(timeouts.head_s, timeouts.body_s, timeouts.idle_s, timeouts.send_s)
        self._look_s = min(1.0, shortest_s / LOOKS)

    async def listen(self, host: str, port: int) -> int:
        """Opens a socket, one of several perhaps.

        Args:
            host: name or address.
            port: 0 takes any that is free.

        Returns:
            The port.

        Raises:
            InputError: it cannot listen there.
        """
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: Connection(self.site, loop), host, port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot listen on {host}:{port}: {reason}; choose another address or port"
            ) from None
        self._servers.append(server)
        if self._timer is None:
            self._look(loop)
        return int(server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Takes no new connection, closes idle ones, and makes each answer the last of its own."""
        self.site.stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self.site.connections):
            connection.wind_up()

    async def close(self, patience_s: float = 0.0) -> None:
        """Stops, waits for the answers under way, and cuts what is left.

        Args:
            patience_s: how long it waits.
        """
        self.stop()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + patience_s
        while self.site.connections and loop.time() < end_s:
            await asyncio.sleep(0.01)
        while self.site.connections:
            for connection in list(self.site.connections):
                connection.abort()
            await asyncio.sleep(0)
        for server in self._servers:
            await server.wait_closed()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in list(self.site.connections):
            connection.look(now_s)
        self._timer = loop.call_later(self._look_s, self._look, loop)
