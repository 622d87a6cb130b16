"""An engine behind sockets."""

import asyncio

from llmroute_gym.config.serving import HttpTimeouts
from llmroute_gym.http.server import Server
from llmroute_gym.mock.api import Api
from llmroute_gym.mock.engine import Clock, LoopClock
from llmroute_gym.mock.generations import Terms

IDLE_S = 5.0
"""After so long vLLM's server closes a connection that is not used."""


class MockServer:
    """A stand-in for one vLLM server, on the running loop.

    Args:
        terms: its replica, the name of its model, how long its answers are.
        clock: whose time it generates in; None is the real one.

    Attributes:
        api: what it answers with, and its faults.
        port: of the API, once it has started.
        ctl_port: of the faults, likewise; None without one.
    """

    def __init__(self, terms: Terms, clock: Clock | None = None) -> None:
        self.api = Api(terms, clock or LoopClock(asyncio.get_running_loop()))
        self.port = 0
        self.ctl_port: int | None = None
        self._servers: list[Server] = []

    async def start(self, host: str = "127.0.0.1", port: int = 0, ctl_port: int | None = 0) -> None:
        """Opens its ports.

        Args:
            host: of the API; the faults are always ordered on loopback.
            port: of the API; 0 takes any that is free.
            ctl_port: of the faults, likewise; None opens none.

        Raises:
            InputError: it cannot listen there; nothing is left open.
        """
        timeouts = HttpTimeouts(idle_s=IDLE_S)
        try:
            served = Server(self.api.routes(), timeouts=timeouts)
            self.port = await served.listen(host, port)
            self._servers.append(served)
            if ctl_port is not None:
                ordered = Server(self.api.fault_routes(), timeouts=timeouts)
                self.ctl_port = await ordered.listen("127.0.0.1", ctl_port)
                self._servers.append(ordered)
        except BaseException:
            await self.close()
            raise

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}"

    async def close(self, patience_s: float = 0.0) -> None:
        """Closes its ports; answers that take longer are cut.

        Args:
            patience_s: how long it waits for answers to end.
        """
        for server in self._servers:
            await server.close(patience_s)
        self.api.engine.close()
