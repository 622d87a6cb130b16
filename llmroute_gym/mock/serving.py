"""Mock engines side by side in one process, until it is told to end."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

from llmroute_gym.config import MockEngineConfig
from llmroute_gym.mock.generations import Terms
from llmroute_gym.mock.server import MockServer
from llmroute_gym.sim import Cluster


def serve(settings: MockEngineConfig) -> None:
    """Serves, and says where.

    Raises:
        InputError: the profile is unknown, a limit of it is wrong, or a port is taken.
    """
    (replica,) = Cluster.from_profile(settings.profile, 1, **settings.overrides())
    terms = Terms(
        settings.served_model_name,
        replica,
        settings.token_bytes,
        settings.mean_output_tokens,
        settings.seed,
    )
    _runner()(_serve(settings, terms))


async def _serve(settings: MockEngineConfig, terms: Terms) -> None:
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, told.set)
    async with AsyncExitStack() as stack:
        for index in range(settings.replicas):
            server = MockServer(terms)
            faults = None if settings.ctl_port is None else settings.ctl_port + index
            port = settings.port and settings.port + index
            await server.start(settings.host, port, faults)
            stack.push_async_callback(server.close)
            ordered = f", faults at http://127.0.0.1:{faults}/ctl" if faults else ""
            what = f"{settings.profile}, {terms.replica.scheduler}"
            url = f"http://{settings.host}:{server.port}"
            print(f"{terms.model} ({what}) at {url}{ordered}", flush=True)
        await told.wait()


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    if find_spec("uvloop") is None:
        return asyncio.run
    import uvloop

    return uvloop.run
