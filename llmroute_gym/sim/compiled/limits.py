"""What the kernels know of a replica's settings."""

import math

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.replica import Replica

SCHEDULERS = {
    "chunked": at.CHUNKED,
    "prefill_first": at.PREFILL_FIRST,
    "vllm_v1": at.VLLM_V1,
}
"""The schedulers that the kernels run."""


def kernel_of(scheduler: str) -> int:
    """Returns what the kernels call a scheduler.

    Raises:
        InputError: there is no kernel for it.
    """
    if scheduler not in SCHEDULERS:
        raise InputError(
            f"the compiled engine has no kernel for the scheduler {scheduler!r}; choose "
            "engine='reference'"
        )
    return SCHEDULERS[scheduler]


def fill_limits(row: IntArray, replica: Replica) -> None:
    """Fills an idle replica's row but for what depends on where it stands."""
    floats = row.view(np.float64)
    row[[at.HEAD, at.TAIL, at.PARTIAL, at.CHAIN, at.CHAIN_END]] = -1
    row[[at.FIRST_PLACED, at.LAST_PLACED, at.FEED, at.FEED_END]] = -1
    row[at.SCHEDULER] = kernel_of(replica.scheduler)
    row[at.MAX_BATCH] = replica.max_batch
    row[at.MAX_BATCHED_TOKENS] = replica.max_batched_tokens
    row[at.CHUNK_SIZE] = replica.chunk_size
    row[at.BLOCK_SIZE] = replica.block_size
    row[at.NUM_BLOCKS] = replica.num_blocks
    row[at.OPEN_BLOCKS] = replica.num_blocks - replica.watermark_blocks
    row[at.KEEP_PROMPT] = replica.restart == "recompute"
    floats[at.BATCH_END] = math.inf
    floats[at.SPEED] = floats[at.TOLD_SPEED] = replica.speed
    floats[at.SCALE] = 1.0 / replica.speed
    factors = [1.0, *(factor for _, factor in replica.slowdowns)]
    floats[at.LEAST_SCALE] = min(factors) / replica.speed
    floats[at.NEXT_SLOWDOWN] = replica.slowdowns[0][0] if replica.slowdowns else math.inf
