"""Every setting of the package with its unit and its default: plain dataclasses.

They are the only place where defaults live. The Python API takes them as they are, and the
commands register the very same objects as Hydra schemas, so a misspelt key or a wrong type is
an error in YAML, on the command line and in Python alike. The defaults are those of the option
``latency_tuned``; the files in ``conf/`` hold only what differs from them.

Each class checks its own values in ``validate``, which raises
:class:`~llmroute_gym.errors.InputError`. The module imports nothing heavy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llmroute_gym.errors import InputError, unknown_name

INFORMATION = ("engine", "router", "oracle")
ENGINES = ("reference", "compiled")
ON_ERROR = ("raise", "skip")
WANDB_MODES = ("disabled", "offline", "online")
ACTIVATIONS = ("tanh", "relu")


@dataclass
class RewardConfig:
    """Weights of the reward terms; the terms are defined in ``llmroute_gym.envs.reward``."""

    latency_weight: float = 1.7
    latency_penalty_scale: float = 0.85
    """Weight of the time that requests older than ``latency_threshold`` spend in the system."""
    throughput_target: float = 1.85
    """Completion rate in requests per second from which the throughput term is 1."""
    throughput_weight: float = 1.0
    load_balance_penalty: float = 1.0
    latency_threshold: float = 6.0
    """Seconds; the unit of the latency terms and the age from which a request is late."""

    def validate(self, prefix: str = "reward") -> None:
        """Raises InputError where a weight is negative or a scale is not positive."""
        _at_least(
            self,
            prefix,
            0,
            "latency_weight",
            "latency_penalty_scale",
            "throughput_weight",
            "load_balance_penalty",
        )
        _positive(self, prefix, "throughput_target", "latency_threshold")


@dataclass
class ObservationConfig:
    """What a router is told about the replicas and the request."""

    information: str = "engine"
    """``engine`` (all but true output lengths), ``router`` (only what a router counts by
    itself) or ``oracle`` (adds true remaining tokens: for upper bounds only)."""
    signal_interval_s: float = 0.0
    """Seconds between two refreshes of the engines' metrics; 0 means always fresh."""
    predicted_output_sigma: float | None = None
    """Log-normal error of the predicted output length; None means no prediction."""

    def validate(self, prefix: str = "observation") -> None:
        """Raises InputError for an unknown information level or a negative number."""
        _one_of(self, prefix, "information", INFORMATION)
        _at_least(self, prefix, 0, "signal_interval_s")
        if self.predicted_output_sigma is not None:
            _at_least(self, prefix, 0, "predicted_output_sigma")


@dataclass
class ClusterConfig:
    """The replicas behind the router: a shipped profile, or the path of one, times a count.

    Everything that is None is taken from the profile.
    """

    profile: str = "a100-internlm-20b"
    replicas: int = 4
    scheduler: str | None = None
    max_batch: int | None = None
    max_batched_tokens: int | None = None
    chunk_size: int | None = None
    num_blocks: int | None = None
    watermark_blocks: int | None = None
    speed: float | None = None

    def validate(self, prefix: str = "cluster") -> None:
        """Raises InputError where a count is below one; the profile checks the rest."""
        _at_least(self, prefix, 1, "replicas")
        for name in ("max_batch", "max_batched_tokens", "chunk_size", "num_blocks"):
            if getattr(self, name) is not None:
                _at_least(self, prefix, 1, name)
        if self.watermark_blocks is not None:
            _at_least(self, prefix, 0, "watermark_blocks")
        if self.speed is not None:
            _positive(self, prefix, "speed")

    def overrides(self) -> dict[str, Any]:
        """The profile's settings that are replaced, as keyword arguments."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value
            for name, value in given.items()
            if name not in ("profile", "replicas") and value is not None
        }


@dataclass
class ArrivalsConfig:
    """When requests arrive; the subclasses add the parameters of their process."""

    process: str = "poisson"

    def validate(self, prefix: str = "workload.arrivals") -> None:
        """Raises InputError where a parameter is outside its range."""

    def parameters(self) -> dict[str, Any]:
        """The arguments of the process."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "process"}


@dataclass
class WorkloadConfig:
    """The requests: their lengths, their arrival times and their mean rate."""

    source: str = "azure_conv"
    """``trace``, which replays the file ``path``, or the name of a shipped length model."""
    qps: float | None = None
    """Mean arrival rate in requests per second; None means ``training.qps``."""
    arrivals: ArrivalsConfig = field(default_factory=ArrivalsConfig)
    path: str | None = None
    limit: int | None = None
    """Rows of the trace that are read; None means all."""
    start: int = 0
    max_prompt_tokens: int | None = None
    """Longer prompts of the trace are clipped to this many tokens."""
    on_error: str = "raise"

    def validate(self, prefix: str = "workload") -> None:
        """Raises InputError for a rate that is not positive or a trace without a path."""
        if self.qps is not None:
            _positive(self, prefix, "qps")
        if self.source == "trace" and not self.path:
            raise InputError(
                f"{prefix}.path is missing: the workload 'trace' replays a file; "
                f"give {prefix}.path=FILE or choose workload=azure_conv"
            )
        for name in ("limit", "max_prompt_tokens"):
            if getattr(self, name) is not None:
                _at_least(self, prefix, 1, name)
        _at_least(self, prefix, 0, "start")
        _one_of(self, prefix, "on_error", ON_ERROR)
        self.arrivals.validate(f"{prefix}.arrivals")


@dataclass
class EnvConfig:
    """The training environments."""

    num_envs: int = 4
    requests_per_episode: int = 500
    engine: str = "reference"

    def validate(self, prefix: str = "env") -> None:
        """Raises InputError where a count is below one or the engine is unknown."""
        _at_least(self, prefix, 1, "num_envs", "requests_per_episode")
        _one_of(self, prefix, "engine", ENGINES)


def _number(config: object, prefix: str, name: str, wanted: str) -> float:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{prefix}.{name} must be {wanted}, got {value!r}")
    return value


def _positive(config: object, prefix: str, *names: str) -> None:
    for name in names:
        if _number(config, prefix, name, "a number > 0") <= 0:
            raise InputError(f"{prefix}.{name} must be > 0, got {getattr(config, name)}")


def _at_least(config: object, prefix: str, least: float, *names: str) -> None:
    for name in names:
        if _number(config, prefix, name, f"a number >= {least}") < least:
            raise InputError(f"{prefix}.{name} must be >= {least}, got {getattr(config, name)}")


def _within(config: object, prefix: str, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= _number(config, prefix, name, f"between {low} and {high}") <= high:
            raise InputError(
                f"{prefix}.{name} must be between {low} and {high}, got {getattr(config, name)}"
            )


def _one_of(config: object, prefix: str, name: str, options: Sequence[str]) -> None:
    value = getattr(config, name)
    if value not in options:
        raise unknown_name(f"{prefix}.{name}", value, options)
