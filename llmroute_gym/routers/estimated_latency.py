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
_FIRST_WEIGHT = 14
"""Which constant the first weight of a feature is; each has three."""
_WEIGHTS, _COUNTS = 1, 1 + _FEATURES
"""Where in memory the weights for the request at hand stand, after the time of the last decision;
and three numbers of each replica: in flight, request-seconds and completions, both fading."""


@block
def _remember(rows: FloatArray, remembered_s: float, memory: FloatArray) -> float:
    """Counts what has happened since the last decision; returns how long requests take lately.

    By Little's law that is request-seconds over completions, here of all replicas.
    """
    since = rows[0, Signal.NOW_S] - memory[0]
    faded = math.exp(-since / remembered_s)
    memory[0] = rows[0, Signal.NOW_S]
    request_seconds = completions = 1.0
    for r in range(len(rows)):
        at, count = _COUNTS + 3 * r, rows[r, Signal.IN_FLIGHT]
        gone = max(memory[at] - count, 0.0)
        memory[at + 1] = faded * memory[at + 1] + 0.5 * (memory[at] + count) * since
        memory[at + 2] = faded * memory[at + 2] + gone
        memory[at] = count
        request_seconds += memory[at + 1]
        completions += memory[at + 2]
    usual_s: float = request_seconds / completions
    return usual_s


@block
def _feature(rows: FloatArray, r: int, number: int, usual_s: float, memory: FloatArray) -> float:
    """Returns what of a replica is compared with the others, before its logarithm.

    Numbered as the weights: in flight, KV usage, prefill (tokens), age of the oldest (s), TTFT (s),
    context (tokens), queue, and how long requests took there lately (s).
    """
    speed = rows[r, Signal.SPEED]
    if number == 0:
        value: float = (rows[r, Signal.IN_FLIGHT] + 1.0) / speed
    elif number == 1:
        value = 0.05 + rows[r, Signal.KV_USAGE]
    elif number == 2:
        value = 500.0 + rows[r, Signal.UNCACHED_TOKENS] / speed
    elif number == 3:
        value = 0.5 + rows[r, Signal.OLDEST_WAITING_S]
    elif number == 4:
        value = 0.1 + rows[r, Signal.TTFT_S]
    elif number == 5:
        value = 2000.0 + rows[r, Signal.CONTEXT_TOKENS] / speed
    elif number == 6:
        value = 1.0 + rows[r, Signal.WAITING]
    else:
        at = _COUNTS + 3 * r
        value = (memory[at + 1] + usual_s) / (memory[at + 2] + 1.0)
    return value


