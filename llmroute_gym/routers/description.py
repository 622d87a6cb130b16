"""Where a router is from and what it sees, read from its class and its very code."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from numba.core.dispatcher import Dispatcher

from llmroute_gym.ground.signals import OF_PREFIXES, PUBLISHED, Signal
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.decision import Decision
from llmroute_gym.routers.rule import Rule

INTRODUCTION = (
    "Written from the code by `llmroute_gym.routers.table()`; the docstring of each class says",
    "the rule itself, its ties and its options. Version and month say what was read of its system.",
    "",
    "A rule sees its own counts (own), the metrics of the engines with the age in brackets (poll),",
    "and what a replica has cached of a prompt by a tree of what it sent there or by the engines'",
    "events. Where it asks for nothing (engines, always fresh) settings say how old metrics are.",
    "Signals are those that its code reads; constants have their defaults, which options change:",
    "`llmd_default:queue=3`.",
)
"""Stands above the table of rules."""


class Description(NamedTuple):
    """One line of the table of rules."""

    name: str
    """As in `available()`."""
    system: str
    """That ships it, and its name there; empty if it says none."""
    version: str
    """Of the system."""
    read: str
    """When it was read there."""
    sees: str
    """Own counts, polled metrics with their age, a tree or events; empty if it is not known."""
    signals: tuple[Signal, ...]
    """The columns of a row that its decision reads, in their order."""
    constants: str
    """Its constants with their defaults."""


def described(router: Router) -> Description:
    """Returns what there is to say of a router."""
    source = getattr(router, "source", None)
    decide = getattr(router, "decide", None)
    signals = signals_of(decide.plain) if isinstance(decide, Decision) else set()
    constants = constants_of(router) if isinstance(router, Rule) else {}
    return Description(
        router.name,
        source.system if source else "",
        source.version if source else "",
        source.read if source else "",
        _sees(router, signals),
        tuple(sorted(signals)),
        ", ".join(f"{name}={getattr(router, name):.10g}" for name in constants),
    )


def table(descriptions: Iterable[Description]) -> str:
    """Returns them as a page of Markdown."""
    lines = [
        "# Rules",
        "",
        *INTRODUCTION,
        "",
        "| name | from | version | read | sees | signals | constants |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in descriptions:
        signals = ", ".join(f"`{signal.name.lower()}`" for signal in one.signals)
        constants = f"`{one.constants}`" if one.constants else ""
        cells = (f"`{one.name}`", one.system, one.version, one.read, one.sees, signals, constants)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def signals_of(function: Callable[..., Any]) -> set[Signal]:
    """Returns the signals that a function names, itself or in the blocks that it calls."""
    known = inspect.getclosurevars(function)
    found = {Signal[name] for name in known.unbound if name in Signal.__members__}
    for called in (*known.globals.values(), *known.nonlocals.values()):
        if isinstance(called, Dispatcher):
            found |= signals_of(called.py_func)
    return found


def _sees(router: Router, signals: set[Signal]) -> str:
    seen = router.observation
    if seen is None:
        engines = any(signal.ages for signal in signals)
        return "engines, always fresh" if engines else "own" if signals else ""
    told = {*PUBLISHED, Signal.CACHED_PREFIX, Signal.VIEW_TOKENS}
    words = ["own"] if signals - told else []
    if seen.information == "metrics" and signals.intersection(PUBLISHED):
        words.append(f"poll [{seen.signal_interval_s:g} s]")
    if signals.intersection(OF_PREFIXES):
        words.append("tree or events" if _may_choose_view(router) else seen.prefix_view)
    return ", ".join(words)


def _may_choose_view(router: Router) -> bool:
    return "view" in inspect.signature(type(router)).parameters
