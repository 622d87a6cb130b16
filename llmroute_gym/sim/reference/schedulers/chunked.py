"""Sarathi's way: chunks of prompts beside decodes.

As in Microsoft's Vidur (its `sarathi`), see Agrawal et al., "Sarathi-Serve", OSDI 2024.
"""

from collections import deque

from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers.base import Batch, Scheduler
from llmroute_gym.sim.schedulers import ReplicaSettings, register


@register
class Chunked(Scheduler):
    """Sarathi style: decodes first, then prefill chunks up to a token budget, in one batch."""

    name = "chunked"

    @classmethod
    def largest_batch(cls, replica: ReplicaSettings, longest_request: int) -> int:
        """Returns the most tokens: the chunks' budget and a decode of every request."""
        return replica.chunk_size + replica.max_batch

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
