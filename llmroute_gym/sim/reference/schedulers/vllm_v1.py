"""vLLM v1's way: one token budget for decodes and chunks, first come first served.

As in vLLM 0.32 (its `Scheduler` and `KVCacheManager`).
"""

from llmroute_gym.sim.schedulers import ReplicaSettings, SchedulerLimits, register


@register
class VllmV1(SchedulerLimits):
    """vLLM v1 style: whoever runs goes on, then the queue, within one budget of tokens."""

    name = "vllm_v1"
    max_batch = 1024
    max_batched_tokens = 8192
    least_blocks = 2
    reads = frozenset(
        {
            "prefix_caching",
            "chunked_prefill",
            "long_prefill_tokens",
            "admission",
            "watermark",
            "max_model_len",
        }
    )

    @classmethod
    def room_blocks(cls, replica: ReplicaSettings) -> int:
        """Returns all blocks but the one that vLLM keeps empty."""
        return replica.num_blocks - 1

    @classmethod
    def longest_recomputed(cls, replica: ReplicaSettings) -> int | None:
        """Returns the tokens of one batch where nothing is prefilled in parts."""
        return None if replica.chunked_prefill else replica.max_batched_tokens

    @classmethod
    def largest_batch(cls, replica: ReplicaSettings, longest_request: int) -> int:
        """Returns the one budget."""
        return replica.max_batched_tokens
