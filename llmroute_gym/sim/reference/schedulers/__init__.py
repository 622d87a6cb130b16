"""How a replica builds its next batch, one file per scheduler."""

from llmroute_gym.errors import InputError
from llmroute_gym.sim.reference.schedulers.base import Batch, Scheduler
from llmroute_gym.sim.reference.schedulers.chunked import Chunked
from llmroute_gym.sim.reference.schedulers.prefill_first import PrefillFirst
from llmroute_gym.sim.reference.schedulers.vllm_v1 import VllmV1
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.schedulers import limits_of


def make_scheduler(replica: Replica) -> Scheduler:
    """Returns the scheduler that the replica names.

    Raises:
        InputError: it states limits but no rule.
    """
    kind = limits_of(replica.scheduler)
    if not issubclass(kind, Scheduler):
        raise InputError(
            f"the scheduler {replica.scheduler!r} has no rule for the reference engine; subclass "
            "llmroute_gym.sim.reference.schedulers.Scheduler"
        )
    return kind(replica)


__all__ = ["Batch", "Chunked", "PrefillFirst", "Scheduler", "VllmV1", "make_scheduler"]
