"""What becomes a router without being one: whoever knows of such things says how."""

from collections.abc import Callable
from typing import Any

from llmroute_gym.routers.base import Router

_ADAPTERS: dict[type, Callable[[Any], Router]] = {}


def register_adapter(kind: type, adapter: Callable[[Any], Router]) -> None:
    """Lets `simulate` take things of a kind as routers.

    Args:
        kind: their class; its subclasses are meant too.
        adapter: makes a router of one.
    """
    _ADAPTERS[kind] = adapter


def adapted(thing: object) -> Router | None:
    """Returns a thing as a router, by the adapter of its class or the nearest one above it.

    None where there is no adapter.
    """
    for kind in type(thing).__mro__:
        if kind in _ADAPTERS:
            return _ADAPTERS[kind](thing)
    return None
