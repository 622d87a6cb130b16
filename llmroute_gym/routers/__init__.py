"""The routing rules of production systems, one class each, and the interface of learned ones."""

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmroute_gym.errors import InputError, checked_name, unknown_name
from llmroute_gym.ground.rules import POLICY_SUFFIX, TITLE, parsed_rule
from llmroute_gym.routers.adapters import register_adapter
from llmroute_gym.routers.base import Router, ScoreRouter
from llmroute_gym.routers.constants import Range, constants_of
from llmroute_gym.sim.registry import build

if TYPE_CHECKING:
    from llmroute_gym.routers.catalog import *  # noqa: F403
    from llmroute_gym.routers.description import Description


def __getattr__(name: str) -> Any:
    """Returns a class of the catalog, which is imported now."""
    catalog = import_module("llmroute_gym.routers.catalog")
    if name not in catalog.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(catalog, name)


def _routers() -> dict[str, type[Router]]:
    from llmroute_gym.routers.catalog import ROUTERS

    return ROUTERS


def available() -> tuple[str, ...]:
    """Returns the names of the routers, sorted."""
    return tuple(sorted(_routers()))


def describe() -> "list[Description]":
    """Returns where each router is from and what it sees, sorted by name."""
    from llmroute_gym.routers import description

    return [description.described(make(name)) for name in available()]


def table() -> str:
    """Returns what `describe` says as Markdown: the page docs/routers.md."""
    from llmroute_gym.routers import description

    return description.table(describe())


def make(rule: str | Mapping[str, Any]) -> Router:
    """Returns a router.

    Args:
        rule: a name, a name with options such as ``"lor_hybrid:a=0.7"``, a mapping that says the
            same, ``{"name": "lor_hybrid", "a": 0.7}``, or the path of a YAML file that holds one;
            what it leaves out has its default. The path of an exported policy, ``policy.npz``,
            stands for that.

    Raises:
        InputError: no router has this name, it has no such option, a value is out of range, or the
            file cannot be read.
    """
    if not isinstance(rule, str) and not (isinstance(rule, Mapping) and "name" in rule):
        raise unknown_name("router", rule, _routers())
    name, options = parsed_rule(rule)
    options.pop(TITLE, None)
    if name.endswith(POLICY_SUFFIX):
        from llmroute_gym.routers.exported import load_policy

        if options:
            raise InputError(
                f"the policy {name} has no options, got {', '.join(sorted(options))}; leave them "
                "out"
            )
        return load_policy(name)
    kind = _routers()[checked_name("router", name, _routers())]
    accepted = _options(kind)
    for option in options:
        if option not in accepted:
            raise unknown_name(f"option of router {name!r}:", option, accepted, accepted)
    for option in getattr(kind, "nested", ()):
        if isinstance(options.get(option), str | Mapping):
            options[option] = make(options[option])
    return build("router", _routers(), name, options)


def _options(kind: type[Router]) -> dict[str, str]:
    """Returns the options of a router, and what each may be."""
    ranges: Mapping[str, Range] = constants_of(kind) if is_dataclass(kind) else {}
    return {name: str(ranges.get(name, "")) for name in inspect.signature(kind).parameters}


__all__ = [
    "Router",
    "ScoreRouter",
    "available",
    "describe",
    "make",
    "register_adapter",
    "table",
]
