"""Every setting of the package with its unit, its range and its default: plain dataclasses.

They are the only place where defaults live. The Python API takes them as they are, and the
commands register the very same objects as Hydra schemas, so a misspelt key or a wrong type is
an error in YAML, on the command line and in Python alike. The defaults are those of the option
``latency_tuned``; the files in ``conf/`` hold only what differs from them.

The module imports nothing heavy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, Self

from llmroute_gym.errors import InputError, unknown_name

ENGINES = ("reference", "compiled")
LARGEST_SEED = 2**32 - 1
"""Stable-Baselines3 seeds NumPy's old generator, which takes no more."""


def number(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A numeric field with its range; a field that may be None is only checked when set."""
    return field(default=default, metadata={"range": (above, at_least, at_most)})


def choice(default: str, *options: str) -> Any:
    """A text field that takes one of the given words."""
    return field(default=default, metadata={"options": options})


def many(*default: Any, above: float | None = None, at_least: float | None = None) -> Any:
    """A list field; a range holds for each of its members."""
    return field(default_factory=lambda: list(default), metadata={"range": (above, at_least, None)})


@dataclass
class Settings:
    """A group of settings: what is common to the dataclasses below."""

    group: ClassVar[str] = ""
    """How the group is called in the sentences of errors."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range.

        Raises:
            InputError: naming the key, the value and what was expected.
        """
        prefix = self.group if group is None else group
        for entry in fields(self):
            value = getattr(self, entry.name)
            key = f"{prefix}.{entry.name}" if prefix else entry.name
            if isinstance(value, Settings):
                value.validate(key)
            elif "options" in entry.metadata and value not in entry.metadata["options"]:
                raise unknown_name(key, value, entry.metadata["options"])
            elif any(bound is not None for bound in entry.metadata.get("range", ())):
                whole = "int" in str(entry.type)
                for member in value if "list" in str(entry.type) else (value,):
                    if member is not None:
                        _check_range(key, member, *entry.metadata["range"], whole=whole)
        return self


def _check_range(
    key: str,
    value: Any,
    above: float | None,
    at_least: float | None,
    at_most: float | None,
    *,
    whole: bool,
) -> None:
    kind = "an integer" if whole else "a number"
    bounds = [
        f"{sign} {bound if isinstance(bound, int) else format(bound, 'g')}"
        for sign, bound in ((">", above), (">=", at_least), ("<=", at_most))
        if bound is not None
    ]
    good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not good or not math.isfinite(float(value)):
        wanted = " ".join([kind, " and ".join(bounds)]).rstrip()
        raise InputError(f"{key} must be {wanted}, got {value!r}")
    if (
        (above is not None and float(value) <= above)
        or (at_least is not None and float(value) < at_least)
        or (at_most is not None and float(value) > at_most)
    ):
        raise InputError(f"{key} must be {' and '.join(bounds)}, got {value}")


def changed(settings: Settings, names: Sequence[str]) -> list[str]:
    """Returns those of the fields that have another value than their default."""
    untouched = type(settings)()
    return [name for name in names if getattr(settings, name) != getattr(untouched, name)]


def check_distinct(key: str, routers: Sequence[str]) -> None:
    """Checks that a list of routers names none twice.

    Raises:
        InputError: naming the key and the router.
    """
    for name in routers:
        if routers.count(name) > 1:
            raise InputError(f"{key} names {name} twice; name each router once")


def refuse_unread(
    settings: Settings, group: str, names: Sequence[str], because: str, instead: str = ""
) -> None:
    """Refuses values that nothing would read.

    Args:
        settings: of the group.
        group: its name.
        names: of the fields that are not read.
        because: the setting of the same group under which they are not.
        instead: what to choose so that they are.

    Raises:
        InputError: one of the fields has another value than its default.
    """
    for name in changed(settings, names):
        mend = f"choose {instead} or leave it out" if instead else "leave one of them out"
        raise InputError(
            f"{group}.{name}={getattr(settings, name)} would not be read with {group}.{because}; "
            f"{mend}"
        )


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
class ObservationConfig(Settings):
    """What a router is told about the replicas and the request."""

    group: ClassVar[str] = "observation"

    information: str = choice("engine", "engine", "router", "oracle")
    """``engine``: all but true output lengths; ``router``: only what a router counts by
    itself; ``oracle``: adds true remaining tokens (for upper bounds, never to publish)."""
    signal_interval_s: float = number(0.0, at_least=0)
    """Seconds between two refreshes of the engines' metrics; 0 means always fresh."""
    predicted_output_sigma: float | None = number(None, at_least=0)
    """Log-normal error of the predicted output length; None means no prediction."""


@dataclass
class ClusterConfig(Settings):
    """The replicas behind the router: a profile times a count.

    What is None is taken from the profile.
    """

    group: ClassVar[str] = "cluster"

    profile: str = "a100-internlm-20b"
    replicas: int = number(4, at_least=1)
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

    def overrides(self) -> dict[str, Any]:
        """The settings that replace the profile's, as keyword arguments."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: value
            for name, value in given.items()
            if name not in ("profile", "replicas") and value is not None
        }


@dataclass
class WorkloadConfig(Settings):
    """The requests: their lengths, their arrival times and their mean rate."""

    group: ClassVar[str] = "workload"

    source: str = choice("synthetic", "synthetic", "trace")
    """``synthetic`` draws lengths from a model; ``trace`` replays windows of the file ``path``."""
    lengths: dict[str, Any] = field(default_factory=lambda: {"model": "azure_conv"})
    """A length model of ``llmroute_gym.sim.lengths`` and its options (``synthetic`` only)."""
    arrivals: dict[str, Any] = field(default_factory=lambda: {"process": "poisson"})
    """An arrival process of ``llmroute_gym.sim.arrivals`` and its options."""
    qps: float | None = number(None, above=0)
    """Mean arrival rate in requests per second; None means ``training.qps``."""
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
        if self.source == "synthetic" and process == "trace" and not own:
            raise InputError(
                "workload/arrivals=trace replays the times of a trace; add workload=trace "
                "workload.path=FILE, or choose workload/arrivals=poisson"
            )
        if self.source != "trace":
            names = ["start", "limit", "max_prompt_tokens", "on_error"]
            names += ["path"] if process != "trace" else []
            refuse_unread(self, "workload", names, f"source={self.source}", "workload=trace")
        elif self.lengths:
            refuse_unread(self, "workload", ["lengths"], "source=trace", "workload=azure_conv")
        return self


@dataclass
class EnvConfig(Settings):
    """The training environments."""

    group: ClassVar[str] = "env"

    num_envs: int = number(4, at_least=1)
    requests_per_episode: int = number(500, at_least=1)
    engine: str = choice("compiled", *ENGINES)
    """``compiled`` steps all environments in one call; ``reference`` (SimPy) one by one. The
    numbers are the same."""


@dataclass
class ExplorationConfig(Settings):
    """The entropy bonus."""

    group: ClassVar[str] = "exploration"

    entropy_coef: float = number(0.05, at_least=0)
    entropy_warmup_coef: float = number(0.02, at_least=0)
    """Added to ``entropy_coef`` at the start; falls linearly to 0 over ``warmup_steps``."""
    warmup_steps: int = number(1000, at_least=1)
    """In gradient steps."""


@dataclass
class KLConfig(Settings):
    """What keeps the policy near the one of the rollout and near the reference."""

    group: ClassVar[str] = "kl"

    target_kl: float = number(0.02, above=0)
    """An update stops when the approximate KL exceeds 1.5 times this."""
    entropy_min: float = number(0.3, at_least=0)
    """Nats; below this mean entropy a penalty acts."""
    entropy_min_coef: float = number(1.0, at_least=0)
    kl_coef: float = number(0.15, at_least=0)
    """Weight of KL(policy of the rollout, policy)."""
    kl_ref_coef_initial: float = number(0.3, at_least=0)
    """Weight of KL(policy, reference) at the first gradient step."""
    kl_ref_coef_final: float = number(0.0, at_least=0)
    kl_ref_decay_steps: int = number(5000, at_least=1)
    """In gradient steps."""


@dataclass
class TemperatureConfig(Settings):
    """The temperature of the policy's logits, set at the start of each rollout."""

    group: ClassVar[str] = "temperature"

    base_temperature: float = number(1.0, above=0)
    min_temperature: float = number(0.8, above=0)
    max_temperature: float = number(2.0, above=0)
    qps_sensitivity: float = number(0.05, at_least=0)
    latency_sensitivity: float = number(0.1, at_least=0)
    balance_sensitivity: float = number(0.1, at_least=0)
    """Not stated in the tuning log; set to ``latency_sensitivity`` of ``latency_tuned``."""
    target_qps: float | None = number(None, above=0)
    """Requests per second; None means ``training.qps``."""
    target_latency: float | None = number(None, above=0)
    """Seconds; None means ``reward.latency_threshold``."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when min_temperature <= base_temperature <= max_temperature."""
        super().validate(group)
        low, base, high = self.min_temperature, self.base_temperature, self.max_temperature
        if low > high:
            raise InputError(
                f"temperature.min_temperature must be <= temperature.max_temperature ({high:g}), "
                f"got {low:g}"
            )
        if not low <= base <= high:
            raise InputError(
                "temperature.base_temperature must lie between min_temperature and "
                f"max_temperature ({low:g} to {high:g}), got {base:g}"
            )
        return self


@dataclass
class TrainingConfig(Settings):
    """How much is trained, at which load, and PPO's own settings."""

    group: ClassVar[str] = "training"

    ppo_requests: int = number(20000, at_least=1)
    """Routing decisions over all environments, rounded up to whole rollouts."""
    qps: float = number(2.5, above=0)
    """Mean arrival rate in requests per second; ``workload.qps`` follows it unless set."""
    gamma: float = number(0.95, at_least=0, at_most=1)
    gae_lambda: float = number(0.9, at_least=0, at_most=1)
    clip_range: float = number(0.15, above=0)
    epochs: int = number(8, at_least=1)
    rollout_steps: int = number(128, at_least=1)
    """Decisions per environment between two updates."""
    minibatch_size: int = number(64, at_least=2)
    learning_rate: float = number(3e-4, above=0)
    value_coef: float = number(0.5, at_least=0)
    max_grad_norm: float = number(1.0, above=0)
    torch_threads: int = number(1, at_least=1)
    """Networks of this size learn fastest on one thread."""


@dataclass
class ModelConfig(Settings):
    """The policy's networks; actor and critic share nothing."""

    group: ClassVar[str] = "model"

    policy: str = choice("replica_set", "mlp", "replica_set")
    """``mlp`` reads all rows as one vector; ``replica_set`` shares its weights over the replicas,
    does not know their order and serves any number of them."""
    actor_sizes: list[int] = many(64, 64, at_least=1)
    critic_sizes: list[int] = many(64, 64, at_least=1)
    activation: str = choice("tanh", "tanh", "relu")

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and a replica set has layers."""
        super().validate(group)
        for name in ("actor_sizes", "critic_sizes"):
            if self.policy == "replica_set" and not getattr(self, name):
                raise InputError(
                    f"model.{name} must have at least one layer with model.policy=replica_set, "
                    f"got []; name its size, such as model.{name}=[64], or choose model=mlp"
                )
        return self


@dataclass
class StabilizationConfig(Settings):
    """Decisions that fill the running normalisers before learning starts."""

    group: ClassVar[str] = "stabilization"

    enabled: bool = True
    steps: int = number(200, at_least=1)
    """Decisions per environment."""
    policy: str = "random"
    """Who decides: ``random``, uniform over the replicas, or the name of any router."""
    freeze: bool | None = None
    """Whether statistics that are filled stand still while the policy learns; None means: as long
    as there is a reference, which moving statistics would move."""

    def unread(self) -> list[str]:
        """Returns the keys that differ from their defaults and have no effect."""
        return [] if self.enabled else changed(self, ("steps", "policy"))


@dataclass
class WarmStartConfig(Settings):
    """Where the policy starts from."""

    group: ClassVar[str] = "warm_start"

    checkpoint: str | None = None
    """A ``model.zip``, the run folder that holds it, or the zip file of any PPO of
    Stable-Baselines3 on the same observation; its networks and statistics are taken over."""
    demos: str | None = None
    """A file of ``collect_demos``, or the run folder that holds it; None collects them anew."""
    cloning: bool = True
    """Whether demonstrations are cloned before PPO, and after the checkpoint if there is one."""
    epochs: int = number(30, at_least=1)
    policies: list[str] = many("round_robin", "lor_hybrid")
    """The routers that demonstrate, at ``training.qps`` and loads around it."""
    decisions: int = number(700, at_least=1)
    """Per demonstration policy."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and there is something to clone."""
        super().validate(group)
        if self.cloning and self.demos is None and not self.policies:
            raise InputError(
                "warm_start.policies is empty; name at least one router, give "
                "warm_start.demos=FILE, or choose warm_start=none"
            )
        check_distinct("warm_start.policies", self.policies)
        if self.demos is not None and not self.cloning:
            raise InputError(
                f"warm_start.demos={self.demos} would not be read with warm_start.cloning=false; "
                "set warm_start.cloning=true, or leave the demonstrations out"
            )
        if self.demos is not None:
            refuse_unread(self, "warm_start", ("policies", "decisions"), f"demos={self.demos}")
        return self

    def unread(self) -> list[str]:
        """Returns the keys that differ from their defaults and have no effect."""
        return [] if self.cloning else changed(self, ("policies", "decisions", "epochs"))


@dataclass
class CurriculumConfig(Settings):
    """Stages of rising load. A new rate holds for the episodes that start after it was set."""

    group: ClassVar[str] = "curriculum"

    stages: list[float] = many(above=0)
    """Arrival rate of each stage in requests per second; none means constant load."""
    advance: str = choice("requests", "requests", "plateau")
    """What ends a stage: its number of requests, or a P95 that no longer improves."""
    requests: list[int] = many(at_least=1)
    """Requests of each stage but the last, which takes the rest; none means equal shares."""
    plateau_tolerance: float = number(0.02, at_least=0, at_most=1)
    """A P95 of end-to-end latency that is lower by more than this share is an improvement."""
    plateau_episodes: int = number(3, at_least=1)
    """Episodes of every environment without an improvement that make a plateau."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when the stages rise and each but the last has its requests."""
        super().validate(group)
        for before, after in pairwise(self.stages):
            if after <= before:
                raise InputError(
                    f"curriculum.stages must rise, got {after:g} after {before:g}; put them in "
                    "ascending order"
                )
        if self.advance == "plateau":
            refuse_unread(self, "curriculum", ("requests",), "advance=plateau")
        elif self.stages:
            names, plateau = ("plateau_tolerance", "plateau_episodes"), "curriculum.advance=plateau"
            refuse_unread(self, "curriculum", names, f"advance={self.advance}", plateau)
        if self.requests and len(self.requests) != len(self.stages) - 1:
            raise InputError(
                f"curriculum.requests must have one number per stage but the last "
                f"({max(len(self.stages) - 1, 0)}), got {len(self.requests)}"
            )
        return self

    def unread(self) -> list[str]:
        """Returns the keys that differ from their defaults and have no effect."""
        names = ("advance", "plateau_tolerance", "plateau_episodes")
        return [] if self.stages else changed(self, names)


@dataclass
class LoggerConfig(Settings):
    """What is logged beside the CSV and TensorBoard files, which are always written."""

    group: ClassVar[str] = "logger"

    wandb: str = choice("disabled", "disabled", "offline", "online")
    project: str = "llmroute-gym"


@dataclass
class EvaluationConfig(Settings):
    """The comparison, in which every router serves the same requests."""

    group: ClassVar[str] = "evaluation"

    routers: list[str] = many("round_robin", "lor")
    """Beside the trained policy."""
    baseline: str | None = None
    """The router that the paired differences refer to; None means the first of ``routers``."""
    runs: int = number(20, at_least=2)
    """Independent workloads; the intervals come from how much they differ."""
    requests: int = number(500, at_least=1)
    """Per run."""
    seed: int = number(1_000_000, at_least=0)
    """Seeds the workloads, which are never those of the training."""
    engine: str = choice("compiled", *ENGINES)
    confidence: float = number(0.95, at_least=0.5, at_most=0.999)
    resamples: int = number(2000, at_least=1)
    """Of the bootstrap; whole runs are resampled."""


RUN_DIR = "runs/${now:%Y-%m-%d}/${now:%H-%M-%S}"


@dataclass
class TrainConfig(Settings):
    """All settings of ``python -m llmroute_gym.train``."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stabilization: StabilizationConfig = field(default_factory=StabilizationConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR
    """The one folder that everything is written to."""
    resume: str | None = None
    """The folder of a run that was interrupted; it goes on there with its own settings."""

    @property
    def qps(self) -> float:
        """The mean arrival rate in force, in requests per second."""
        return self.training.qps if self.workload.qps is None else self.workload.qps

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and the groups fit together."""
        super().validate(group)
        highest, kl = math.log(self.cluster.replicas), self.kl
        if kl.entropy_min_coef > 0 and kl.entropy_min > highest:
            raise InputError(
                f"kl.entropy_min must be at most ln {self.cluster.replicas} = {highest:.3g}, the "
                f"entropy of an even choice, got {kl.entropy_min:g}; lower it, or set "
                "kl.entropy_min_coef=0"
            )
        if sum(self.curriculum.requests) >= self.training.ppo_requests:
            raise InputError(
                f"curriculum.requests ({sum(self.curriculum.requests)} in all) leaves nothing of "
                f"training.ppo_requests ({self.training.ppo_requests}) for the last stage"
            )
        return self


@dataclass
class EvaluateConfig(EvaluationConfig):
    """All settings of ``python -m llmroute_gym.evaluate``."""

    group: ClassVar[str] = ""

    checkpoint: str | None = None
    """A ``model.zip`` or the run folder that holds it; compared under the name ``policy``."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    run_dir: str = RUN_DIR

    @property
    def qps(self) -> float:
        """The mean arrival rate in force, in requests per second."""
        return TrainingConfig.qps if self.workload.qps is None else self.workload.qps
