"""Settings of how a policy is learned."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

from llmroute_gym.config.settings import (
    Settings,
    changed,
    check_distinct,
    choice,
    many,
    number,
    refuse_unread,
)
from llmroute_gym.errors import InputError
from llmroute_gym.ground.rules import rule_text, rule_texts

LOG_STEP_REQUESTS = 8
"""Requests that a gradient step of the tuning log stands for, which takes minibatches of 64 and
learns from each rollout in 8 epochs. Its schedules, counted in such steps, last for as many
requests with batches of any size."""
KEPT = ("better", "all")
"""Which demonstrated decisions can be chosen to be learned."""


@dataclass
class ExplorationConfig(Settings):
    """The entropy bonus."""

    group: ClassVar[str] = "exploration"

    entropy_coef: float = number(0.05, at_least=0)
    entropy_warmup_coef: float = number(0.02, at_least=0)
    """Added to ``entropy_coef`` at the start; falls linearly to 0 over ``warmup_steps``."""
    warmup_steps: int = number(1000, at_least=1)
    """In gradient steps of the tuning log, see `LOG_STEP_REQUESTS`."""


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
    """Weight of KL(policy, reference) at the first gradient step; the reference is what the warm
    start has taught, and without one there is none."""
    kl_ref_coef_final: float = number(0.0, at_least=0)
    kl_ref_decay_steps: int = number(5000, at_least=1)
    """In gradient steps of the tuning log, see `LOG_STEP_REQUESTS`."""


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
    epochs: int = number(4, at_least=1)
    rollout_steps: int = number(16, at_least=1)
    """Decisions per environment between two updates."""
    minibatch_size: int = number(1024, at_least=2)
    learning_rate: float = number(3e-4, above=0)
    value_coef: float = number(0.5, at_least=0)
    max_grad_norm: float = number(1.0, above=0)
    torch_threads: int = number(1, at_least=1)
    """Networks of this size learn fastest on one thread."""
    advantages: str = choice("minibatch", "minibatch", "environment")
    """Over what advantages are normalised: each ``minibatch``, as PPO does, or all of a rollout
    that is of one ``environment``, where these differ so much that few would count else."""


@dataclass
class ModelConfig(Settings):
    """The policy's networks; actor and critic share nothing."""

    group: ClassVar[str] = "model"

    policy: str = choice("replica_set", "mlp", "replica_set", "residual")
    """``mlp`` reads all rows as one vector; ``replica_set`` shares its weights over the replicas,
    does not know their order and serves any number of them; ``residual`` is such a one that is
    added to the scores of a rule, and starts as that rule."""
    actor_sizes: list[int] = many(64, 64, at_least=1)
    critic_sizes: list[int] = many(64, 64, at_least=1)
    activation: str = choice("tanh", "tanh", "relu")
    rule: Any | None = None
    """What ``residual`` corrects: a rule that estimates latencies, with options where wanted."""
    inverse_temperature: float = number(6.0, above=0)
    """What the rule's scores are multiplied by to be the logits that ``residual`` starts with."""

    def __post_init__(self) -> None:
        """Words the rule as settings do, one that a file holds with all its constants."""
        self.rule = None if self.rule is None else rule_text(self.rule)

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and a replica set has layers."""
        super().validate(group)
        for name in ("actor_sizes", "critic_sizes"):
            if self.policy != "mlp" and not getattr(self, name):
                raise InputError(
                    f"model.{name} must have at least one layer with model.policy={self.policy}, "
                    f"got []; name its size, such as model.{name}=[64], or choose model=mlp"
                )
        if self.policy == "residual" and self.rule is None:
            raise InputError(
                "model.policy=residual corrects a rule; name it, such as "
                "model.rule=estimated_latency"
            )
        if self.policy != "residual":
            names, because = ("rule", "inverse_temperature"), f"policy={self.policy}"
            refuse_unread(self, "model", names, because, "model=residual")
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
    trusted: bool = False
    """Whether the checkpoint may be unpickled, which may run any code in it, where it holds a
    policy of no kind that this package knows."""
    demos: str | None = None
    """A file of ``collect_demos``, or the run folder that holds it; None collects them anew."""
    cloning: bool = True
    """Whether demonstrations are cloned before PPO, and after the checkpoint if there is one."""
    epochs: int = number(30, at_least=1)
    policies: list[Any] = many("round_robin", "lor_hybrid")
    """The routers that demonstrate, at ``training.qps`` and loads around it."""
    decisions: int = number(700, at_least=1)
    """Per demonstration policy."""
    keep: str = choice("better", *KEPT)
    """As ``cloning.keep`` of ``pretrain``."""

    def __post_init__(self) -> None:
        """Words every router alike."""
        self.policies = rule_texts(self.policies)

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
class DomainsConfig(Settings):
    """Scenarios that a policy which corrects a rule is trained on at once, and is kept by."""

    group: ClassVar[str] = "domains"

    scenarios: list[Any] = many()
    """In place of ``cluster``, ``workload`` and ``training.qps``: names of files in
    ``conf/scenario/``, paths, or mappings with such a ``name`` and what differs from it. The i-th
    environment draws all its episodes, replicas included, from the i-th, and so on in turns."""
    spread: float = number(0.0, at_least=0, at_most=0.9)
    """Episodes last from (1 - spread) to (1 + spread) times ``env.requests_per_episode``, so that
    they do not all end together."""
    late_after: float | None = number(None, above=0)
    """``reward.latency_threshold`` of each scenario, as a multiple of the rule's mean latency
    there; None means that of the settings."""
    kept_by: list[Any] = many()
    """Scenarios by whose tail the best weights are kept; empty keeps the last ones."""
    kept_every: int = number(5, at_least=1)
    """Rollouts between two looks at them."""
    kept_runs: int = number(8, at_least=2)
    """Of each, that are served then."""
    kept_requests: int = number(1000, at_least=1)
    """Per run."""
    ttft_p99_at_most: float | None = number(1.1, above=0)
    """Most that the P99 of the time to first token may be there, as a multiple of that of ``lor``,
    before weights that exceed it fall behind; None sets no limit."""
    traces: str = "."
    """Folder with the public traces that scenarios replay."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and will be read."""
        super().validate(group)
        if not self.kept_by:
            names = ("kept_every", "kept_runs", "kept_requests", "ttft_p99_at_most")
            refuse_unread(self, "domains", names, "kept_by=[]")
        return self


