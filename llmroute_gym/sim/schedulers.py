"""How a replica builds its next batch: whole prompts first, or chunks beside decodes.

Both follow the schedulers that Microsoft's Vidur simulates (its `vllm` and `sarathi`), see
Agrawal et al., "Vidur", MLSys 2024, and "Sarathi-Serve", OSDI 2024.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.blocks import BlockPool
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.request import Request


@dataclass
class Batch:
    """The composition of one iteration.

    Attributes:
        requests: in batch order.
        tokens: of each request, its prefill chunk or 1 for a decode step.
    """

    requests: list[Request] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    total_tokens: int = 0

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.requests)

    def add(self, request: Request, tokens: int) -> None:
        """Appends a request with the tokens it processes."""
        self.requests.append(request)
        self.tokens.append(tokens)
        self.total_tokens += tokens

    def sums(self) -> BatchSums:
        """Returns what the batch's time depends on."""
        chunks, contexts, decode_contexts = [], [], []
        for request, tokens in zip(self.requests, self.tokens, strict=True):
            if request.prefilled:
                decode_contexts.append(request.done)
            else:
                chunks.append(tokens)
                contexts.append(request.done)
        return BatchSums.of(chunks, contexts, decode_contexts)


class Scheduler(ABC):
    """Queues of one replica and the rule that turns them into batches.

    Attributes:
        waiting: not admitted, first in first out; restarted requests go to the front.
        running: admitted and not in the batch that is being executed.
        batch: the batch that is being executed; empty when idle.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.pool = BlockPool(replica.num_blocks, replica.block_size, replica.watermark_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.batch = Batch()

    @abstractmethod
    def _build(self) -> Batch:
        """Takes requests from the queues into a batch; an empty one means nothing could run."""

    def start_batch(self) -> Batch:
        """Builds the next batch, which stays in `batch` until `end_batch`."""
        self.batch = self._build()
        if not self.batch and self.waiting:
            # The only running request restarted itself; its memory is free again, so it can run.
            self.batch = self._build()
        return self.batch

    def end_batch(self, now_s: float) -> list[Request]:
        """Counts the batch's tokens and returns the requests that finished, in batch order.

        Args:
            now_s: end of the batch, seconds.
        """
        finished = []
        for request, tokens in zip(self.batch.requests, self.batch.tokens, strict=True):
            request.advance(tokens, now_s)
            if request.finished:
                self.pool.free(request)
                finished.append(request)
            else:
                self.running.append(request)
        self.batch = Batch()
        return finished

    def admitted(self) -> list[Request]:
        """Returns the requests that hold blocks."""
        return self.batch.requests + self.running

    def _restart(self, request: Request) -> None:
        self.pool.free(request)
        request.restart(keep_prompt=self.replica.restart == "recompute")
        self.waiting.appendleft(request)

    def _make_room(self, request: Request, evictable: deque[Request]) -> bool:
        """Restarts the last of `evictable` until `request` can decode; False if it cannot."""
        while not self.pool.can_step():
            if not evictable:
                self._restart(request)
                return False
            self._restart(evictable.pop())
        return True


class PrefillFirst(Scheduler):
    """vLLM v0 style: a batch of whole prompts if any can be admitted, else a decode batch."""

    def _build(self) -> Batch:
        return self._prefills() or self._decodes()

    def _prefills(self) -> Batch:
        batch, longest = Batch(), 0
        while self.waiting and len(batch) < self.replica.max_batch:
            head = self.waiting[0]
            longest = max(longest, head.prompt_tokens)
            padded_tokens = (len(batch) + 1) * longest
            # A restarted prompt that has outgrown the limit would wait for ever: it runs alone.
            outgrown = not batch and head.preemptions > 0
            if (
                not self.pool.can_admit(head)
                or (padded_tokens > self.replica.max_batched_tokens and not outgrown)
                or self.pool.holders == self.replica.max_batch
            ):
                break
            self.pool.admit(self.waiting.popleft())
            batch.add(head, head.prompt_tokens)
        return batch

    def _decodes(self) -> Batch:
        batch = Batch()
        queue = deque(sorted(self.running, key=lambda request: request.arrived_at_s))
        while queue and len(batch) < self.replica.max_batch:
            request = queue.popleft()
            if self._make_room(request, queue):
                self.pool.step(request)
                batch.add(request, 1)
        self.running = list(queue)
        return batch


class Chunked(Scheduler):
    """Sarathi style: decodes first, then prefill chunks up to a token budget, in one batch."""

    def _build(self) -> Batch:
        batch = Batch()
        partial, unvisited = self._decodes(batch)
        skipped = self._continue_prefills(batch, partial)
        self.running = sorted(skipped + unvisited, key=lambda request: request.arrived_at_s)
        self._admit(batch)
        return batch

    def _budget(self, batch: Batch) -> int:
        return self.replica.chunk_size - batch.total_tokens

    def _decodes(self, batch: Batch) -> tuple[list[Request], list[Request]]:
        partial: list[Request] = []
        queue = deque(self.running)
        while queue and len(batch) < self.replica.max_batch:
            request = queue.popleft()
            if not request.prefilled:
                partial.append(request)
            elif self._make_room(request, queue):
                self.pool.step(request)
                batch.add(request, 1)
        return partial, list(queue)

    def _continue_prefills(self, batch: Batch, partial: list[Request]) -> list[Request]:
        skipped = []
        for request in partial:
            chunk = min(request.prompt_tokens - request.done, self._budget(batch))
            if chunk > 0:
                batch.add(request, chunk)
            else:
                skipped.append(request)
        return skipped

    def _admit(self, batch: Batch) -> None:
        limit = self.replica.max_batch
        while self.waiting and self.pool.holders < limit and len(batch) < limit:
            head = self.waiting[0]
            chunk = min(head.prompt_tokens, self._budget(batch))
            if chunk <= 0 or not self.pool.can_admit(head):
                break
            self.pool.admit(self.waiting.popleft())
            batch.add(head, chunk)


def make_scheduler(replica: Replica) -> Scheduler:
    """Returns the scheduler that the replica names."""
    return {"prefill_first": PrefillFirst, "chunked": Chunked}[replica.scheduler](replica)
