"""What the schedulers have in common: the queues of a replica, batches, restarts."""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.reference.blocks import BlockPool, KVCache
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.schedulers import SchedulerLimits


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

    def is_decode(self, request: Request) -> bool:
        """Whether a request counts as a decode in the batch's time."""
        return request.prefilled

    def sums(self) -> BatchSums:
        """Returns what the batch's time depends on."""
        chunks, contexts, decode_contexts = [], [], []
        for request, tokens in zip(self.requests, self.tokens, strict=True):
            if self.is_decode(request):
                decode_contexts.append(request.known_tokens)
            else:
                chunks.append(tokens)
                contexts.append(request.done)
        return BatchSums.of(chunks, contexts, decode_contexts)


class Scheduler(SchedulerLimits, ABC):
    """Queues of one replica and the rule that turns them into batches.

    Attributes:
        pool: the KV cache.
        waiting: not admitted, first in first out; restarted requests go to the front.
        running: admitted and not in the batch that is being executed.
        batch: the batch that is being executed; empty when idle.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.pool = self.make_cache(replica)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.batch = Batch()
        self._aborted: list[Request] = []
        """Those in the batch whom nobody waits for any more."""

    @classmethod
    def make_cache(cls, replica: Replica) -> KVCache:
        """Returns the empty KV cache that the scheduler works with."""
        return BlockPool(replica.num_blocks, replica.block_size, replica.watermark_blocks)

    def sums(self) -> BatchSums:
        """Returns what the time of the batch depends on."""
        return self.batch.sums()

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
        return self._without_aborted(finished)

    def abort(self, request: Request) -> None:
        """Drops a request that nobody waits for any more, and frees what it holds.

        The batch that is being executed is not changed: one of its requests is dropped at its end,
        and is not among those that finished. A prefix cache remembers what was computed.

        Args:
            request: waiting, running or in the batch.
        """
        if request in self.batch.requests:
            self._aborted.append(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self.pool.free(request)

    def _without_aborted(self, finished: list[Request]) -> list[Request]:
        """Drops those aborted in the batch that has ended; returns the others that finished."""
        aborted, self._aborted = self._aborted, []
        for request in aborted:
            if not request.finished:
                self.running.remove(request)
                self.pool.free(request)
        return [request for request in finished if request not in aborted]

    def admitted(self) -> list[Request]:
        """Returns the requests that hold blocks."""
        return self.batch.requests + self.running

    def _restart(self, request: Request) -> None:
        self.pool.free(request)
        request.restart(keep_prompt=self.replica.restart == "recompute")
        self.waiting.appendleft(request)

    def _make_room(self, request: Request, evictable: deque[Request]) -> bool:
        """Restarts the last of `evictable` until `request` can decode; False if it cannot."""
        while not self.pool.can_step(request):
            if not evictable:
                self._restart(request)
                return False
            self._restart(evictable.pop())
        return True
