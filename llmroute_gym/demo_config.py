"""The settings of the warm start's two commands, registered as `llmroute_gym.config`'s are."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

from llmroute_gym.config import (
    ENGINES,
    LARGEST_SEED,
    RUN_DIR,
    ClusterConfig,
    EnvConfig,
    EvaluationConfig,
    ModelConfig,
    ObservationConfig,
    RewardConfig,
    Settings,
    TrainingConfig,
    WarmStartConfig,
    WorkloadConfig,
    check_distinct,
    choice,
    many,
    number,
)
from llmroute_gym.errors import InputError


@dataclass
class CollectDemosConfig(Settings):
    """All settings of ``python -m llmroute_gym.collect_demos``."""

    policies: list[str] = field(default_factory=lambda: WarmStartConfig().policies)
    """The routers whose decisions are recorded."""
    decisions: int = number(WarmStartConfig.decisions, at_least=1)
    """Per policy."""
    qps: float = number(TrainingConfig.qps, above=0)
    """Mean arrival rate in requests per second; ``workload.qps`` follows it unless set."""
    loads: list[float] = many(0.6, 1.0, 1.4, 1.8, above=0)  # noqa: RUF009
    """Multiples of the arrival rate; the episodes take them in turn."""
    decisions_per_episode: int = number(50, at_least=1)
    """Recorded of each episode, spread over it: neighbours tell nearly the same."""
    disturbance: float = number(0.2, at_least=0, at_most=0.9)
    """Share of the requests that are placed at random in every second round of the loads, so
    that uneven states occur too; such decisions are not recorded."""
    burst: int = number(16, at_least=1)
    """Requests in a row that are placed at random."""
    gamma: float = number(TrainingConfig.gamma, at_least=0, at_most=1)
    """Discount of the returns."""
    requests_per_episode: int = number(EnvConfig.requests_per_episode, at_least=1)
    engine: str = choice("compiled", *ENGINES)
    workers: int = number(1, at_least=1)
    """Processes that share the episodes; what is written does not depend on it."""
    path: str | None = None
    """The Parquet file; None means ``demos.parquet`` in the run folder."""
    append: bool = False
    """Whether the decisions are added to those that the file already holds."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR

    @property
    def rate(self) -> float:
        """The mean arrival rate in force, in requests per second."""
        return self.qps if self.workload.qps is None else self.workload.qps

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and no list is empty."""
        super().validate(group)
        for key, example in (("policies", "[round_robin,lor_hybrid]"), ("loads", "[1.0]")):
            if not getattr(self, key):
                raise InputError(f"{key} is empty; name at least one, such as {key}={example}")
        check_distinct("policies", self.policies)
        return self


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
    """Whether every router's decisions weigh the same in all."""


@dataclass
class PretrainConfig(Settings):
    """All settings of ``python -m llmroute_gym.pretrain``."""

    demos: str | None = None
    """The Parquet file of ``collect_demos``, or the run folder that holds it."""
    cloning: CloningConfig = field(default_factory=CloningConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The discount and PPO's settings, which the checkpoint carries."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(routers=[]))
    """The comparison; without ``routers`` it is with those imitated."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR

    @property
    def qps(self) -> float:
        """The mean arrival rate of the comparison, in requests per second."""
        return self.training.qps if self.workload.qps is None else self.workload.qps