@decision
def least_estimated_latency(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Returns the allowed replica with the lowest score, the first of them on a tie."""
    prompt, output = rows[0, Signal.PROMPT_TOKENS], rows[0, Signal.PREDICTED_OUTPUT_TOKENS]
    longer = math.log((prompt + 50.0) / 1000.0)
    larger = math.log(output / constants[0]) if output > 0.0 else 0.0
    for j in range(_FEATURES):
        first = _FIRST_WEIGHT + 3 * j
        weight = constants[first] + constants[first + 1] * longer + constants[first + 2] * larger
        memory[_WEIGHTS + j] = weight
    usual_s = 0.0
    last = _FIRST_WEIGHT + 3 * _FEATURES
    if constants[last - 3] != 0.0 or constants[last - 2] != 0.0 or constants[last - 1] != 0.0:
        usual_s = _remember(rows, constants[11], memory)
    output = constants[0] * math.exp(constants[1] * larger)
    power = constants[9] + constants[12] * longer + constants[13] * larger
    best, least = -1, math.inf
    for r in range(len(mask)):
        if not mask[r]:
            continue
        count, usage = rows[r, Signal.IN_FLIGHT], rows[r, Signal.KV_USAGE]
        pace = 1.0 + constants[2] * count + constants[3] * rows[r, Signal.CONTEXT_TOKENS] / 1000.0
        own = prompt * (1.0 - constants[4] * rows[r, Signal.CACHED_PREFIX])
        prefill = constants[5] * (rows[r, Signal.UNCACHED_TOKENS] + constants[6] * own) / 1000.0
        over = usage - constants[7]
        price = 1.0 + (constants[8] * over if over > 0.0 else 0.0)
        speed = rows[r, Signal.SPEED] ** power
        waited = constants[10] * rows[r, Signal.OLDEST_WAITING_S]
        # What is cached may weigh more than the whole prompt, so that less than nothing is left.
        estimate = max((output * pace * price / 100.0 + prefill) / speed + waited, 0.0)
        score = math.log(estimate + 1e-3)
        for j in range(_FEATURES):
            weight = memory[_WEIGHTS + j]
            if weight != 0.0:
                score += weight * math.log(_feature(rows, r, j, usual_s, memory))
        if best < 0 or score < least:
            best, least = r, score
    memory[_COUNTS + 3 * best] += 1.0
    return best


@dataclass
class EstimatedLatency(SeeingRule):
    """Least logarithm of the request's estimated latency, corrected by what the others are like.

    The estimate is (output · pace · price + prefill) / speed^c + waited: the pace of a token grows
    with the requests in flight and their context, the price with KV usage above a threshold,
    prefill is what is pending and this prompt, without what is cached of it; it is at least 0. To
    its logarithm come those of eight features, each with a weight that may depend on the lengths of
    prompt and output (as predicted; without a prediction all outputs are alike); only what replicas
    differ by counts. One of them, `slowness`, is how long requests took on a replica lately, by
    Little's law from its own counts: it tells a replica that is slow for no reason that engines
    publish. Ties by lowest index. In the spirit of llm-d's predicted latency.

    The defaults make it `speed_lor`; `python -m llmroute_gym.search` finds better ones.

    Attributes:
        poll_s: age of the engines' metrics, seconds.
        view: what cached prefixes are looked up in, ``"events"`` or ``"tree"``.
        predicted_output_sigma: log-normal error of predicted output lengths; None predicts none.
    """

    name = "estimated_latency"
    decide = least_estimated_latency
    source = Source("llmroute_gym", "1", "2026-11")

    output_tokens: float = constant(100.0, 10.0, 1000.0, logarithmic=True, tuned=False)
    predicted_power: float = constant(1.0, 0.0, 1.5)
    pace_per_request: float = constant(1.0, 0.001, 10.0, logarithmic=True)
    pace_per_context: float = constant(0.0, 0.0, 0.5)
    cached: float = constant(1.0, 0.0, 1.5)
    prefill: float = constant(0.0, 0.0, 4.0)
    own_prefill: float = constant(1.0, 0.0, 3.0)
    kv_threshold: float = constant(0.8, 0.0, 1.0)
    kv_price: float = constant(0.0, 0.0, 30.0)
    speed_power: float = constant(1.0, 0.0, 2.0)
    waited: float = constant(0.0, 0.0, 2.0)
    remembered_s: float = constant(30.0, 3.0, 300.0, logarithmic=True)
    speed_by_prompt: float = constant(0.0, -1.0, 1.0)
    speed_by_output: float = constant(0.0, -1.0, 1.0)
    in_flight: float = constant(0.0, -2.0, 4.0)
    in_flight_by_prompt: float = constant(0.0, -1.0, 1.0)
    in_flight_by_output: float = constant(0.0, -1.0, 1.0)
    kv: float = constant(0.0, -2.0, 2.0)
    kv_by_prompt: float = constant(0.0, -1.0, 1.0)
    kv_by_output: float = constant(0.0, -1.0, 1.0)
    pending: float = constant(0.0, -2.0, 2.0)
    pending_by_prompt: float = constant(0.0, -1.0, 1.0)
    pending_by_output: float = constant(0.0, -1.0, 1.0)
    oldest: float = constant(0.0, -2.0, 2.0)
    oldest_by_prompt: float = constant(0.0, -1.0, 1.0)
    oldest_by_output: float = constant(0.0, -1.0, 1.0)
    ttft: float = constant(0.0, -2.0, 2.0)
    ttft_by_prompt: float = constant(0.0, -1.0, 1.0)
    ttft_by_output: float = constant(0.0, -1.0, 1.0)
    context: float = constant(0.0, -2.0, 2.0)
    context_by_prompt: float = constant(0.0, -1.0, 1.0)
    context_by_output: float = constant(0.0, -1.0, 1.0)
    queue: float = constant(0.0, -2.0, 2.0)
    queue_by_prompt: float = constant(0.0, -1.0, 1.0)
    queue_by_output: float = constant(0.0, -1.0, 1.0)
    slowness: float = constant(0.0, -2.0, 2.0)
    slowness_by_prompt: float = constant(0.0, -1.0, 1.0)
    slowness_by_output: float = constant(0.0, -1.0, 1.0)
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
        """Returns what it remembers at first: nothing of any replica."""
        return np.zeros(_COUNTS + 3 * n_replicas)
