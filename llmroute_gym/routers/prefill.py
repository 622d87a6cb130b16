"""Rules that weigh the prompt tokens still to prefill against the requests that decode."""

from dataclasses import dataclass

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest, lowest_at_random, uncached_tokens
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _blocks(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    size, weight = constants[0], constants[1]
    for r in range(len(mask)):
        new = uncached_tokens(rows, r)
        prefill = max(0.0, (rows[r, Signal.PENDING_PROMPT_TOKENS] + new) / size)
        memory[r] = weight * prefill + rows[r, Signal.CONTEXT_TOKENS] / size
    return lowest_at_random(memory, mask, draws[0])


@decision
def _product(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    for r in range(len(mask)):
        new = uncached_tokens(rows, r)
        memory[r] = (rows[r, Signal.UNCACHED_TOKENS] + new) * (rows[r, Signal.RUNNING] + 1.0)
    return lowest(memory, mask)


@dataclass
class DynamoKv(SeeingRule):
    """Fewest blocks to prefill plus blocks that decode, by the router's own counts; ties at random.

    To prefill are the prompts in flight without first token, and this request's less what the
    replica holds of it; decoding are the prompts past their first token. Source: Dynamo's kv mode.

    Args:
        block: tokens of a block.
        prefill: weight of the blocks to prefill.
    """

    name = "dynamo_kv"
    decide = _blocks
    per_request = 1
    source = Source("Dynamo kv mode", "1.6.1", "2026-11")
    view = "events"

    block: float = constant(64, 1, 4096, whole=True, tuned=False)
    prefill: float = constant(1.0, 0.0, 100.0)


@dataclass
class Lmetric(SeeingRule):
    """Smallest uncached prompt tokens to prefill x (running requests + 1); ties by lowest index.

    The tokens are those of requests without first token, as far as they were not cached when they
    were sent, and this request's. Source: LMetric, OSDI 2026.

    Args:
        poll_s: age of the running requests, seconds.
    """

    name = "lmetric"
    decide = _product
    source = Source("LMetric, OSDI", "2026", "2026-11")
    view = "events"

    poll_s: float = poll(0.0)
