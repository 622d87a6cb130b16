"""What a cluster is made of: replicas, each a model on hardware behind a scheduler."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from llmroute_gym.errors import InputError, checked_name, shown
from llmroute_gym.ground.checks import count, positive, sequence
from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.profile_time import load_profile
from llmroute_gym.sim.schedulers import limits_of

RestartMode = Literal["recompute", "vidur"]
OversizeMode = Literal["raise", "reject"]
Slowdown = tuple[float, float]

_COUNTS = ("max_batch", "max_batched_tokens", "chunk_size", "block_size", "num_blocks")
_CHOICES = {
    "restart": get_args(RestartMode),
    "oversize": get_args(OversizeMode),
}


@dataclass(frozen=True)
class Replica:
    """One model server: its iteration times, its scheduler and the limits it runs under.

    Attributes:
        batch_time: seconds per batch at speed 1; any object with the method `seconds` of a
            `BatchTimeModel` will do for the reference engine.
        scheduler: `chunked` (Sarathi style, prefill chunks mixed with decodes) or `prefill_first`
            (vLLM v0 style, whole prompts, never mixed), or the name of one that
            `llmroute_gym.sim.schedulers.register` has made known.
        max_batch: requests in one batch, and requests that may hold KV blocks.
        max_batched_tokens: padded tokens of one prefill batch (`prefill_first` only).
        chunk_size: token budget of one batch for prefill chunks (`chunked` only).
        block_size: tokens per KV block.
        num_blocks: KV blocks of the replica.
        watermark_blocks: blocks that admitting a request must leave free.
        speed: divides all batch times.
        slowdowns: (start_s, factor) pairs by increasing start; from start_s on, batches that start
            take factor times as long, until the next pair.
        restart: what a preempted request recomputes. `recompute` keeps its prompt whole; `vidur`
            treats what it had processed as its prompt and the rest as output, as Vidur does.
        oversize: what becomes of a request that the replica can never hold: `raise` an error at
            submission, or `reject` it, which the outcome shows as an infinite latency.

    Raises:
        InputError: the batch time is no model, a limit is not positive, a slowdown is malformed,
            or a name is unknown.
    """

    batch_time: BatchTimeModel
    scheduler: str = "chunked"
    max_batch: int = 128
    max_batched_tokens: int = 4096
    chunk_size: int = 512
    block_size: int = 16
    num_blocks: int = 1792
    watermark_blocks: int = 0
    speed: float = 1.0
    slowdowns: tuple[Slowdown, ...] = ()
    restart: RestartMode = "recompute"
    oversize: OversizeMode = "raise"

    def __post_init__(self) -> None:
        _check_model(self.batch_time)
        limits_of(self.scheduler)
        for name, choices in _CHOICES.items():
            checked_name(name, getattr(self, name), choices)
        for name in _COUNTS:
            object.__setattr__(self, name, count(name, getattr(self, name)))
        watermark_blocks = count("watermark_blocks", self.watermark_blocks, at_least=0)
        object.__setattr__(self, "watermark_blocks", watermark_blocks)
        if self.watermark_blocks >= self.num_blocks:
            raise InputError(
                f"watermark_blocks must be below num_blocks ({self.num_blocks}), "
                f"got {self.watermark_blocks}"
            )
        object.__setattr__(self, "speed", positive("speed", self.speed))
        object.__setattr__(self, "slowdowns", _checked_slowdowns(self.slowdowns))

    def slowdown_at(self, time_s: float) -> float:
        """Returns the factor on the time of a batch that starts at `time_s` (seconds)."""
        factor = 1.0
        for start_s, value in self.slowdowns:
            if start_s > time_s:
                break
            factor = value
        return factor

    def blocks_for(self, tokens: int) -> int:
        """Returns the KV blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    @property
    def room_blocks(self) -> int:
        """KV blocks that a request which is alone may hold."""
        return limits_of(self.scheduler).room_blocks(self)

    @property
    def longest_prompt(self) -> int | None:
        """Most prompt tokens of a request, None where memory alone limits them."""
        return limits_of(self.scheduler).longest_prompt(self)

    def largest_batch(self, longest_request: int) -> int:
        """Returns the most tokens of one batch, see `SchedulerLimits.largest_batch`."""
        return limits_of(self.scheduler).largest_batch(self, longest_request)

    def why_oversize(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Says why a request can never run here, or None if it can.

        A request must fit alone at its longest (a restart may recompute all of it but the last
        token), and its prompt must not be longer than the scheduler can take.
        """
        longest = prompt_tokens + output_tokens - 1
        room = self.room_blocks
        if self.blocks_for(longest) > room:
            return (
                f"{prompt_tokens} prompt + {output_tokens} output tokens need "
                f"{self.blocks_for(longest)} KV blocks of {self.block_size} tokens, the replica "
                f"has {room} above its watermark; raise num_blocks or clip the request"
            )
        most = self.longest_prompt
        if most is not None and prompt_tokens > most:
            return (
                f"{prompt_tokens} prompt tokens exceed max_batched_tokens ({most}); raise it or "
                "clip with max_prompt_tokens"
            )
        return None


@dataclass(frozen=True)
class Cluster(Sequence[Replica]):
    """The replicas that a router chooses from.

    Attributes:
        replicas: at least one; the index in it is the replica's number everywhere.
    """

    replicas: tuple[Replica, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "replicas", sequence("a cluster", self.replicas, "Replicas"))
        if not self.replicas:
            raise InputError("a cluster needs at least 1 replica, got 0")
        for index, replica in enumerate(self.replicas):
            if not isinstance(replica, Replica):
                raise InputError(
                    f"replica {index} of the cluster is not a Replica: {shown(replica)}"
                )

    def __repr__(self) -> str:
        speeds = ", ".join(f"{speed:g}" for speed in sorted({one.speed for one in self.replicas}))
        kinds = sorted({f"{type(one.batch_time).__name__}, {one.scheduler}" for one in self})
        return f"Cluster({len(self.replicas)} replicas: {'; '.join(kinds)}; speed {speeds})"

    @classmethod
    def from_profile(cls, name: str | Path, replicas: int = 4, **overrides: Any) -> "Cluster":
        """Builds equal replicas from a shipped profile, or from a profile's YAML file.

        Args:
            name: one of `available_profiles()`, or the path of a YAML file.
            replicas: how many, at least 1.
            **overrides: fields of `Replica` that differ from the profile.

        Raises:
            InputError: the profile or a field is unknown, or a value is out of range.
        """
        count("replicas", replicas)
        known = {field.name for field in fields(Replica)}
        for key in overrides:
            checked_name("replica setting", key, known)
        profile = load_profile(name)
        one = Replica(**{"batch_time": profile.batch_time, **profile.limits, **overrides})
        return cls((one,) * replicas)

    def with_speeds(self, speeds: Sequence[float]) -> "Cluster":
        """Returns the cluster with the replicas' speeds set, one number each.

        Raises:
            InputError: there are not as many speeds as replicas, or one is not a number > 0.
        """
        speeds = sequence("speeds", speeds, "numbers")
        if len(speeds) != len(self.replicas):
            raise InputError(f"{len(self.replicas)} replicas need as many speeds, got {speeds}")
        return Cluster(
            tuple(
                replace(one, speed=speed) for one, speed in zip(self.replicas, speeds, strict=True)
            )
        )

    @cached_property
    def limits(self) -> tuple[tuple[int, int | None], ...]:
        """Of each replica, the most tokens of a request and of its prompt, None for any number."""
        return tuple((one.room_blocks * one.block_size, one.longest_prompt) for one in self)

    @cached_property
    def kinds_of_limits(self) -> frozenset[tuple[int, int | None]]:
        """The different `limits` among its replicas."""
        return frozenset(self.limits)

    def __len__(self) -> int:
        """Returns the number of replicas."""
        return len(self.replicas)

    def __getitem__(self, index: Any) -> Any:
        """Returns a replica by its number."""
        return self.replicas[index]

    def __iter__(self) -> Iterator[Replica]:
        """Iterates over the replicas."""
        return iter(self.replicas)


def _check_model(model: object) -> None:
    if isinstance(model, type) or not callable(getattr(model, "seconds", None)):
        raise InputError(
            "batch_time must be a BatchTimeModel or another object with a method seconds(batch), "
            f"got {shown(model)}"
        )


def _checked_slowdowns(slowdowns: Sequence[Sequence[float]]) -> tuple[Slowdown, ...]:
    checked: list[Slowdown] = []
    for given in sequence("slowdowns", slowdowns, "(start_s, factor) pairs"):
        pair = sequence("a slowdown", given, "2 numbers, (start_s, factor)")
        if len(pair) != 2 or not all(map(_is_finite, pair)) or pair[0] < 0 or pair[1] <= 0:
            raise InputError(
                f"a slowdown is (start_s >= 0, factor > 0), got {shown(pair)}; factor 2 doubles "
                "all batch times from start_s on"
            )
        if checked and pair[0] <= checked[-1][0]:
            raise InputError(f"slowdowns must have increasing start_s, got {shown(slowdowns)}")
        checked.append((float(pair[0]), float(pair[1])))
    return tuple(checked)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