@dataclass
class LoggerConfig(Settings):
    """What is logged beside the CSV and TensorBoard files, which are always written."""

    group: ClassVar[str] = "logger"

    wandb: str = choice("disabled", "disabled", "offline", "online")
    project: str = "llmroute-gym"


@dataclass
class CloningConfig(Settings):
    """How demonstrations are learned."""

    group: ClassVar[str] = "cloning"

    epochs: int = number(WarmStartConfig.epochs, at_least=1)
    """Passes over the training decisions at the most."""
    patience: int = number(10, at_least=1)
    """Epochs without a better validation loss after which learning stops."""
    learning_rate: float = number(3e-3, above=0)
    """The actor's at the start; falls to 0 along half a cosine over ``epochs``."""
    value_learning_rate: float = number(1e-3, above=0)
    """The same of the value head."""
    minibatch_size: int = number(32, at_least=1)
    max_grad_norm: float = number(1.0, above=0)
    validation_share: float = number(0.2, above=0, at_most=0.9)
    """Of the episodes; no decision of them is learned from."""
    label_smoothing: float = number(0.0, at_least=0, at_most=0.9)
    """Share of a label's weight that goes to all allowed replicas alike."""
    class_balance: bool = False
    """Whether every replica's decisions weigh the same in all."""
    router_balance: bool = True
    """Whether every router's decisions weigh the same in all, before some are left out."""
    keep: str = choice("all", *KEPT)
    """Which decisions are learned: ``all``, or of several routers' decisions on the same request
    those whose return is no worse than their mean (``better``)."""
