"""Settings of what is simulated: replicas, requests, what a router sees, the reward."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from llmroute_gym.config.settings import (
    Settings,
    check_distinct,
    choice,
    many,
    number,
    refuse_unread,
)
from llmroute_gym.errors import InputError, checked_name, shown
from llmroute_gym.ground.signals import IDENTITIES, SIGNAL_NAMES, VERSION_1

PROMPT_SOURCES = ("agent_loop", "multi_turn", "prefix_repetition", "shared_prefix")
ENGINES = ("reference", "compiled")
PREFIX_VIEWS = ("events", "tree")


@dataclass
class GroupConfig(Settings):
    """Equal replicas: a profile times a count. What is None is taken from the profile."""

    profile: str = "a100-internlm-20b"
    replicas: int = number(1, at_least=1)
    scheduler: str | None = None
    max_batch: int | None = number(None, at_least=1)
    max_batched_tokens: int | None = number(None, at_least=1)
    chunk_size: int | None = number(None, at_least=1)
    num_blocks: int | None = number(None, at_least=1)
    watermark_blocks: int | None = number(None, at_least=0)
    speed: float | None = number(None, above=0)
    """Divides all batch times."""
    restart: str | None = None
    """What a preempted request recomputes: ``recompute`` or ``vidur``."""
    oversize: str | None = None
    """What a request that no replica can hold does: ``raise`` an error, or ``reject`` it."""
    prefix_caching: bool | None = None
    """Whether equal blocks of tokens are computed once; it and all below: ``vllm_v1`` only."""
    chunked_prefill: bool | None = None
    long_prefill_tokens: int | None = number(None, at_least=0)
    """Most tokens that a request gets in a batch while others are there; 0 means any number."""
    admission: str | None = None
    """What must fit into memory at first: the whole ``sequence`` or the first ``chunk``."""
    watermark: float | None = number(None, at_least=0)
    """Share of the blocks that admitting a request leaves free while others run."""
    max_model_len: int | None = number(None, at_least=2)
    """Prompt and output tokens at which a request ends."""
    shared_reads: float | None = number(None, at_least=0, at_most=1)
    """Share of the repeated reads of blocks, which several requests hold, that takes no time."""

    def overrides(self) -> dict[str, Any]:
        """The settings that replace the profile's, as keyword arguments."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(GroupConfig)}
        return {
            name: value
            for name, value in given.items()
            if name not in ("profile", "replicas") and value is not None
        }

    def title(self) -> str:
        """Names the replicas: "2 x h100-codellama-34b at speed 1.5"."""
        speed = "" if self.speed is None else f" at speed {self.speed:g}"
        return f"{self.replicas} x {self.profile}{speed}"


