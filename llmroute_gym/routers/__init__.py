"""The routing rules of production systems, one class each, and the interface of learned ones."""

import inspect
from collections.abc import Mapping
from typing import Any

from llmroute_gym.errors import checked_name, unknown_name
from llmroute_gym.ground.rules import TITLE, parsed_rule
from llmroute_gym.routers import description
from llmroute_gym.routers.adapters import register_adapter
from llmroute_gym.routers.aibrix import (
    AibrixLoadBalance,
    AibrixPrefix,
    AibrixPrefixHelm,
    LeastKv,
)
from llmroute_gym.routers.base import Router, ScoreRouter
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.description import Description
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.hybrid import LeastOutstandingHybrid
from llmroute_gym.routers.latency_predictor import LatencyPredictor
from llmroute_gym.routers.llmd import LlmdBaseline, LlmdDefault, LlmdToken
from llmroute_gym.routers.llmd_predicted import LlmdPredicted
from llmroute_gym.routers.oracle import Oracle
from llmroute_gym.routers.preble import Preble
from llmroute_gym.routers.prefill import DynamoKv, Lmetric
from llmroute_gym.routers.prefix_trees import RayPrefix, SmgCacheAware, VllmRouterCacheAware
from llmroute_gym.routers.rule import Rule
from llmroute_gym.routers.sessions import ConditionalHash, SessionHash, StickyLeastLoaded
from llmroute_gym.routers.simple import (
    EnvoyWeighted,
    JoinShortestQueue,
    LeastOutstanding,
    LeastPending,
    LeastTokens,
    PowerOfTwo,
    Random,
    RoundRobin,
    SpeedLeastOutstanding,
)
from llmroute_gym.routers.smg import SmgLeastLoad, SmgPowerOfTwo, SmgVeto
from llmroute_gym.routers.vllm import Smetric, VllmDataParallel
from llmroute_gym.sim.registry import build

_ROUTERS: dict[str, type[Router]] = {
    router.name: router
    for router in (
        # aibrix
        AibrixLoadBalance,
        AibrixPrefix,
        AibrixPrefixHelm,
        LeastKv,
        # estimated_latency
        EstimatedLatency,
        # hybrid
        LeastOutstandingHybrid,
        # llmd
        LlmdBaseline,
        LlmdDefault,
        LlmdToken,
        # prefill
        DynamoKv,
        Lmetric,
        # sessions
        ConditionalHash,
        SessionHash,
        StickyLeastLoaded,
        # preble
        Preble,
        # prefix_trees
        RayPrefix,
        SmgCacheAware,
        VllmRouterCacheAware,
        # oracle
        Oracle,
        # latency_predictor
        LatencyPredictor,
        # llmd_predicted
        LlmdPredicted,
        # simple
        EnvoyWeighted,
        JoinShortestQueue,
        LeastOutstanding,
        LeastPending,
        LeastTokens,
        PowerOfTwo,
        Random,
        RoundRobin,
        SpeedLeastOutstanding,
        # smg
        SmgLeastLoad,
        SmgPowerOfTwo,
        SmgVeto,
        # vllm
        Smetric,
        VllmDataParallel,
    )
}


def available() -> tuple[str, ...]:
    """Returns the names of the routers, sorted."""
    return tuple(sorted(_ROUTERS))


def describe() -> list[Description]:
    """Returns where each router is from and what it sees, sorted by name."""
    return [description.described(make(name)) for name in available()]


def table() -> str:
    """Returns what `describe` says as Markdown: the page docs/routers.md."""
    return description.table(describe())


def make(rule: str | Mapping[str, Any]) -> Router:
    """Returns a router.

    Args:
        rule: a name, a name with options such as ``"lor_hybrid:a=0.7"``, a mapping that says the
            same, ``{"name": "lor_hybrid", "a": 0.7}``, or the path of a YAML file that holds one;
            what it leaves out has its default.

    Raises:
        InputError: no router has this name, it has no such option, a value is out of range, or the
            file cannot be read.
    """
    if not isinstance(rule, str) and not (isinstance(rule, Mapping) and "name" in rule):
        raise unknown_name("router", rule, _ROUTERS)
    name, options = parsed_rule(rule)
    options.pop(TITLE, None)
    kind = _ROUTERS[checked_name("router", name, _ROUTERS)]
    accepted = _options(kind)
    for option in options:
        if option not in accepted:
            raise unknown_name(f"option of router {name!r}:", option, accepted, accepted)
    for option in getattr(kind, "nested", ()):
        if isinstance(options.get(option), str | Mapping):
            options[option] = make(options[option])
    return build("router", _ROUTERS, name, options)


def _options(kind: type[Router]) -> dict[str, str]:
    """Returns the options of a router, and what each may be."""
    ranges = constants_of(kind) if issubclass(kind, Rule) else {}
    return {name: str(ranges.get(name, "")) for name in inspect.signature(kind).parameters}


__all__ = [
    "AibrixLoadBalance",
    "AibrixPrefix",
    "AibrixPrefixHelm",
    "ConditionalHash",
    "DynamoKv",
    "EnvoyWeighted",
    "JoinShortestQueue",
    "LatencyPredictor",
    "LeastKv",
    "LeastOutstanding",
    "LeastOutstandingHybrid",
    "LeastPending",
    "LeastTokens",
    "LlmdBaseline",
    "LlmdDefault",
    "LlmdPredicted",
    "LlmdToken",
    "Lmetric",
    "Oracle",
    "PowerOfTwo",
    "Preble",
    "Random",
    "RayPrefix",
    "RoundRobin",
    "Router",
    "Rule",
    "ScoreRouter",
    "SessionHash",
    "Smetric",
    "SmgCacheAware",
    "SmgLeastLoad",
    "SmgPowerOfTwo",
    "SmgVeto",
    "SpeedLeastOutstanding",
    "StickyLeastLoaded",
    "VllmDataParallel",
    "VllmRouterCacheAware",
    "available",
    "describe",
    "make",
    "register_adapter",
    "table",
]
