"""How a replica builds its next batch, one file per scheduler."""

from llmroute_gym.sim.reference.schedulers.base import Batch, Scheduler
from llmroute_gym.sim.reference.schedulers.chunked import Chunked
from llmroute_gym.sim.reference.schedulers.prefill_first import PrefillFirst
from llmroute_gym.sim.replica import Replica


def make_scheduler(replica: Replica) -> Scheduler:
    """Returns the scheduler that the replica names."""
    return {"prefill_first": PrefillFirst, "chunked": Chunked}[replica.scheduler](replica)


__all__ = ["Batch", "Chunked", "PrefillFirst", "Scheduler", "make_scheduler"]