@dataclass
class ClusterConfig(GroupConfig):
    """The replicas behind the router: equal ones, with a speed each, or groups of them."""

    group: ClassVar[str] = "cluster"

    replicas: int = number(4, at_least=1)
    speeds: list[float] = many(above=0)
    """One per replica, in place of ``speed``."""
    groups: list[GroupConfig] = field(default_factory=list)
    """Groups of equal replicas, numbered in their order; in place of all keys above."""
    slowdowns: list[Any] = field(default_factory=list)
    """Of each replica a list of [start_s, factor] pairs by rising start: from then on its batches
    take factor times as long, which no router is told; replicas beyond the list have none."""

    @property
    def n_replicas(self) -> int:
        """Number of replicas, of all groups together."""
        return sum(one.replicas for one in self.groups) or self.replicas

    def title(self) -> str:
        """Names all replicas, for titles."""
        title = ", ".join(one.title() for one in self.groups) or super().title()
        if self.speeds:
            title += f" at speeds {_listed(self.speeds)}"
        if slow := [replica for replica, pairs in enumerate(self.slowdowns) if pairs]:
            title += f" (slowdowns of replica {_listed(slow)})"
        return title

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and describes the same replicas."""
        super().validate(group)
        for index, one in enumerate(self.groups):
            if not isinstance(one, GroupConfig):
                raise InputError(
                    f"cluster.groups[{index}] must be a GroupConfig, got {shown(one)}; write "
                    "GroupConfig(profile=..., replicas=...)"
                )
            one.validate(f"cluster.groups[{index}]")
        if self.groups:
            names = [entry.name for entry in fields(GroupConfig)]
            refuse_unread(self, "cluster", [*names, "speeds"], "groups, which have their own")
        if self.speeds:
            refuse_unread(self, "cluster", ["speed"], f"speeds={self.speeds}")
        if self.speeds and len(self.speeds) != self.replicas:
            raise InputError(
                f"cluster.speeds must have one number per replica ({self.replicas}), got "
                f"{len(self.speeds)}; set cluster.replicas={len(self.speeds)} or name them all"
            )
        if len(self.slowdowns) > self.n_replicas:
            raise InputError(
                f"cluster.slowdowns has {len(self.slowdowns)} lists for {self.n_replicas} "
                "replicas; give one per replica at the most"
            )
        for replica, pairs in enumerate(self.slowdowns):
            if not isinstance(pairs, list | tuple) or not all(map(_is_pair, pairs)):
                raise InputError(
                    f"cluster.slowdowns[{replica}] must be a list of pairs [start_s, factor], got "
                    f"{pairs}; an example is cluster.slowdowns=[[[60,3],[120,1]]]"
                )
        return self


def _listed(numbers: Sequence[float]) -> str:
    """Names numbers, many of them by their ends."""
    if len(numbers) > 8:
        return f"{min(numbers):g} to {max(numbers):g}"
    return ", ".join(f"{number:g}" for number in numbers)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


@dataclass
class WorkloadConfig(Settings):
    """The requests: their lengths, their arrival times and their mean rate."""

    group: ClassVar[str] = "workload"

    source: str = choice("synthetic", "synthetic", "trace", *PROMPT_SOURCES)
    """``synthetic`` draws lengths from a model; ``trace`` replays windows of the file ``path``; the
    others draw requests that share parts of their prompts, see ``llmroute_gym.sim.sources``."""
    lengths: dict[str, Any] = field(default_factory=lambda: {"model": "azure_conv"})
    """A length model of ``llmroute_gym.sim.lengths`` and its options (``synthetic`` only)."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """The options of a source of requests that share parts of their prompts."""
    arrivals: dict[str, Any] = field(default_factory=lambda: {"process": "poisson"})
    """An arrival process of ``llmroute_gym.sim.arrivals`` and its options."""
    qps: float | None = number(None, above=0)
    """Mean arrival rate in requests per second; None means ``training.qps``."""
    own_rate: bool = False
    """Whether the trace keeps its own mean rate, and with its own times these unscaled; no ``qps``
    is read then."""
    path: str | None = None
    start: int = number(0, at_least=0)
    """First row of the trace that is read."""
    limit: int | None = number(None, at_least=1)
    """Rows of the trace that are read; None means all."""
    max_prompt_tokens: int | None = number(None, at_least=1)
    """Longer prompts of the trace are clipped to this many tokens."""
    on_error: str = choice("raise", "raise", "skip")
    """What a bad row of the trace does."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and a trace has its path."""
        if self.source == "trace" and not self.path:
            raise InputError(
                "workload.path is missing: workload=trace replays a file; "
                "add workload.path=FILE or choose workload=azure_conv"
            )
        super().validate(group)
        process, own = self.arrivals.get("process"), self.arrivals.get("path")
        if self.source != "trace" and process == "trace" and not own:
            raise InputError(
                "workload/arrivals=trace replays the times of a trace; add workload=trace "
                "workload.path=FILE, or choose workload/arrivals=poisson"
            )
        if self.source != "trace":
            names = ["start", "limit", "max_prompt_tokens", "on_error", "own_rate"]
            names += ["path"] if process != "trace" else []
            refuse_unread(self, "workload", names, f"source={self.source}", "workload=trace")
        if self.source != "synthetic" and self.lengths:
            because = f"source={self.source}"
            refuse_unread(self, "workload", ["lengths"], because, "workload=azure_conv")
        if self.source not in PROMPT_SOURCES:
            because = f"source={self.source}"
            refuse_unread(self, "workload", ["prompts"], because, "workload=shared_prefix")
        if self.own_rate:
            refuse_unread(self, "workload", ["qps"], "own_rate=true")
        return self

    def rate(self, default: float) -> float:
        """Returns the mean arrival rate in force, in requests per second.

        Args:
            default: what holds where ``qps`` is None. With ``own_rate`` that is the trace's, once
                it has been read: ``qps`` of the source.
        """
        return default if self.qps is None else self.qps

    def rate_key(self, default: str) -> str:
        """Returns where the mean arrival rate stands: a key, ``default`` where ``qps`` is None."""
        if self.own_rate:
            return "the trace's own rate"
        return default if self.qps is None else "workload.qps"


