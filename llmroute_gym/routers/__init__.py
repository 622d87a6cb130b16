"""The routing rules of production systems, one class each, and the interface of learned ones."""

from llmroute_gym.errors import checked_name
from llmroute_gym.routers.adapters import register_adapter
from llmroute_gym.routers.base import Router, ScoreRouter
from llmroute_gym.routers.hybrid import LeastOutstandingHybrid
from llmroute_gym.routers.simple import (
    JoinShortestQueue,
    LeastOutstanding,
    LeastPending,
    LeastTokens,
    PowerOfTwo,
    Random,
    RoundRobin,
    SpeedLeastOutstanding,
)

_ROUTERS: dict[str, type[Router]] = {
    router.name: router
    for router in (
        Random,
        RoundRobin,
        JoinShortestQueue,
        LeastOutstanding,
        LeastOutstandingHybrid,
        LeastPending,
        PowerOfTwo,
        LeastTokens,
        SpeedLeastOutstanding,
    )
}


def available() -> tuple[str, ...]:
    """Returns the names of the routers, sorted."""
    return tuple(sorted(_ROUTERS))


def make(name: str) -> Router:
    """Returns a router with its default constants.

    Raises:
        InputError: no router has this name.
    """
    return _ROUTERS[checked_name("router", name, _ROUTERS)]()


__all__ = [
    "JoinShortestQueue",
    "LeastOutstanding",
    "LeastOutstandingHybrid",
    "LeastPending",
    "LeastTokens",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "Router",
    "ScoreRouter",
    "SpeedLeastOutstanding",
    "available",
    "make",
    "register_adapter",
]
