"""A rule that knows how long batches take, and the router's own counts."""

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.rule import Rule, Source
from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.replica import Cluster, Replica

# What is remembered of a replica: its largest batch, its tokens of KV memory, and the times of
# batches at powers of two, between which the rule interpolates.
_PROMPTS: Final = 20
"""Prompts of 1, 2, 4 ... tokens whose prefill is timed."""
_BATCHES: Final = 12
"""Decode batches of 1, 2, 4 ... requests."""
_CONTEXTS: Final = 18
"""Mean contexts of 1, 2, 4 ... tokens."""
_BATCH, _ROOM, _PREFILL = 0, 1, 2
_DECODE = _PREFILL + _PROMPTS
_WORDS = _DECODE + _BATCHES * _CONTEXTS


@block
def _between(value: float, n_knots: int) -> tuple[int, float]:
    """Returns the knot 2^i, i < n_knots - 1, below a value, and how far it is to the next, 0 to 1.

    Beyond the last knot it is more than 1, which continues the last segment.
    """
    knot = min(max(math.floor(math.log2(max(value, 1.0))), 0), n_knots - 2)
    return knot, max(value, 1.0) / 2.0**knot - 1.0


@block
def _prefill_s(tokens: float, words: FloatArray) -> float:
    """Returns the seconds that a prompt takes alone; of no tokens 0."""
    i, share = _between(tokens, _PROMPTS)
    below, above = words[_PREFILL + i], words[_PREFILL + i + 1]
    seconds: float = (below + (above - below) * share) * min(tokens, 1.0)
    return seconds


@block
def _decode_s(batch: float, context: float, words: FloatArray) -> float:
    """Returns the seconds of a batch of decodes of a mean context."""
    i, over = _between(batch, _BATCHES)
    j, share = _between(context, _CONTEXTS)
    first = _DECODE + i * _CONTEXTS + j
    below = words[first] + (words[first + 1] - words[first]) * share
    first += _CONTEXTS
    above = words[first] + (words[first + 1] - words[first]) * share
    seconds: float = below + (above - below) * over
    return seconds


@decision
def _least_latency(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    n = len(mask)
    scores, tables = memory[:n], memory[n:]
    for r in range(n):
        words = tables[r * _WORDS : (r + 1) * _WORDS]
        row = rows[r]
        prompts = row[Signal.PENDING_PROMPT_TOKENS] + row[Signal.PROMPT_TOKENS]
        output = row[Signal.PREDICTED_OUTPUT_TOKENS]
        output = output if output > 0 else constants[0]
        there = row[Signal.IN_FLIGHT] + 1.0
        context = (row[Signal.CONTEXT_TOKENS] + prompts) / there + 0.5 * output
        batch = max(1.0, min(there, min(words[_BATCH], words[_ROOM] / context)))
        decode_s = output * _decode_s(batch, context, words) * (there / batch)
        scores[r] = (_prefill_s(prompts, words) + decode_s) / row[Signal.SPEED]
    return lowest(scores, mask)


@dataclass
class LatencyPredictor(Rule):
    """The replica with the least predicted latency of the request; ties by lowest index.

    It knows each replica's batch times and limits, and of the load only its own counts: n requests
    in flight, t prompt tokens of those without first token, x of those past it. For a request of p
    prompt tokens it predicts

        (P(t + p) + o D(b, c) (n + 1) / b) / speed

    where P(k) is the time to prefill k tokens in batches as large as the replica makes them; o the
    output's length, as predicted or else `output_tokens`; c = (x + t + p) / (n + 1) + o / 2 a mean
    context; b = min(n + 1, largest batch, KV memory / c) what decodes together, so that (n + 1) / b
    stands for waiting; and D(b, c) the time of a batch of b decodes of context c. P and D are
    interpolated between powers of two. It sees neither caches nor slowdowns.

    Attributes:
        output_tokens: taken for the output's length where no prediction is told.
    """

    name = "latency_predictor"
    decide = _least_latency
    source = Source("ours, in the spirit of llm-d", "-", "2026-11")
    output_tokens: float = constant(256.0, 1.0, 8192.0, logarithmic=True)

    def __post_init__(self) -> None:
        """Checks the options and says what the rule is told."""
        super().__post_init__()
        self.observation = ObservationConfig(information="router")
        self._tables: FloatArray | None = None

    def meet(self, cluster: Cluster) -> None:
        """Times batches of every kind of replica."""
        timed: dict[int, FloatArray] = {}
        for replica in cluster:
            if id(replica) not in timed:
                timed[id(replica)] = _timed(replica)
        self._tables = np.concatenate([timed[id(replica)] for replica in cluster])

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the predictions, and the times of each replica's batches.

        Raises:
            InputError: it has not met the replicas.
        """
        if self._tables is None or len(self._tables) != n_replicas * _WORDS:
            raise InputError(
                "router 'latency_predictor' does not know the batch times of these "
                f"{n_replicas} replicas; call meet(cluster) before reset"
            )
        return np.concatenate([np.zeros(n_replicas), self._tables])

    def possible(
        self, rows: FloatArray, mask: BoolArray, rng: np.random.Generator, *, ordered: bool = True
    ) -> FloatArray:
        """Returns how probable each choice is; all are alike to one who knows no batch times."""
        if self._tables is None:
            shares: FloatArray = mask / mask.sum()
            return shares
        return super().possible(rows, mask, rng, ordered=ordered)


def _timed(replica: Replica) -> FloatArray:
    """Returns what the rule remembers of a replica, shape (_WORDS,)."""
    model = copy.copy(replica.batch_time)  # whose warnings of rare batches are not the engine's
    budget = replica.largest_batch(1)
    words = np.empty(_WORDS)
    words[_BATCH] = replica.max_batch
    words[_ROOM] = replica.room_blocks * replica.block_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(_PROMPTS):
            left, done, seconds = 2**i, 0, 0.0
            while left > 0:
                chunk = min(left, budget)
                seconds += model.seconds(BatchSums.of([chunk], [done], []))
                left, done = left - chunk, done + chunk
            words[_PREFILL + i] = seconds
        for i in range(_BATCHES):
            for j in range(_CONTEXTS):
                batch = BatchSums(2**i, 2 ** (i + j), 0, 0, 0, 0, 0)
                words[_DECODE + i * _CONTEXTS + j] = model.seconds(batch)
    return words
