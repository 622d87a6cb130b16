"""All settings of each command: the groups that it reads, and its own."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from llmroute_gym.config import learning, simulation
from llmroute_gym.config.settings import (
    Settings,
    changed,
    check_distinct,
    choice,
    many,
    number,
)
from llmroute_gym.errors import InputError
from llmroute_gym.ground.rules import FILES, rule_texts, rule_title
from llmroute_gym.ground.signals import SIGNAL_NAMES, Signal

LARGEST_SEED = 2**32 - 1
"""Stable-Baselines3 seeds NumPy's old generator, which takes no more."""
RUN_DIR = "runs/${now:%Y-%m-%d}/${now:%H-%M-%S}"


@dataclass
class SLO(Settings):
    """What a request must achieve to count as goodput: all of the objectives that are given."""

    group: ClassVar[str] = "slo"

    ttft_s: float | None = number(None, above=0)
    """Longest time to first token, seconds."""
    tpot_s: float | None = number(None, above=0)
    """Longest time per output token after the first, seconds."""
    e2e_s: float | None = number(None, above=0)
    """Longest end-to-end latency, seconds."""

    def objectives(self) -> dict[str, float]:
        """Returns latency to limit, both as `Outcome` names and measures them."""
        given = {name: getattr(self, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
        return {name: limit for name, limit in given.items() if limit is not None}


@dataclass
class EvaluationConfig(Settings):
    """The comparison, in which every router serves the same requests."""

    group: ClassVar[str] = "evaluation"

    routers: list[Any] = many("round_robin", "lor")
    """Beside the trained policy; names, with options where wanted: ``lor_hybrid:a=0.7`` or
    ``{name: lor_hybrid, a: 0.7}``, or YAML files that hold such. Kept in the first way."""
    baseline: str | None = None
    """The router that the paired differences refer to; None means the first of ``routers``."""
    runs: int = number(20, at_least=2)
    """Independent workloads; the intervals come from how much they differ."""
    requests: int = number(500, at_least=1)
    """Per run."""
    seed: int = number(1_000_000, at_least=0)
    """Seeds the workloads, which are never those of the training."""
    engine: str = choice("compiled", *simulation.ENGINES)
    confidence: float = number(0.95, at_least=0.5, at_most=0.999)
    resamples: int = number(2000, at_least=1)
    """Of the bootstrap; whole runs are resampled."""
    slo: SLO = field(default_factory=SLO)
    """The objectives of goodput; none means that it is left out."""

    def __post_init__(self) -> None:
        """Words every router alike."""
        self.routers = rule_texts(self.routers)
        if self.baseline is not None and self.baseline.endswith(FILES):
            self.baseline = rule_title(self.baseline)


@dataclass
class TrainConfig(Settings):
    """All settings of ``python -m llmroute_gym.train``."""

    reward: simulation.RewardConfig = field(default_factory=simulation.RewardConfig)
    exploration: learning.ExplorationConfig = field(default_factory=learning.ExplorationConfig)
    kl: learning.KLConfig = field(default_factory=learning.KLConfig)
    temperature: learning.TemperatureConfig = field(default_factory=learning.TemperatureConfig)
    training: learning.TrainingConfig = field(default_factory=learning.TrainingConfig)
    cluster: simulation.ClusterConfig = field(default_factory=simulation.ClusterConfig)
    workload: simulation.WorkloadConfig = field(default_factory=simulation.WorkloadConfig)
    observation: simulation.ObservationConfig = field(default_factory=simulation.ObservationConfig)
    env: simulation.EnvConfig = field(default_factory=simulation.EnvConfig)
    model: learning.ModelConfig = field(default_factory=learning.ModelConfig)
    stabilization: learning.StabilizationConfig = field(
        default_factory=learning.StabilizationConfig
    )
    warm_start: learning.WarmStartConfig = field(default_factory=learning.WarmStartConfig)
    curriculum: learning.CurriculumConfig = field(default_factory=learning.CurriculumConfig)
    domains: learning.DomainsConfig = field(default_factory=learning.DomainsConfig)
    logger: learning.LoggerConfig = field(default_factory=learning.LoggerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    """Your own callbacks of Stable-Baselines3, after the package's: each ``_target_``, the class as
    ``module.Name``, and its arguments."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR
    """The one folder that everything is written to."""
    resume: str | None = None
    """The folder of a run that was interrupted; it goes on there with its own settings."""

    def at_rate(self, qps: float) -> Self:
        """Returns the settings in force once a trace that keeps its own rate has told it.

        Args:
            qps: of the source, requests per second.
        """
        if not self.workload.own_rate:
            return self
        return replace(self, training=replace(self.training, qps=qps))

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and the groups fit together."""
        super().validate(group)
        replicas, kl = self.cluster.n_replicas, self.kl
        highest = math.log(replicas)
        if kl.entropy_min_coef > 0 and kl.entropy_min > highest:
            raise InputError(
                f"kl.entropy_min must be at most ln {replicas} = {highest:.3g}, the "
                f"entropy of an even choice, got {kl.entropy_min:g}; lower it, or set "
                "kl.entropy_min_coef=0"
            )
        latency, sensitivity = SIGNAL_NAMES[Signal.E2E_S], self.temperature.latency_sensitivity
        if sensitivity > 0 and latency not in self.observation.columns:
            raise InputError(
                f"temperature.latency_sensitivity={sensitivity:g} needs {latency}, which "
                "observation.columns leaves out; add it, or set temperature.latency_sensitivity=0"
            )
        if self.workload.own_rate and self.curriculum.stages:
            raise InputError(
                f"curriculum.stages={self.curriculum.stages} would not be read with "
                "workload.own_rate=true; leave one of them out"
            )
        if sum(self.curriculum.requests) >= self.training.ppo_requests:
            raise InputError(
                f"curriculum.requests ({sum(self.curriculum.requests)} in all) leaves nothing of "
                f"training.ppo_requests ({self.training.ppo_requests}) for the last stage"
            )
        self._check_residual()
        for one in self.callbacks:
            if not isinstance(one.get("_target_"), str):
                raise InputError(
                    f"callbacks must each name a class, got {one}; give it as "
                    "{_target_: my_module.MyCallback}, with its arguments beside"
                )
        return self

    def _check_residual(self) -> None:
        """Checks what a policy that corrects a rule can be trained by, and what only it can."""
        if self.model.policy != "residual":
            for key in changed(self.domains, [one.name for one in fields(self.domains)]):
                raise InputError(
                    f"domains.{key}={getattr(self.domains, key)} would not be read with "
                    f"model.policy={self.model.policy}; choose model=residual or leave it out"
                )
            return
        if self.warm_start.cloning:
            raise InputError(
                "model.policy=residual starts as its rule and clones nothing, got "
                "warm_start.cloning=true; add warm_start=none"
            )
        if self.curriculum.stages:
            raise InputError(
                f"curriculum.stages={self.curriculum.stages} would not be read with "
                "model.policy=residual; name a scenario per load in domains.scenarios instead"
            )
        if self.env.num_envs < len(self.domains.scenarios):
            n = len(self.domains.scenarios)
            raise InputError(
                f"env.num_envs must be at least {n}, one for each of domains.scenarios, got "
                f"{self.env.num_envs}; a multiple of {n} trains on all alike"
            )


@dataclass
class CollectDemosConfig(Settings):
    """All settings of ``python -m llmroute_gym.collect_demos``."""

    policies: list[Any] = field(default_factory=lambda: learning.WarmStartConfig().policies)
    """The routers whose decisions are recorded."""
    decisions: int = number(learning.WarmStartConfig.decisions, at_least=1)
    """Per policy."""
    qps: float = number(learning.TrainingConfig.qps, above=0)
    """Mean arrival rate in requests per second; ``workload.qps`` follows it unless set."""
    loads: list[float] = many(0.6, 1.0, 1.4, 1.8, above=0)
    """Multiples of the arrival rate; the episodes take them in turn."""
    decisions_per_episode: int = number(50, at_least=1)
    """Recorded of each episode, spread over it: neighbours tell nearly the same."""
    disturbance: float = number(0.2, at_least=0, at_most=0.9)
    """Share of the requests that are placed at random in every second round of the loads, so
    that uneven states occur too; such decisions are not recorded."""
    burst: int = number(16, at_least=1)
    """Requests in a row that are placed at random."""
    gamma: float = number(learning.TrainingConfig.gamma, at_least=0, at_most=1)
    """Discount of the returns."""
    requests_per_episode: int = number(500, at_least=1)
    engine: str = choice("compiled", *simulation.ENGINES)
    workers: int = number(1, at_least=1)
    """Processes that share the episodes; what is written does not depend on it."""
    path: str | None = None
    """The Parquet file; None means ``demos.parquet`` in the run folder."""
    append: bool = False
    """Whether the decisions are added to those that the file already holds."""
    cluster: simulation.ClusterConfig = field(default_factory=simulation.ClusterConfig)
    workload: simulation.WorkloadConfig = field(default_factory=simulation.WorkloadConfig)
    observation: simulation.ObservationConfig = field(default_factory=simulation.ObservationConfig)
    reward: simulation.RewardConfig = field(default_factory=simulation.RewardConfig)
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR

    def __post_init__(self) -> None:
        """Words every router alike."""
        self.policies = rule_texts(self.policies)

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and no list is empty."""
        super().validate(group)
        for key, example in (("policies", "[round_robin,lor_hybrid]"), ("loads", "[1.0]")):
            if not getattr(self, key):
                raise InputError(f"{key} is empty; name at least one, such as {key}={example}")
        check_distinct("policies", self.policies)
        return self


@dataclass
class PretrainConfig(Settings):
    """All settings of ``python -m llmroute_gym.pretrain``."""

    demos: str | None = None
    """The Parquet file of ``collect_demos``, or the run folder that holds it."""
    cloning: learning.CloningConfig = field(default_factory=learning.CloningConfig)
    model: learning.ModelConfig = field(default_factory=learning.ModelConfig)
    observation: simulation.ObservationConfig = field(default_factory=simulation.ObservationConfig)
    training: learning.TrainingConfig = field(default_factory=learning.TrainingConfig)
    """The discount and PPO's settings, which the checkpoint carries."""
    reward: simulation.RewardConfig = field(default_factory=simulation.RewardConfig)
    cluster: simulation.ClusterConfig = field(default_factory=simulation.ClusterConfig)
    workload: simulation.WorkloadConfig = field(default_factory=simulation.WorkloadConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(routers=[]))
    """The comparison; without ``routers`` it is with those imitated."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    run_dir: str = RUN_DIR

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and the policy can learn by imitation."""
        super().validate(group)
        if self.model.policy == "residual":
            raise InputError(
                "model.policy=residual starts as a rule and imitates none; choose "
                "model=replica_set, or train it: python -m llmroute_gym.train +exp=frontier"
            )
        return self
