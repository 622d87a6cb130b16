"""What a cluster is made of: replicas, each a model on hardware behind a scheduler."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from llmroute_gym.errors import InputError, checked_name, shown
from llmroute_gym.ground.checks import count, flag, number, positive, sequence
from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.profile_time import load_profile
from llmroute_gym.sim.schedulers import SCHEDULERS, SchedulerLimits, limits_of

RestartMode = Literal["recompute", "vidur"]
OversizeMode = Literal["raise", "reject"]
AdmissionMode = Literal["sequence", "chunk"]
Slowdown = tuple[float, float]

_COUNTS = ("max_batch", "max_batched_tokens", "chunk_size", "block_size", "num_blocks")
_CHOICES = {
    "restart": get_args(RestartMode),
    "oversize": get_args(OversizeMode),
    "admission": get_args(AdmissionMode),
}
_FLAGS = ("prefix_caching", "chunked_prefill")
_OPTIONAL = (
    *_FLAGS,
    "long_prefill_tokens",
    "admission",
    "watermark",
    "max_model_len",
    "shared_reads",
)
"""What a scheduler reads only if it says so in `SchedulerLimits.reads`."""
_SCHEDULERS_OWN: Any = None
"""The default of what each scheduler has a default of its own for; resolved when it is built."""


@dataclass(frozen=True)
class Replica:
    """One model server: its iteration times, its scheduler and the limits it runs under.

    Attributes:
        batch_time: seconds per batch at speed 1; any object with the method `seconds` of a
            `BatchTimeModel` will do for the reference engine.
        scheduler: `chunked` (Sarathi style, prefill chunks mixed with decodes) or `prefill_first`
            (vLLM v0 style, whole prompts, never mixed) or `vllm_v1` (one token budget for decodes
            and chunks, a prefix cache), or the name of one that
            `llmroute_gym.sim.schedulers.register` has made known.
        max_batch: requests in one batch, and requests that may hold KV blocks; None stands for the
            scheduler's own default, 128, or 1024 of `vllm_v1`.
        max_batched_tokens: padded tokens of one prefill batch (`prefill_first`), all tokens of a
            batch (`vllm_v1`); None stands for 4096, or 8192 of `vllm_v1`.
        chunk_size: token budget of one batch for prefill chunks (`chunked` only).
        block_size: tokens per KV block.
        num_blocks: KV blocks of the replica; `vllm_v1` leaves one of them empty.
        watermark_blocks: blocks that admitting a request must leave free (not `vllm_v1`).
        speed: divides all batch times.
        slowdowns: (start_s, factor) pairs by increasing start; from start_s on, batches that start
            take factor times as long, until the next pair.
        restart: what a preempted request recomputes. `recompute` keeps its prompt whole; `vidur`
            treats what it had processed as its prompt and the rest as output, as Vidur does; not
            read by `vllm_v1`, which keeps prompts whole.
        oversize: what becomes of a request that the replica can never hold: `raise` an error at
            submission, or `reject` it, which the outcome shows as an infinite latency.
        prefix_caching: whether blocks of equal tokens are computed once (`vllm_v1` only, as all
            that follow); None stands for yes where the scheduler has a prefix cache.
        chunked_prefill: whether a prompt may be prefilled in parts. Without, one that needs more
            than the rest of `max_batched_tokens` waits, and all behind it do.
        long_prefill_tokens: most tokens that a request gets in a batch while others are there, 0
            for any number.
        admission: what must fit into memory before a request is admitted, all its tokens so far
            (`sequence`) or those of its first batch (`chunk`, as older vLLM).
        watermark: share of the blocks that admitting a request must leave free while others run,
            at least 0, less than 1.
        max_model_len: prompt and output tokens at which a request ends, None for no such limit.
        shared_reads: share, 0 to 1, of the repeated reads of KV blocks that several decoding
            requests hold which takes no time. With 0 a decode's attention reads each request's
            context on its own, as one prompt shares nothing with another; with 1 it reads a block
            once for all that hold it. Where others are in prefill, they count as holding alike.

    Raises:
        InputError: the batch time is no model, a limit is out of range, a slowdown is malformed, a
            name is unknown, or the scheduler does not read a setting that was given.
    """

    batch_time: BatchTimeModel
    scheduler: str = "chunked"
    max_batch: int = _SCHEDULERS_OWN
    max_batched_tokens: int = _SCHEDULERS_OWN
    chunk_size: int = 512
    block_size: int = 16
    num_blocks: int = 1792
    watermark_blocks: int = 0
    speed: float = 1.0
    slowdowns: tuple[Slowdown, ...] = ()
    restart: RestartMode = "recompute"
    oversize: OversizeMode = "raise"
    prefix_caching: bool = _SCHEDULERS_OWN
    chunked_prefill: bool = True
    long_prefill_tokens: int = 0
    admission: AdmissionMode = "sequence"
    watermark: float = 0.0
    max_model_len: int | None = None
    shared_reads: float = 0.0

    def __post_init__(self) -> None:
        _check_model(self.batch_time)
        kind = limits_of(self.scheduler)
        own = {
            "max_batch": kind.max_batch,
            "max_batched_tokens": kind.max_batched_tokens,
            "prefix_caching": "prefix_caching" in kind.reads,
        }
        checked: dict[str, Any] = {name: own[name] for name in own if getattr(self, name) is None}
        for name, choices in _CHOICES.items():
            checked_name(name, getattr(self, name), choices)
        for name in _COUNTS:
            least = kind.least_blocks if name == "num_blocks" else 1
            checked[name] = count(name, checked.get(name, getattr(self, name)), at_least=least)
        for name in _FLAGS:
            checked[name] = flag(name, checked.get(name, getattr(self, name)))
        for name in ("watermark_blocks", "long_prefill_tokens"):
            checked[name] = count(name, getattr(self, name), at_least=0)
        for name in ("watermark", "shared_reads"):
            checked[name] = number(name, getattr(self, name), at_least=0)
        if self.max_model_len is not None:
            checked["max_model_len"] = count("max_model_len", self.max_model_len, at_least=2)
        checked["speed"] = positive("speed", self.speed)
        checked["slowdowns"] = _checked_slowdowns(self.slowdowns)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_together(kind)

    def _check_together(self, kind: type[SchedulerLimits]) -> None:
        if self.watermark_blocks >= self.num_blocks:
            raise InputError(
                f"watermark_blocks must be below num_blocks ({self.num_blocks}), "
                f"got {self.watermark_blocks}"
            )
        if self.watermark >= 1:
            raise InputError(
                f"watermark must be a share of the blocks below 1, got {self.watermark:g}; 0.01 "
                "keeps a hundredth of them free"
            )
        if self.shared_reads > 1:
            raise InputError(
                f"shared_reads must be a share of the repeated reads, 0 to 1, got "
                f"{self.shared_reads:g}; 1 reads each block once"
            )
        for name in _OPTIONAL:
            if name not in kind.reads and getattr(self, name) != _UNREAD[name]:
                able = [one for one, other in SCHEDULERS.items() if name in other.reads]
                raise InputError(
                    f"{name}={getattr(self, name)!r} would not be read by the scheduler "
                    f"{self.scheduler!r}; leave it out or choose scheduler={able[0]!r}"
                )

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
        longest = limits_of(self.scheduler).longest_prompt(self)
        if self.max_model_len is None:
            return longest
        return self.max_model_len - 1 if longest is None else min(longest, self.max_model_len - 1)

    @property
    def most_tokens(self) -> int | None:
        """Most tokens that a request may hold in KV, None where all that run here may."""
        most = self.room_blocks * self.block_size
        recomputed = limits_of(self.scheduler).longest_recomputed(self)
        most = most if recomputed is None else min(most, recomputed)
        ends_in_time = self.max_model_len is not None and self.max_model_len - 1 <= most
        return None if ends_in_time else most

    @property
    def longest_request(self) -> int:
        """Most prompt and output tokens, together, of a request that runs here."""
        most = self.most_tokens
        if most is None:
            assert self.max_model_len is not None
            return self.max_model_len
        return most + 1  # the last token is never in the KV cache

    def output_of(self, prompt_tokens: int, output_tokens: int) -> int:
        """Returns how many of its output tokens a request gives here before it is ended."""
        if self.max_model_len is None:
            return output_tokens
        return min(output_tokens, self.max_model_len - prompt_tokens)

    def largest_batch(self, longest_request: int) -> int:
        """Returns the most tokens of one batch, see `SchedulerLimits.largest_batch`."""
        return limits_of(self.scheduler).largest_batch(self, longest_request)

    def why_oversize(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Says why a request can never run here, or None if it can.

        A request must fit alone at its longest (a restart may recompute all of it but the last
        token), and its prompt must not be longer than the scheduler can take.
        """
        if self.max_model_len is not None and prompt_tokens >= self.max_model_len:
            return (
                f"{prompt_tokens} prompt tokens leave no room for an output within max_model_len "
                f"({self.max_model_len}); raise max_model_len or clip the prompt"
            )
        longest = prompt_tokens + self.output_of(prompt_tokens, output_tokens) - 1
        room = self.room_blocks
        if self.blocks_for(longest) > room:
            return (
                f"{prompt_tokens} prompt + {output_tokens} output tokens need "
                f"{self.blocks_for(longest)} KV blocks of {self.block_size} tokens, the replica "
                f"has {room} for one request; raise num_blocks or clip the request"
            )
        most = self.longest_prompt
        if most is not None and prompt_tokens > most:
            return (
                f"{prompt_tokens} prompt tokens exceed max_batched_tokens ({most}); raise it or "
                "clip with max_prompt_tokens"
            )
        recomputed = limits_of(self.scheduler).longest_recomputed(self)
        if recomputed is not None and longest > recomputed:
            return (
                f"{prompt_tokens} prompt + {output_tokens} output tokens may have to be computed "
                f"in one batch without chunked_prefill, which exceeds max_batched_tokens "
                f"({recomputed}); raise max_batched_tokens or clip the request"
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
            **overrides: fields of `Replica` that differ from the profile, its scheduler too.

        Raises:
            InputError: the profile or a field is unknown, or a value is out of range.
        """
        count("replicas", replicas)
        known = {field.name for field in fields(Replica)}
        for key in overrides:
            checked_name("replica setting", key, known)
        settings = load_profile(name).settings(overrides.get("scheduler"))
        one = Replica(**{**settings, **overrides})
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
    def limits(self) -> tuple[tuple[int | None, int | None], ...]:
        """Of each replica, the most tokens of a request and of its prompt, None for any number."""
        return tuple((one.most_tokens, one.longest_prompt) for one in self)

    @cached_property
    def longest_request(self) -> int:
        """Most prompt and output tokens, together, of a request that any replica runs."""
        return max(replica.longest_request for replica in self.replicas)

    @cached_property
    def kinds_of_limits(self) -> frozenset[tuple[int | None, int | None]]:
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


_UNREAD = {field.name: field.default for field in fields(Replica)} | {"prefix_caching": False}
"""What settings that a scheduler does not read must be left at."""


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
