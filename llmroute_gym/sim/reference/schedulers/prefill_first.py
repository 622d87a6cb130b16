"""vLLM v0's way: a batch of whole prompts, or one of decodes.

As in Microsoft's Vidur (its `vllm`), see Agrawal et al., "Vidur", MLSys 2024.
"""

from collections import deque

from llmroute_gym.sim.reference.schedulers.base import Batch, Scheduler
from llmroute_gym.sim.schedulers import ReplicaSettings, register


@register
class PrefillFirst(Scheduler):
    """vLLM v0 style: a batch of whole prompts if any can be admitted, else a decode batch."""

    name = "prefill_first"

    @classmethod
    def longest_prompt(cls, replica: ReplicaSettings) -> int | None:
        """Returns the tokens of one prefill batch: a prompt must fit it whole."""
        return replica.max_batched_tokens

    @classmethod
    def largest_batch(cls, replica: ReplicaSettings, longest_request: int) -> int:
        """Returns the most tokens; a restarted prompt that outgrew its limit runs alone."""
        return max(replica.max_batched_tokens, longest_request, replica.max_batch)

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
