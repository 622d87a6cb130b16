"""A family of rules: the estimated latency of the request on each replica, with learned constants.

What black-box search finds here is the strongest one-line router that this package knows.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll

_FEATURES = 8


@block
def _features(rows: FloatArray, r: int, into: FloatArray, at: int) -> None:
    """Writes what of a replica is compared with the others, each before its logarithm.

    Args:
        rows: (n_replicas, N_SIGNALS).
        r: the replica.
        into: from `at` on: in flight per speed, KV usage, prefill per speed (tokens), age of the
            oldest (s), TTFT (s), context per speed (tokens), queue, batch time (s).
        at: where.
    """
    speed = rows[r, Signal.SPEED]
    into[at] = (rows[r, Signal.IN_FLIGHT] + 1.0) / speed
    into[at + 1] = 0.05 + rows[r, Signal.KV_USAGE]
    into[at + 2] = 500.0 + rows[r, Signal.UNCACHED_TOKENS] / speed
    into[at + 3] = 0.5 + rows[r, Signal.OLDEST_WAITING_S]
    into[at + 4] = 0.1 + rows[r, Signal.TTFT_S]
    into[at + 5] = 2000.0 + rows[r, Signal.CONTEXT_TOKENS] / speed
    into[at + 6] = 1.0 + rows[r, Signal.WAITING]
    into[at + 7] = 0.005 + rows[r, Signal.BATCH_TIME_S]


@decision
def least_estimated_latency(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Returns the allowed replica with the lowest score, the first of them on a tie."""
    n = len(mask)
    allowed = 0
    for j in range(_FEATURES):
        memory[j] = 0.0
    for r in range(n):
        if mask[r]:
            allowed += 1
            _features(rows, r, memory, _FEATURES)
            for j in range(_FEATURES):
                memory[j] += memory[_FEATURES + j]
    for j in range(_FEATURES):
        memory[j] /= allowed
    prompt, output = rows[0, Signal.PROMPT_TOKENS], rows[0, Signal.PREDICTED_OUTPUT_TOKENS]
    longer = math.log((prompt + 50.0) / 1000.0)
    if output <= 0.0:
        output = constants[0]
    else:
        output = constants[0] * (output / constants[0]) ** constants[1]
    best, least = -1, math.inf
    for r in range(n):
        if not mask[r]:
            continue
        count, usage = rows[r, Signal.IN_FLIGHT], rows[r, Signal.KV_USAGE]
        pace = 1.0 + constants[2] * count + constants[3] * rows[r, Signal.CONTEXT_TOKENS] / 1000.0
        own = prompt * (1.0 - constants[4] * rows[r, Signal.CACHED_PREFIX])
        prefill = constants[5] * (rows[r, Signal.UNCACHED_TOKENS] + constants[6] * own) / 1000.0
        over = usage - constants[7]
        price = 1.0 + (constants[8] * over if over > 0.0 else 0.0)
        speed = rows[r, Signal.SPEED] ** constants[9]
        waited = constants[10] * rows[r, Signal.OLDEST_WAITING_S]
        # What is cached may weigh more than the whole prompt, so that less than nothing is left.
        estimate = max((output * pace * price / 100.0 + prefill) / speed + waited, 0.0)
        score = math.log(estimate + 1e-3)
        _features(rows, r, memory, _FEATURES)
        for j in range(_FEATURES):
            weight = constants[11 + 2 * j] + constants[12 + 2 * j] * longer
            score += weight * math.log(memory[_FEATURES + j] / memory[j])
        if best < 0 or score < least:
            best, least = r, score
    return best


@dataclass
class EstimatedLatency(SeeingRule):
    """Least logarithm of the request's estimated latency, corrected by what the others are like.

    The estimate is (output · pace · price + prefill) / speed^c + waited: the pace of a token grows
    with the requests in flight and their context, the price with KV usage above a threshold,
    prefill is what is pending and this prompt, without what is cached of it; it is at least 0. To
    its logarithm come eight features, each the logarithm of a replica's value over the mean of all,
    with a weight that may depend on the prompt's length. Ties by lowest index. In the spirit of
    llm-d's predicted latency.

    The defaults make it much like `speed_lor`; `python -m llmroute_gym.search` finds better ones.

    Attributes:
        poll_s: age of the engines' metrics, seconds.
        view: what cached prefixes are looked up in, ``"events"`` or ``"tree"``.
        predicted_output_sigma: log-normal error of predicted output lengths; None predicts none.
    """

    name = "estimated_latency"
    decide = least_estimated_latency
    source = Source("llmroute_gym", "1", "2026-11")

    output_tokens: float = constant(100.0, 10.0, 1000.0, logarithmic=True)
    predicted_power: float = constant(1.0, 0.0, 1.5)
    pace_per_request: float = constant(0.1, 0.001, 1.0, logarithmic=True)
    pace_per_context: float = constant(0.0, 0.0, 0.5)
    cached: float = constant(1.0, 0.0, 1.5)
    prefill: float = constant(0.0, 0.0, 4.0)
    own_prefill: float = constant(1.0, 0.0, 3.0)
    kv_threshold: float = constant(0.8, 0.0, 1.0)
    kv_price: float = constant(0.0, 0.0, 30.0)
    speed_power: float = constant(1.0, 0.0, 2.0)
    waited: float = constant(0.0, 0.0, 2.0)
    in_flight: float = constant(0.0, -2.0, 4.0)
    in_flight_by_prompt: float = constant(0.0, -1.0, 1.0)
    kv: float = constant(0.0, -2.0, 2.0)
    kv_by_prompt: float = constant(0.0, -1.0, 1.0)
    pending: float = constant(0.0, -2.0, 2.0)
    pending_by_prompt: float = constant(0.0, -1.0, 1.0)
    oldest: float = constant(0.0, -2.0, 2.0)
    oldest_by_prompt: float = constant(0.0, -1.0, 1.0)
    ttft: float = constant(0.0, -2.0, 2.0)
    ttft_by_prompt: float = constant(0.0, -1.0, 1.0)
    context: float = constant(0.0, -2.0, 2.0)
    context_by_prompt: float = constant(0.0, -1.0, 1.0)
    queue: float = constant(0.0, -2.0, 2.0)
    queue_by_prompt: float = constant(0.0, -1.0, 1.0)
    batch_time: float = constant(0.0, -2.0, 2.0)
    batch_time_by_prompt: float = constant(0.0, -1.0, 1.0)
    poll_s: float = poll(1.0)
    view: str = "events"
    predicted_output_sigma: float | None = None

    def __post_init__(self) -> None:
        """Checks the options and says what it is told."""
        super().__post_init__()
        assert self.observation is not None
        told = replace(self.observation, predicted_output_sigma=self.predicted_output_sigma)
        self.observation = told.validate()

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the means of the features, and for those of one replica."""
        return np.zeros(2 * _FEATURES)
