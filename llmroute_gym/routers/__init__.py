"""The routing rules of production systems, one class each, and the interface of learned ones."""

from collections.abc import Mapping
from typing import Any

from llmroute_gym.errors import checked_name, unknown_name
from llmroute_gym.ground.rules import parsed_rule
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
from llmroute_gym.sim.registry import build

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


def make(rule: str | Mapping[str, Any]) -> Router:
    """Returns a router.

    Args:
        rule: a name, a name with options such as ``"lor_hybrid:a=0.7"``, or a mapping that says the
            same, ``{"name": "lor_hybrid", "a": 0.7}``; what it leaves out has its default.

    Raises:
        InputError: no router has this name, it has no such option, or a value is out of range.
    """
    if not isinstance(rule, str) and not (isinstance(rule, Mapping) and "name" in rule):
        raise unknown_name("router", rule, _ROUTERS)
    name, options = parsed_rule(rule)
    if not options:
        return _ROUTERS[checked_name("router", name, _ROUTERS)]()
    return build("router", _ROUTERS, name, options)


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
