"""llm-d's rule by predicted latency, which learns online what to predict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import (
    add_free_memory,
    add_prefix,
    add_queue,
    highest_at_random,
    how_many,
    keep_at_least,
    keep_cached,
    lowest_at_random,
    span,
)
from llmroute_gym.routers.boosting import MODEL_WORDS, boosted, predicted
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll

QUANTILE: Final = 0.9
SAMPLES: Final = 5000
"""The latest requests that have ended, from which it learns."""
FIRST_LESSON: Final = 100
"""Decisions before the first lesson; from one to the next they double."""
_FEATURES: Final = 6
_KEPT: Final = 8192
"""Decisions whose features are kept until their requests end."""
_SAME: Final = 1e-9
"""Range of headrooms, in seconds, below which they are no different."""

# Memory: a head, the two models, the features of recent decisions in a ring, and room for
# predictions, scores and the features of each replica.
_TAUGHT, _DECISIONS, _RING, _TTFT = 0, 1, 2, 3
_TPOT = _TTFT + MODEL_WORDS
_KEPT_FEATURES = _TPOT + MODEL_WORDS


@block
def _write_features(row: FloatArray, features: FloatArray) -> None:
    """Writes what latency is predicted from, shape (_FEATURES,)."""
    features[0] = row[Signal.KV_USAGE]
    features[1] = row[Signal.PROMPT_TOKENS]
    features[2] = row[Signal.WAITING]
    features[3] = row[Signal.RUNNING]
    features[4] = row[Signal.CACHED_PREFIX]
    features[5] = row[Signal.PENDING_PROMPT_TOKENS] + row[Signal.CONTEXT_TOKENS]


@block
def _stay(
    rows: FloatArray, mask: BoolArray, ttft_s: FloatArray, share: float, later_s: float
) -> None:
    """Narrows the mask to those that hold a share of the prompt, unless they start too late."""
    best_s, warm_s = math.inf, math.inf
    for r in range(len(mask)):
        if mask[r]:
            best_s = min(best_s, ttft_s[r])
            if rows[r, Signal.CACHED_PREFIX] >= share:
                warm_s = min(warm_s, ttft_s[r])
    if warm_s - best_s <= later_s:
        keep_cached(rows, mask, share)


@block
def _scale(values: FloatArray, mask: BoolArray) -> bool:
    """Scales the allowed values to [0, 1], all 0.5 where none differs; says whether one does."""
    low, high = span(values, mask)
    differ = high - low > _SAME
    for r in range(len(mask)):
        values[r] = (values[r] - low) / (high - low) if differ else 0.5
    return differ


@block
def _blend(
    ttft: FloatArray, tpot: FloatArray, mask: BoolArray, weight: float, other: float
) -> None:
    """Writes the weighted mean of both, scaled, to the first; what does not differ counts not."""
    first, second = _scale(ttft, mask), _scale(tpot, mask)
    if first and not second:
        other = 0.0
    elif second and not first:
        weight = 0.0
    total = max(weight + other, _SAME)
    for r in range(len(mask)):
        ttft[r] = (weight * ttft[r] + other * tpot[r]) / total


@block
def _weighted(scores: FloatArray, mask: BoolArray, draw: float) -> int:
    """Returns a replica at random, weights 101 for a score of 0 down to 2 for 1."""
    total = 0
    for r in range(len(mask)):
        if mask[r]:
            total += int((1.0 - scores[r]) * 99.0) + 2
    left, last = draw * total, -1
    for r in range(len(mask)):
        if mask[r] and left >= 0.0:
            left -= int((1.0 - scores[r]) * 99.0) + 2
            last = r
    return last


@block
def _by_headroom(
    rows: FloatArray,
    mask: BoolArray,
    draws: FloatArray,
    constants: FloatArray,
    ttft_s: FloatArray,
    tpot_s: FloatArray,
) -> int:
    """Returns llm-d's choice by predictions, which it overwrites."""
    within_ttft_s, within_tpot_s, warm, later_s, near = constants[:5]
    ttft_weight, tpot_weight, explore = constants[5:8]
    n = len(mask)
    if draws[1] >= explore:
        _stay(rows, mask, ttft_s, warm, later_s)
    good = mask.copy()
    for r in range(n):
        good[r] = mask[r] and ttft_s[r] <= within_ttft_s and tpot_s[r] <= within_tpot_s
    n_good, n_all = how_many(good), how_many(mask)
    headroom = n_good == n_all or (n_good > 0 and draws[2] >= explore)
    for r in range(n):
        mask[r] = good[r] if headroom else mask[r] and not good[r]
    if not headroom:
        keep_at_least(mask, -rows[:, Signal.IN_FLIGHT], 0.0)
    if draws[3] >= explore:
        _stay(rows, mask, ttft_s, near, later_s)
    if headroom:
        for r in range(n):
            ttft_s[r], tpot_s[r] = -ttft_s[r], -tpot_s[r]
        _blend(ttft_s, tpot_s, mask, ttft_weight, tpot_weight)
        return lowest_at_random(ttft_s, mask, draws[0])
    for r in range(n):
        ttft_s[r] = max(ttft_s[r] - within_ttft_s, 0.0)
        tpot_s[r] = max(tpot_s[r] - within_tpot_s, 0.0)
    _blend(ttft_s, tpot_s, mask, ttft_weight, tpot_weight)
    return _weighted(ttft_s, mask, draws[0])


