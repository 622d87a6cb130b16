"""vLLM v1's way: one token budget for decodes and chunks, first come first served.

As in vLLM 0.32 (its `Scheduler` and `KVCacheManager`).
"""

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.reference.blocks import KVCache
from llmroute_gym.sim.reference.prefix_cache import PrefixCache
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers.base import Batch, Scheduler
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.schedulers import ReplicaSettings, register


class TokenBatch(Batch):
    """A batch in which a single uncomputed token is a decode once a first token is out."""

    def is_decode(self, request: Request) -> bool:
        """Whether it has one token to compute and gives its second or a later one."""
        return request.started and request.known_tokens - request.computed_tokens == 1


@register
class VllmV1(Scheduler):
    """vLLM v1 style: whoever runs goes on, then the queue, within one budget of tokens.

    Attributes:
        running: all that are admitted, in order of admission, also those in the batch.
    """

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
            "shared_reads",
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

    @classmethod
    def make_cache(cls, replica: Replica) -> KVCache:
        """Returns the empty prefix cache."""
        watermark_blocks = int(replica.watermark * replica.num_blocks)
        return PrefixCache(
            replica.num_blocks, replica.block_size, watermark_blocks, replica.prefix_caching
        )

    def admitted(self) -> list[Request]:
        """Returns the requests that hold blocks."""
        return self.running

    def end_batch(self, now_s: float) -> list[Request]:
        """Counts the batch's tokens and returns the requests that finished, in batch order.

        Args:
            now_s: end of the batch, seconds.
        """
        for request, tokens in zip(self.batch.requests, self.batch.tokens, strict=True):
            request.advance(tokens, now_s)
        finished = [request for request in self.batch.requests if request.finished]
        for request in finished:
            self.pool.free(request)
            self.running.remove(request)
        self.batch = TokenBatch()
        return self._without_aborted(finished)

    def sums(self) -> BatchSums:
        """Returns what the batch's time depends on, less the reads that cost nothing."""
        sums = self.batch.sums()
        repeated = self.pool.shared_blocks * self.pool.block_size * sums.decodes
        saved = int(self.replica.shared_reads * (repeated // max(len(self.running), 1)))
        return sums._replace(decode_context=max(sums.decode_context - saved, 0))

    def _restart(self, request: Request) -> None:
        self.pool.free(request)
        request.restart(keep_prompt=True)
        self.waiting.appendleft(request)

    def _build(self) -> Batch:
        batch = TokenBatch()
        alone = len(self.running) + len(self.waiting) <= 1
        # Nobody gets more at once while others are there, so that a long prompt holds up no one.
        most = 0 if alone else self.replica.long_prefill_tokens
        self._most = most or self.replica.max_batched_tokens
        if self._go_on(batch):
            self._admit(batch)
        return batch

    def _budget(self, batch: Batch) -> int:
        return self.replica.max_batched_tokens - batch.total_tokens

    def _go_on(self, batch: Batch) -> bool:
        """Lets those that run go on, in order; returns whether nobody was preempted."""
        before, place = len(self.waiting), 0
        while place < len(self.running) and (budget := self._budget(batch)) > 0:
            request = self.running[place]
            wanted = request.known_tokens - request.computed_tokens
            tokens = min(wanted, self._most, budget)
            while not self.pool.can_step(request, tokens):
                last = self.running.pop()
                self._restart(last)
                if last is request:
                    break
            else:
                self.pool.step(request, tokens)
                batch.add(request, tokens)
                place += 1
        return len(self.waiting) == before

    def _admit(self, batch: Batch) -> None:
        """Admits from the head of the queue, as long as it fits."""
        while self.waiting and len(self.running) < self.replica.max_batch:
            head, budget = self.waiting[0], self._budget(batch)
            cached = self.pool.cached_tokens(head)
            wanted = min(head.known_tokens - cached, self._most)
            if budget <= 0 or (wanted > budget and not self.replica.chunked_prefill):
                break
            tokens = min(wanted, budget)
            whole = self.replica.admission == "sequence"
            if not self.pool.can_admit(head, head.known_tokens if whole else cached + tokens):
                break
            self.pool.admit(head, cached + tokens)
            head.find(cached)
            self.running.append(self.waiting.popleft())
            batch.add(head, tokens)
