"""Serves a policy or a rule as a router of engines: ``python -m llmroute_gym.serve FILE``."""

import asyncio
import logging
import os
import signal
import sys

from llmroute_gym.config import ServeConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.config_file import run_service

USAGE = "python -m llmroute_gym.serve FILE [key=value ...], with the settings in a YAML file"


async def serve(settings: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then takes leave and lets answers under way end.

    Raises:
        InputError: a router, file or address cannot be had.
    """
    from llmroute_gym.gateway.gateway import Gateway

    gateway = Gateway(settings)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    try:
        await gateway.start()
        print(f"listening on port {gateway.port}, admin on {gateway.admin_port}", flush=True)
        await told.wait()
        told.clear()
        await gateway.take_leave(told)
    finally:
        await gateway.close()


def run(settings: ServeConfig) -> None:
    """Serves on uvloop.

    Raises:
        InputError: the extra is not installed, or as for `serve`.
    """
    try:
        import uvloop
    except ModuleNotFoundError as error:
        raise InputError("serving needs an extra; pip install 'llmroute-gym[serve]'") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))


def main() -> None:
    """Runs the command."""
    if "OMP_NUM_THREADS" not in os.environ:
        # NumPy is loaded already, and its threads are in the way of one small product at a time.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_NUM_THREADS": "1"})
    run_service(ServeConfig, run, USAGE)


if __name__ == "__main__":
    main()