@decision
def _predicted_latency(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    n, kept = len(mask), int(memory[_RING])
    room = memory[_KEPT_FEATURES + kept * _FEATURES :]
    ttft_s, tpot_s, features = room[:n], room[n : 2 * n], room[2 * n :]
    if memory[_TAUGHT] > 0:
        for r in range(n):
            _write_features(rows[r], features)
            ttft_s[r] = max(predicted(memory[_TTFT:_TPOT], features), 0.0)
            tpot_s[r] = max(predicted(memory[_TPOT:_KEPT_FEATURES], features), 0.0)
        chosen = _by_headroom(rows, mask, draws, constants, ttft_s, tpot_s)
    else:
        ttft_s[:] = 0.0
        add_queue(ttft_s, rows, mask, 1.0)
        add_free_memory(ttft_s, rows, mask, 1.0)
        add_prefix(ttft_s, rows, mask, 1.0)
        chosen = highest_at_random(ttft_s, mask, draws[0])
    slot = _KEPT_FEATURES + int(memory[_DECISIONS]) % kept * _FEATURES
    _write_features(rows[chosen], memory[slot : slot + _FEATURES])
    memory[_DECISIONS] += 1
    return chosen


@dataclass
class LlmdPredicted(SeeingRule):
    """Least headroom under the objectives by predicted latencies, which it learns online.

    Predicted are the 90% quantiles of TTFT and TPOT on each replica, by gradient-boosted trees on
    KV usage, prompt tokens, waiting and running requests, cached share of the prompt and prompt
    tokens in flight. It learns from the last 5000 requests that have ended, of its last 8192,
    before its decisions 100, 200, 400, and so on. Before the first lesson with an ended request of
    several tokens it takes the highest sum of llm-d's scores of queue, free memory and cached
    prefix, ties at random.

    Then replicas that hold `warm` of the prompt are kept, if any do, unless the best TTFT of them
    is more than `later_s` behind the best of all; then those with headroom, whose TTFT and TPOT are
    within the objectives; then, likewise, those that hold `near` of it. Of these the one with the
    least headroom gets the request, the mean of both with weights 0.8 and 0.2, each scaled to
    [0, 1] over the replicas (one that differs nowhere counts not), ties at random. Where none has
    headroom, idle ones are kept, if any is, then those that hold `near`, and the choice is random:
    by how far they are from the objectives, scaled alike to x from 0 to 1, with weight
    2 + floor(99 (1 - x)). Each of the three filters is skipped (of that of headroom, its
    opposite is taken) once in a hundred requests.

    Attributes:
        ttft_s: objective, seconds. As in llm-d, objectives are 0 unless given: no replica has
            headroom, and what is predicted to be quick is likely.
        tpot_s: objective, seconds.
        warm: share of the prompt.
        later_s: seconds.
        near: share of the prompt.
        ttft_weight: of TTFT.
        tpot_weight: of TPOT.
        explore: probability with which a filter is skipped.
        poll_s: age of the engines' metrics, seconds.
        view: what prefixes are looked up in, ``tree`` or ``events``.
    """

    name = "llmd_predicted"
    decide = _predicted_latency
    per_request = 4
    source = Source("llm-d predicted-latency scheduling", "2026", "2026-11")
    ttft_s: float = constant(0.0, 0.0, 60.0)
    tpot_s: float = constant(0.0, 0.0, 1.0)
    warm: float = constant(0.99, 0.0, 1.0)
    later_s: float = constant(5.0, 0.0, 60.0)
    near: float = constant(0.8, 0.0, 1.0)
    ttft_weight: float = constant(0.8, 0.0, 1.0)
    tpot_weight: float = constant(0.2, 0.0, 1.0)
    explore: float = constant(0.01, 0.0, 1.0)
    poll_s: float = poll(0.05)
    view: str = "tree"

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns a memory that has learned nothing."""
        kept = min(n_requests, _KEPT)
        memory = np.zeros(_KEPT_FEATURES + kept * _FEATURES + 2 * n_replicas + _FEATURES)
        memory[_RING] = kept
        return memory

    def lessons(self, n_requests: int) -> Sequence[int]:
        """Returns 100 times the powers of two."""
        return [FIRST_LESSON * 2**k for k in range(32) if FIRST_LESSON * 2**k < n_requests]

    def learn(self, lesson: Lesson) -> None:
        """Fits both models anew."""
        kept, so_far = int(self.memory[_RING]), int(self.memory[_DECISIONS])
        recent = np.flatnonzero(lesson.decisions >= so_far - kept)[-SAMPLES:]
        ring = self.memory[_KEPT_FEATURES:][: kept * _FEATURES].reshape(kept, _FEATURES)
        features = ring[lesson.decisions[recent] % kept]
        ttft_s, tpot_s = lesson.ttft_s[recent], lesson.tpot_s[recent]
        several = np.isfinite(tpot_s)
        if not several.any():
            return
        self.memory[_TTFT:_TPOT] = boosted(features, ttft_s, QUANTILE)
        self.memory[_TPOT:_KEPT_FEATURES] = boosted(features[several], tpot_s[several], QUANTILE)
        self.memory[_TAUGHT] = 1
