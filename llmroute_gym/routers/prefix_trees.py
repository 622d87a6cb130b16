"""Rules that go by the router's own tree of the prompts that it sent to each replica."""

import math
from dataclasses import dataclass

import numpy as np

from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import (
    keep_highest,
    lowest,
    lowest_at_random,
    pair_at_random,
    span,
)
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule


@decision
def _vllm_router(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    match_above, absolute, relative = constants
    load = rows[:, Signal.IN_FLIGHT]
    least, most = span(load, mask)
    if most - least > absolute and most > relative * least:
        return lowest(load, mask)
    match = -rows[:, Signal.CACHED_PREFIX]
    best = lowest(match, mask)
    return best if -match[best] > match_above else lowest(load, mask)


@dataclass
class VllmRouterCacheAware(SeeingRule):
    """The longest match in the router's tree, unless load is uneven.

    Uneven is where the largest and the least number of requests in flight differ by more than
    `absolute` and the largest is over `relative` times the least: then the least loaded gets the
    request. Otherwise the longest match, if it covers more than `match_above` of the prompt, and
    the least loaded if not. Ties go to the lowest index. The router trims its tree every 120 s to
    2^25 tokens per replica; here it never exceeds `tree_tokens`.

    Attributes:
        match_above: share of the prompt.
        absolute: requests.
        relative: factor.
        tree_tokens: how many tokens of each replica the tree keeps, the latest sent.
    """

    name = "vllm_router_cache_aware"
    decide = _vllm_router
    source = Source("vllm-router cache_aware, its default", "0.1.17", "2026-11")
    match_above: float = constant(0.3, 0.0, 1.0)
    absolute: float = constant(64, 0, 1024, whole=True)
    relative: float = constant(1.5, 1.0, 10.0, logarithmic=True)
    tree_tokens: int = 2**25
    view = "tree"


@block
def _least_busy(load: FloatArray, processed: FloatArray, mask: BoolArray) -> int:
    """Returns the first replica with the least (load, processed)."""
    best = -1
    for r in range(len(mask)):
        if mask[r] and (
            best < 0
            or load[r] < load[best]
            or (load[r] == load[best] and processed[r] < processed[best])
        ):
            best = r
    return best


@block
def _is_hot(load: FloatArray, mask: BoolArray, chosen: int, constants: FloatArray) -> bool:
    """Returns whether a replica is so far above the mean load that its request spills."""
    _, _, factor, most, deviations, at_least = constants
    total, squares, replicas = 0.0, 0.0, 0
    for r in range(len(mask)):
        if mask[r]:
            total += load[r]
            squares += load[r] * load[r]
            replicas += 1
    mean = total / replicas
    deviation = math.sqrt(max(squares / replicas - mean * mean, 0.0))
    margin = min(most, max(deviations * deviation, at_least))
    return bool(load[chosen] > max(factor * mean, mean + margin))


@decision
def _smg(
    rows: FloatArray,
    mask: BoolArray,
    draws: FloatArray,
    constants: FloatArray,
    processed: FloatArray,
) -> int:
    load, match = rows[:, Signal.IN_FLIGHT], rows[:, Signal.CACHED_PREFIX]
    candidates = mask.copy()
    if keep_highest(match, candidates) > constants[0]:
        left = int(constants[1])
        for r in range(len(mask)):
            candidates[r] = candidates[r] and left > 0
            left -= candidates[r]
        chosen = lowest_at_random(load, candidates, draws[0])
    else:
        chosen = _least_busy(load, processed, mask)
    if _is_hot(load, mask, chosen, constants):
        chosen = _least_busy(load, processed, mask)
    processed[chosen] += 1
    return chosen


@dataclass
class SmgCacheAware(SeeingRule):
    """The least loaded of the replicas with the deepest match; what is hot spills over.

    Candidates are the replicas that hold the deepest match, the first `candidates` of them, if it
    covers more than `match_above` of the prompt; the least loaded of them gets the request, ties
    at random. Without such a match it is the least by (requests in flight n, requests sent there
    so far, index). The choice spills to that one if its n > `factor` * mean and n > mean +
    min(`margin`, `deviations` * standard deviation), of which the last term is at least
    `least_margin`. Where a request goes enters the tree, so hot prefixes replicate.

    Attributes:
        match_above: share of the prompt.
        candidates: replicas.
        factor: in mean loads.
        margin: requests.
        deviations: standard deviations of n over the replicas.
        least_margin: requests.
        tree_tokens: how many tokens of each replica the tree keeps, the latest sent.
        view: ``tree``, or ``events`` of the engines.
    """

    name = "smg_cache_aware"
    decide = _smg
    per_request = 1
    source = Source("SMG cache_aware", "1.13", "2026-11")
    match_above: float = constant(0.3, 0.0, 1.0)
    candidates: float = constant(8, 1, 64, whole=True)
    factor: float = constant(1.5, 1.0, 10.0, logarithmic=True)
    margin: float = constant(64, 0, 1024, whole=True)
    deviations: float = constant(2.0, 0.0, 8.0)
    least_margin: float = constant(4, 0, 64, whole=True)
    tree_tokens: int = 2**26
    view: str = "tree"

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns the requests sent to each replica so far."""
        return np.zeros(n_replicas)


@decision
def _ray(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    match_from, imbalance = constants
    load, match = rows[:, Signal.IN_FLIGHT], rows[:, Signal.CACHED_PREFIX]
    least, most = span(load, mask)
    if most - least <= imbalance:
        candidates = mask.copy()
        if keep_highest(match, candidates) >= match_from:
            mask[:] = candidates
        else:
            keep_highest(-rows[:, Signal.VIEW_TOKENS], mask)
    one, other = pair_at_random(mask, draws[0], draws[1])
    return other if load[other] < load[one] else one


@dataclass
class RayPrefix(SeeingRule):
    """The longest match if it covers a tenth of the prompt, else the smallest tree.

    Of several such replicas, two at random without replacement, the one with fewer requests in
    flight, the first drawn on a tie. All replicas stand for them where the requests in flight
    differ by more than `imbalance` from one replica to another.

    Attributes:
        match_from: share of the prompt.
        imbalance: requests; infinity for never.
        tree_tokens: how many tokens of each replica the tree keeps, the latest sent.
    """

    name = "ray_prefix"
    decide = _ray
    per_request = 2
    source = Source("Ray Serve LLM PrefixCacheAffinityRouter", "2026", "2026-11")
    match_from: float = constant(0.1, 0.0, 1.0)
    imbalance: float = math.inf
    tree_tokens: int = 2**25
    view = "tree"

    def __post_init__(self) -> None:
        """Checks the options and says what the rule is told."""
        super().__post_init__()
        given = self.imbalance
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if not (is_number and given >= 0):
            raise InputError(
                f"imbalance of ray_prefix must be a number of requests >= 0 or .inf, got "
                f"{shown(self.imbalance)}"
            )

    def constants(self) -> FloatArray:
        """Returns what the decision is given: the constant, and the threshold of imbalance."""
        return np.append(super().constants(), self.imbalance)
