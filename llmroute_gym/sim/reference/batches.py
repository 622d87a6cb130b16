"""What every replica that is simulated batch by batch does, whoever holds its clock."""

import math

from llmroute_gym.ground.checks import positive
from llmroute_gym.sim.reference.schedulers import make_scheduler
from llmroute_gym.sim.replica import Replica


class ReplicaBatches:
    """The batches of a replica: what is in each, how long it takes, what its cache has held.

    Args:
        replica: its limits and speed.

    Attributes:
        scheduler: its queues and its memory.
        admitted_tokens: prompt tokens of all requests at their first admission.
        found_tokens: those of them that the prefix cache held.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.scheduler = make_scheduler(replica)
        self.admitted_tokens = self.found_tokens = 0

    def start_batch(self, now_s: float) -> float:
        """Starts a batch and returns its seconds."""
        batch = self.scheduler.start_batch()
        for request in batch.requests:
            if math.isnan(request.scheduled_at_s):
                request.scheduled_at_s = now_s
                self.admitted_tokens += request.prompt_tokens
                self.found_tokens += request.cached_tokens
        model = self.replica.batch_time
        seconds = model.seconds(self.scheduler.sums())
        base_s = positive(f"{type(model).__name__}.seconds(batch)", seconds)
        return base_s * self.replica.slowdown_at(now_s) / self.replica.speed
