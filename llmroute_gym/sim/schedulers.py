"""Schedulers by name, and the limits that each of them states."""

from typing import ClassVar, Protocol, TypeVar

from llmroute_gym.errors import InputError, unknown_name


class ReplicaSettings(Protocol):
    """What a scheduler's limits depend on: settings of a `Replica`."""

    @property
    def max_batch(self) -> int:
        """Requests in one batch."""

    @property
    def max_batched_tokens(self) -> int:
        """Tokens in one batch of prefills."""

    @property
    def chunk_size(self) -> int:
        """Tokens of one batch's prefill chunks."""

    @property
    def num_blocks(self) -> int:
        """KV blocks."""

    @property
    def watermark_blocks(self) -> int:
        """KV blocks that an admission leaves free."""

    @property
    def chunked_prefill(self) -> bool:
        """Whether a prompt may be prefilled in parts."""


class SchedulerLimits:
    """What a scheduler can take; whoever wants to know asks it instead of comparing its name.

    Attributes:
        name: what `Replica.scheduler` calls it.
        max_batch: requests in one batch unless the replica says otherwise.
        max_batched_tokens: likewise.
        least_blocks: KV blocks without which nothing can run.
        reads: the settings of a `Replica` that only some schedulers read, those of this one.
    """

    name: ClassVar[str]
    max_batch: ClassVar[int] = 128
    max_batched_tokens: ClassVar[int] = 4096
    least_blocks: ClassVar[int] = 1
    reads: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def room_blocks(cls, replica: ReplicaSettings) -> int:
        """Returns the KV blocks that a request which is alone may hold."""
        return replica.num_blocks - replica.watermark_blocks

    @classmethod
    def longest_prompt(cls, replica: ReplicaSettings) -> int | None:
        """Returns the most prompt tokens of a request, None where memory alone limits them."""
        return None

    @classmethod
    def longest_recomputed(cls, replica: ReplicaSettings) -> int | None:
        """Returns the most tokens that a preempted request may recompute, None for any number."""
        return None

    @classmethod
    def largest_batch(cls, replica: ReplicaSettings, longest_request: int) -> int:
        """Returns the most tokens of one batch.

        Args:
            replica: its settings.
            longest_request: most prompt and output tokens of a request, together.
        """
        return replica.max_batch + longest_request


Kind = TypeVar("Kind", bound=type[SchedulerLimits])

SCHEDULERS: dict[str, type[SchedulerLimits]] = {}
"""What `Replica.scheduler` may name."""


def register(kind: Kind) -> Kind:
    """Makes a scheduler known by its name; a decorator.

    A scheduler of one's own subclasses `llmroute_gym.sim.reference.schedulers.Scheduler`, or one of
    those beside it, and runs on the reference engine.

    Raises:
        InputError: another scheduler has the name.
    """
    held = SCHEDULERS.setdefault(kind.name, kind)
    if held.__qualname__ != kind.__qualname__:
        raise InputError(f"a scheduler {kind.name!r} is registered already; give it another name")
    SCHEDULERS[kind.name] = kind
    return kind


def limits_of(name: object) -> type[SchedulerLimits]:
    """Returns the scheduler of a name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    return SCHEDULERS[name]