@dataclass
class ObservationConfig(Settings):
    """What a router is told about the replicas and the request."""

    group: ClassVar[str] = "observation"

    information: str = choice("engine", "engine", "metrics", "router", "oracle")
    """``engine``: all but true output lengths; ``router``: only what a router counts by
    itself; ``metrics``: that, and the queue, batch, batch time, KV usage and hit rate that engines
    publish; ``oracle``: adds true remaining tokens to ``engine`` (for upper bounds, never to
    publish)."""
    signal_interval_s: float = number(0.0, at_least=0)
    """Seconds between two refreshes of the engines' metrics; 0 means always fresh."""
    predicted_output_sigma: float | None = number(None, at_least=0)
    """Log-normal error of the predicted output length; None means no prediction."""
    columns: list[str] = many(*VERSION_1)
    """Which signals a policy's observation shows, in order; see ``llmroute_gym.envs.observation``.
    A rule reads all of them whatever stands here."""
    prefix_view: str = choice("events", *PREFIX_VIEWS)
    """What ``cached_prefix`` is looked up in. ``events``: what the engines tell of their prefix
    caches; ``tree``: the blocks of the prompts that were sent to each replica, of whose evictions
    no one tells. Neither ages with ``signal_interval_s``."""
    events_lag_s: float = number(0.0, at_least=0)
    """Seconds by which the engines' events are late; ``events`` only."""
    tree_blocks: int = number(32768, at_least=1)
    """Blocks that are kept of each replica, the latest sent; ``tree`` only."""
    gateways: int = number(1, at_least=1)
    """Routers that take the decisions in turn. Each counts what it sent itself, has a tree of its
    own and reads the engines' metrics at times of its own, evenly shifted against the others."""
    speed_hidden: bool = False
    """Whether nobody tells how fast a replica is: ``speed`` is 1 then."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and every column is a signal."""
        super().validate(group)
        if not self.columns:
            raise InputError(
                "observation.columns is empty; name at least one, such as "
                "observation.columns=[waiting,running]"
            )
        for name in self.columns:
            checked_name("column of observation.columns:", name, SIGNAL_NAMES)
            if SIGNAL_NAMES.index(name) in IDENTITIES:
                raise InputError(
                    f"observation.columns has {name}, which is a name, no quantity; a policy "
                    "cannot read it, leave it out"
                )
        check_distinct("observation.columns", self.columns, "column")
        return self


@dataclass
class RewardConfig(Settings):
    """Weights of the reward terms; the terms are defined in ``llmroute_gym.envs.reward``."""

    group: ClassVar[str] = "reward"

    latency_weight: float = number(1.7, at_least=0)
    latency_penalty_scale: float = number(0.85, at_least=0)
    """Weight of the time that requests older than ``latency_threshold`` spend in the system."""
    throughput_target: float = number(1.85, above=0)
    """Completion rate in requests per second from which the throughput term is 1."""
    throughput_weight: float = number(1.0, at_least=0)
    load_balance_penalty: float = number(1.0, at_least=0)
    latency_threshold: float = number(6.0, above=0)
    """Seconds; the unit of the latency terms and the age from which a request is late."""


@dataclass
class EnvConfig(Settings):
    """The training environments."""

    group: ClassVar[str] = "env"

    num_envs: int = number(64, at_least=1)
    requests_per_episode: int = number(100, at_least=1)
    engine: str = choice("compiled", *ENGINES)
    """``compiled`` steps all environments in one call; ``reference`` (SimPy) one by one. The
    numbers are the same."""
