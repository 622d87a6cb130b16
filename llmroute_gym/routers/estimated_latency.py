"""A family of rules: the estimated latency of the request on each replica, with learned constants.

What black-box search finds here is the strongest one-line router that this package knows.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest, uncached_tokens
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll

_FEATURES = 13
_FIRST_WEIGHT = 14
"""Which constant the first weight of a feature is; each has three."""
_SLOWNESS, _WORK, _RECENT, _UNCACHED = 7, 8, 11, 12
_IF_SHARED, _IF_MIXED = (0, 1, 3, 5, 8, 11), (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
"""Numbers of features, the last two of those whose constants end so."""
_FURTHER = _FIRST_WEIGHT + 3 * _FEATURES
_SHARED = _FURTHER + 7
_LONGEST = _SHARED + 1 + len(_IF_SHARED)
_MIXED = _LONGEST + 1
"""Which constants the first after the weights, of what is known of other gateways, the longest
prompt and the first of replicas of several speeds are."""
_WEIGHTS, _POLLS, _USUAL, _REPLICAS = 1, 1 + _FEATURES, 4 + _FEATURES, 6 + _FEATURES
"""Where in memory, after the time of the last decision, the weights for the request at hand stand;
which poll was the last, seconds from one to the next and when the first is; the tokens to prefill
and the context that each request of others is taken to have; and the numbers of each replica."""
_COUNT, _SECONDS, _COMPLETIONS, _SENT, _AT_POLL, _ALL, _OTHERS = 0, 1, 2, 3, 4, 5, 6
_PER_REPLICA = 7
"""Of each replica: in flight after the last decision; request-seconds, completions and tokens sent,
all fading; in flight as the router had it at the first decision after a poll, in flight of all
gateways, as far as known, and of these of the others. Behind them all are the scores of the last
decision."""


@block
def _remember(rows: FloatArray, remembered_s: float, memory: FloatArray) -> float:
    """Counts what has happened since the last decision; returns how long requests take lately.

    By Little's law that is request-seconds over completions, here of all replicas.
    """
    since = rows[0, Signal.NOW_S] - memory[0]
    faded = math.exp(-since / remembered_s)
    request_seconds = completions = 1.0
    for r in range(len(rows)):
        own, count = memory[_REPLICAS + _PER_REPLICA * r :], rows[r, Signal.IN_FLIGHT]
        gone = max(own[_COUNT] - count, 0.0)
        own[_SECONDS] = faded * own[_SECONDS] + 0.5 * (own[_COUNT] + count) * since
        own[_COMPLETIONS] = faded * own[_COMPLETIONS] + gone
        own[_COUNT] = count
        request_seconds += own[_SECONDS]
        completions += own[_COMPLETIONS]
    usual_s: float = request_seconds / completions
    return usual_s


@block
def _fade_sent(rows: FloatArray, recent_s: float, memory: FloatArray) -> None:
    """Lets the tokens sent to each replica fade since the last decision."""
    faded = math.exp((memory[0] - rows[0, Signal.NOW_S]) / recent_s)
    for r in range(len(rows)):
        memory[_REPLICAS + _PER_REPLICA * r + _SENT] *= faded


@block
def _count_all(rows: FloatArray, share: float, like_own: float, memory: FloatArray) -> None:
    """Counts requests in flight: its own, and a share of those that engines report beyond.

    An old report is corrected by what the router itself has sent and seen end since. Those beyond
    are taken to have `like_own` times the tokens of its usual request in flight.
    """
    last, interval_s, first_s = memory[_POLLS], memory[_POLLS + 1], memory[_POLLS + 2]
    polled = last + 1.0
    if interval_s > 0.0:
        polled = math.floor((rows[0, Signal.NOW_S] - first_s) / interval_s)
    memory[_POLLS] = polled
    requests, tokens, context = 0.0, 0.0, 0.0
    for r in range(len(rows)):
        own, count = memory[_REPLICAS + _PER_REPLICA * r :], rows[r, Signal.IN_FLIGHT]
        if polled != last:
            own[_AT_POLL] = count
        reported = rows[r, Signal.WAITING] + rows[r, Signal.RUNNING]
        own[_OTHERS] = share * max(reported - own[_AT_POLL], 0.0)
        own[_ALL] = count + own[_OTHERS]
        requests += count
        tokens += rows[r, Signal.UNCACHED_TOKENS]
        context += rows[r, Signal.CONTEXT_TOKENS]
    memory[_USUAL] = like_own * tokens / max(requests, 1.0)
    memory[_USUAL + 1] = like_own * context / max(requests, 1.0)


@block
def _weigh(
    rows: FloatArray,
    mask: BoolArray,
    longer: float,
    larger: float,
    constants: FloatArray,
    memory: FloatArray,
) -> None:
    """Writes the weights of the features for the request at hand.

    `longer` and `larger` are by how much its prompt and its output exceed the usual, logarithms.
    """
    for j in range(_FEATURES):
        weight, by_prompt, by_output = constants[_FIRST_WEIGHT + 3 * j : _FIRST_WEIGHT + 3 * j + 3]
        memory[_WEIGHTS + j] = weight + by_prompt * longer + by_output * larger
    cached, load, others, n = 0.0, 0.0, 0.0, 0
    lowest_speed, highest_speed = math.inf, 0.0
    for r in range(len(mask)):
        if mask[r]:
            at = _REPLICAS + _PER_REPLICA * r
            cached = max(cached, rows[r, Signal.CACHED_PREFIX])
            load += memory[at + _ALL]
            others += memory[at + _OTHERS]
            n += 1
            lowest_speed = min(lowest_speed, rows[r, Signal.SPEED])
            highest_speed = max(highest_speed, rows[r, Signal.SPEED])
    memory[_WEIGHTS + _RECENT] += constants[_FURTHER] * (1.0 - cached)
    memory[_WEIGHTS + _UNCACHED] += constants[_FURTHER + 1] * math.log((load / n + 1.0) / 10.0)
    shared = others / (load + 1.0)
    for k in range(len(_IF_SHARED)):
        memory[_WEIGHTS + _IF_SHARED[k]] += constants[_SHARED + 1 + k] * shared
    mixed = math.log(highest_speed / lowest_speed)
    for k in range(len(_IF_MIXED)):
        memory[_WEIGHTS + _IF_MIXED[k]] += constants[_MIXED + k] * mixed


@block
def _pending(rows: FloatArray, r: int, memory: FloatArray) -> float:
    """Returns tokens to prefill before this prompt."""
    others = memory[_REPLICAS + _PER_REPLICA * r + _OTHERS]
    return float(rows[r, Signal.UNCACHED_TOKENS] + others * memory[_USUAL])


@block
def _context(rows: FloatArray, r: int, memory: FloatArray) -> float:
    """Returns tokens of context of what decodes."""
    others = memory[_REPLICAS + _PER_REPLICA * r + _OTHERS]
    return float(rows[r, Signal.CONTEXT_TOKENS] + others * memory[_USUAL + 1])


@block
def _ahead(
    rows: FloatArray, r: int, attention: float, progress: float, memory: FloatArray
) -> float:
    """Returns what is pending with what it attends to, less what the oldest has had of it since."""
    ahead = _pending(rows, r, memory) + attention * rows[r, Signal.UNCACHED_PAIRS]
    return float(max(ahead - progress * rows[r, Signal.OLDEST_WAITING_S], 0.0))


@block
def _attended(rows: FloatArray, r: int) -> float:
    """Returns pairs of an uncached token of this prompt and one before it."""
    new = uncached_tokens(rows, r)
    return float(new * (rows[r, Signal.PROMPT_TOKENS] - new / 2.0))


@block
def _feature(
    rows: FloatArray,
    r: int,
    number: int,
    usual_s: float,
    constants: FloatArray,
    memory: FloatArray,
) -> float:
    """Returns what of a replica is compared with the others, before its logarithm.

    Numbered as the weights: in flight, KV usage, prefill (tokens), age of the oldest (s), TTFT (s),
    context (tokens), queue, how long requests took there lately (s), prefill with this prompt
    (tokens), rounds since it was chosen, batch time (s), tokens sent lately, uncached share.
    """
    speed = rows[r, Signal.SPEED]
    own = memory[_REPLICAS + _PER_REPLICA * r :]
    if number == 0:
        value: float = (own[_ALL] + 1.0) / speed
    elif number == 1:
        value = 0.05 + rows[r, Signal.KV_USAGE]
    elif number == 2:
        value = 500.0 + _pending(rows, r, memory) / speed
    elif number == 3:
        value = 0.5 + rows[r, Signal.OLDEST_WAITING_S]
    elif number == 4:
        value = 0.1 + rows[r, Signal.TTFT_S]
    elif number == 5:
        value = 2000.0 + _context(rows, r, memory) / speed
    elif number == 6:
        value = 1.0 + rows[r, Signal.WAITING]
    elif number == _SLOWNESS:
        value = (own[_SECONDS] + usual_s) / (own[_COMPLETIONS] + 1.0)
    elif number == _WORK:
        attention, progress = constants[_FURTHER + 3] / 10000.0, 1000.0 * constants[_FURTHER + 4]
        work = _ahead(rows, r, attention, progress, memory) + uncached_tokens(rows, r)
        value = constants[_FURTHER + 5] + (work + attention * _attended(rows, r)) / speed
    elif number == 9:
        value = 1.0 + rows[r, Signal.ROUNDS_SINCE_CHOSEN]
    elif number == 10:
        value = 0.01 + rows[r, Signal.BATCH_TIME_S]
    elif number == _RECENT:
        value = 2000.0 + own[_SENT] / speed
    else:
        value = 1.05 - rows[r, Signal.CACHED_PREFIX]
    return value


@block
def estimated_scores(
    rows: FloatArray, mask: BoolArray, constants: FloatArray, memory: FloatArray
) -> FloatArray:
    """Returns the scores of the allowed replicas, lower is better: the end of the memory."""
    output, larger = rows[0, Signal.PREDICTED_OUTPUT_TOKENS], 0.0
    if output > 0.0:
        larger = math.log(output / constants[0])
    prompt = min(rows[0, Signal.PROMPT_TOKENS], constants[_LONGEST])
    longer = math.log((prompt + 50.0) / 1000.0)
    of_all, recent_s = constants[_FURTHER + 2], constants[_FURTHER + 6]
    attention, progress = constants[_FURTHER + 3] / 10000.0, 1000.0 * constants[_FURTHER + 4]
    _count_all(rows, of_all, constants[_SHARED], memory)
    _weigh(rows, mask, longer, larger, constants, memory)
    by_time = _FIRST_WEIGHT + 3 * _SLOWNESS
    usual_s = 0.0
    if constants[by_time] or constants[by_time + 1] or constants[by_time + 2]:
        usual_s = _remember(rows, constants[11], memory)
    _fade_sent(rows, recent_s, memory)
    memory[0] = rows[0, Signal.NOW_S]
    output = constants[0] * math.exp(constants[1] * larger)
    power = constants[9] + constants[12] * longer + constants[13] * larger
    scores = memory[len(memory) - len(mask) :]
    for r in range(len(mask)):
        if not mask[r]:
            continue
        count, usage = memory[_REPLICAS + _PER_REPLICA * r + _ALL], rows[r, Signal.KV_USAGE]
        pace = 1.0 + constants[2] * count + constants[3] * _context(rows, r, memory) / 1000.0
        own = rows[r, Signal.PROMPT_TOKENS] * (1.0 - constants[4] * rows[r, Signal.CACHED_PREFIX])
        if attention > 0.0:
            own += attention * _attended(rows, r)
        ahead = _ahead(rows, r, attention, progress, memory)
        prefill = constants[5] * (ahead + constants[6] * own) / 1000.0
        over = usage - constants[7]
        price = 1.0 + (constants[8] * over if over > 0.0 else 0.0)
        speed = rows[r, Signal.SPEED] ** power
        waited = constants[10] * rows[r, Signal.OLDEST_WAITING_S]
        # What is cached may weigh more than the whole prompt, so that less than nothing is left.
        estimate = max((output * pace * price / 100.0 + prefill) / speed + waited, 0.0)
        scores[r] = math.log(estimate + 1e-3)
        for j in range(_FEATURES):
            weight = memory[_WEIGHTS + j]
            if weight != 0.0:
                scores[r] += weight * math.log(_feature(rows, r, j, usual_s, constants, memory))
    return scores


@block
def count_choice(rows: FloatArray, replica: int, memory: FloatArray) -> None:
    """Counts the request at hand, which goes to a replica; once for every decision."""
    chosen = memory[_REPLICAS + _PER_REPLICA * replica :]
    chosen[_COUNT] += 1.0
    chosen[_SENT] += uncached_tokens(rows, replica) + 200.0


@decision
def least_estimated_latency(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Returns the allowed replica with the lowest score, the first of them on a tie."""
    best = lowest(estimated_scores(rows, mask, constants, memory), mask)
    count_choice(rows, best, memory)
    return best


