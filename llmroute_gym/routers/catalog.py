"""All rules by name.

Importing them brings Numba, which takes its time: `llmroute_gym.routers` waits until one is asked
for.
"""

from llmroute_gym.routers.aibrix import (
    AibrixLoadBalance,
    AibrixPrefix,
    AibrixPrefixHelm,
    LeastKv,
)
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.frontier import Frontier, FrontierPrefix
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

ROUTERS: dict[str, type[Router]] = {
    router.name: router
    for router in (
        AibrixLoadBalance,
        AibrixPrefix,
        AibrixPrefixHelm,
        LeastKv,
        EstimatedLatency,
        Frontier,
        FrontierPrefix,
        LeastOutstandingHybrid,
        LlmdBaseline,
        LlmdDefault,
        LlmdToken,
        DynamoKv,
        Lmetric,
        ConditionalHash,
        SessionHash,
        StickyLeastLoaded,
        Preble,
        RayPrefix,
        SmgCacheAware,
        VllmRouterCacheAware,
        Oracle,
        LatencyPredictor,
        LlmdPredicted,
        EnvoyWeighted,
        JoinShortestQueue,
        LeastOutstanding,
        LeastPending,
        LeastTokens,
        PowerOfTwo,
        Random,
        RoundRobin,
        SpeedLeastOutstanding,
        SmgLeastLoad,
        SmgPowerOfTwo,
        SmgVeto,
        Smetric,
        VllmDataParallel,
    )
}
"""Name to class."""

__all__ = [
    "ROUTERS",
    "AibrixLoadBalance",
    "AibrixPrefix",
    "AibrixPrefixHelm",
    "ConditionalHash",
    "DynamoKv",
    "EnvoyWeighted",
    "EstimatedLatency",
    "Frontier",
    "FrontierPrefix",
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
    "Rule",
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
]