@dataclass
class EstimatedLatency(SeeingRule):
    """Least logarithm of the request's estimated latency, corrected by what the others are like.

    The estimate is (output · pace · price + prefill) / speed^c + waited: the pace of a token grows
    with the requests in flight and their context, the price with KV usage above a threshold,
    prefill is what is pending and this prompt, without what is cached of it; it is at least 0. To
    its logarithm come those of thirteen features, each with a weight that may depend on the
    lengths of prompt and output (as predicted; without a prediction all outputs are alike); only
    what replicas differ by counts. One of them, `slowness`, is how long requests took on a replica
    lately, by Little's law from its own counts: it tells a replica that is slow for no reason that
    engines publish. Ties by lowest index. In the spirit of llm-d's predicted latency.

    Where prefixes are cached, `work` weighs what there is to prefill with this prompt, `uncached`
    what is missing of it, the more the busier the replicas are (`uncached_by_load`), and `recent`
    what was sent lately, the more the less of the prompt is cached anywhere (`recent_if_cold`): a
    request that is new everywhere brings its followers. `attention` prices tokens by what they
    attend to, and `progress` takes off what the oldest has been served since it came (thousands of
    tokens per second). `of_all` tells of other gateways: the share that counts of those requests
    which engines report beyond the router's own at the last poll. They are taken to have `like_own`
    times the tokens of its own, and what ends in `_if_shared` is added to a weight times their
    share of all in flight.

    Replicas of several speeds have constants of their own: what ends in `_if_mixed` is added to a
    weight times the logarithm of the highest speed over the lowest, of those that are told.

    Beyond a `longest_prompt` (tokens) weights by prompt stand still: what fits the prompts that a
    search has seen may be wrong for those ten times as long.

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
    work: float = constant(0.0, -2.0, 4.0)
    work_by_prompt: float = constant(0.0, -1.0, 1.0)
    work_by_output: float = constant(0.0, -1.0, 1.0)
    rounds: float = constant(0.0, -1.0, 1.0)
    rounds_by_prompt: float = constant(0.0, -0.5, 0.5)
    rounds_by_output: float = constant(0.0, -0.5, 0.5)
    batch_time: float = constant(0.0, -2.0, 2.0)
    batch_time_by_prompt: float = constant(0.0, -1.0, 1.0)
    batch_time_by_output: float = constant(0.0, -1.0, 1.0)
    recent: float = constant(0.0, -2.0, 2.0)
    recent_by_prompt: float = constant(0.0, -1.0, 1.0)
    recent_by_output: float = constant(0.0, -1.0, 1.0)
    uncached: float = constant(0.0, -2.0, 4.0)
    uncached_by_prompt: float = constant(0.0, -1.0, 1.0)
    uncached_by_output: float = constant(0.0, -1.0, 1.0)
    recent_if_cold: float = constant(0.0, -2.0, 2.0)
    uncached_by_load: float = constant(0.0, -1.0, 1.0)
    of_all: float = constant(0.0, 0.0, 1.0)
    attention: float = constant(0.0, 0.0, 2.0)
    progress: float = constant(0.0, 0.0, 30.0)
    work_floor: float = constant(500.0, 10.0, 5000.0, logarithmic=True)
    recent_s: float = constant(30.0, 3.0, 300.0, logarithmic=True)
    like_own: float = constant(0.0, 0.0, 2.0)
    in_flight_if_shared: float = constant(0.0, -4.0, 4.0)
    kv_if_shared: float = constant(0.0, -4.0, 4.0)
    oldest_if_shared: float = constant(0.0, -4.0, 4.0)
    context_if_shared: float = constant(0.0, -4.0, 4.0)
    work_if_shared: float = constant(0.0, -4.0, 4.0)
    recent_if_shared: float = constant(0.0, -4.0, 4.0)
    longest_prompt: float = constant(1e6, 1.0, 1e6, tuned=False)
    in_flight_if_mixed: float = constant(0.0, -2.0, 2.0)
    kv_if_mixed: float = constant(0.0, -2.0, 2.0)
    pending_if_mixed: float = constant(0.0, -2.0, 2.0)
    oldest_if_mixed: float = constant(0.0, -2.0, 2.0)
    ttft_if_mixed: float = constant(0.0, -2.0, 2.0)
    context_if_mixed: float = constant(0.0, -2.0, 2.0)
    queue_if_mixed: float = constant(0.0, -2.0, 2.0)
    slowness_if_mixed: float = constant(0.0, -2.0, 2.0)
    work_if_mixed: float = constant(0.0, -2.0, 2.0)
    batch_time_if_mixed: float = constant(0.0, -2.0, 2.0)
    recent_if_mixed: float = constant(0.0, -2.0, 2.0)
    poll_s: float = poll(1.0)
    view: str = "events"
    predicted_output_sigma: float | None = None

    def __post_init__(self) -> None:
        """Checks the options and says what it is told."""
        super().__post_init__()
        assert self.observation is not None
        told = replace(self.observation, predicted_output_sigma=self.predicted_output_sigma)
        self.observation = told.validate()
        self._interval_s, self._first_s = float(self.poll_s), 0.0

    def join(self, told: ObservationConfig, gateway: int) -> None:
        """Takes when the engines are polled."""
        self._interval_s = told.signal_interval_s if told.information != "router" else 0.0
        self._first_s = self._interval_s * gateway / told.gateways

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns what it remembers at first: when polls are, and nothing of any replica."""
        memory = np.zeros(_REPLICAS + (_PER_REPLICA + 1) * n_replicas)
        memory[_POLLS : _POLLS + 3] = -1.0, self._interval_s, self._first_s
        return memory
