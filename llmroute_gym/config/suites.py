"""Settings of scenarios, and of suites of them."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from llmroute_gym.config.commands import SLO, EvaluationConfig
from llmroute_gym.config.settings import Settings, check_distinct, many, number
from llmroute_gym.config.simulation import ClusterConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.rules import rule_texts


@dataclass
class StragglerConfig(Settings):
    """Replicas that are slow now and then, which nobody is told.

    Which ones, and when first, is drawn for each run.
    """

    group: ClassVar[str] = "stragglers"

    replicas: int = number(0, at_least=0)
    """How many of the cluster's are slow now and then."""
    factor: float = number(3.0, above=0)
    """Batches of a slow replica take so many times as long."""
    slow_s: float = number(60.0, above=0)
    """Seconds that it lasts."""
    every_s: float = number(600.0, above=0)
    """Seconds from one beginning to the next."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and a slow time ends before the next."""
        super().validate(group)
        if self.slow_s >= self.every_s:
            raise InputError(
                f"{group or self.group}.slow_s must be < every_s ({self.every_s:g}), got "
                f"{self.slow_s:g}; a replica that is always slow is one of another speed"
            )
        return self


@dataclass
class ScenarioConfig(Settings):
    """What the routers of a comparison face: replicas, requests, load, view and disturbances."""

    group: ClassVar[str] = "scenario"

    name: str = ""
    """That of its file, without the suffix."""
    title: str = ""
    """What is special about it, for people."""
    section: str = ""
    """Heading under which it is shown."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    load: float | None = number(None, above=0)
    """Mean arrival rate as a share of the cluster's capacity; in place of ``workload.qps``."""
    trace: str | None = None
    """A public trace that is replayed, as ``python -m llmroute_gym.fetch`` names it; in place of
    ``workload.path``."""
    view: dict[str, Any] = field(default_factory=dict)
    """Keys of the group ``observation`` that hold for every router, whatever it asks for."""
    stragglers: StragglerConfig = field(default_factory=StragglerConfig)
    permute: bool = False
    """Whether the replicas stand in another order in each run, so that no rule gains by their
    numbers."""
    speed_spread: float = number(1.0, at_least=1)
    """Most by which speeds, drawn for each run, are above or below those of the cluster, log-
    uniformly; they then sum to the same, so that the capacity stays about what it was."""
    runs: int | None = number(None, at_least=2)
    """In place of the suite's, as a trace may need."""
    requests: int | None = number(None, at_least=1)
    """Per run, in place of the suite's."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and the rate is given once."""
        prefix = group or f"scenario {self.name}"
        for key in self.view:
            checked_name(f"key of {prefix}.view:", key, [one.name for one in fields(VIEW)])
        replace(VIEW, **self.view).validate(f"{prefix}.view")
        if self.trace is not None and self.workload.source != "trace":
            raise InputError(
                f"{prefix}.trace={self.trace} would not be read with "
                f"workload.source={self.workload.source}; set workload.source=trace"
            )
        if (self.load is None) == (self.workload.qps is None and not self.workload.own_rate):
            raise InputError(f"{prefix} needs either load or workload.qps, and one of them only")
        if self.stragglers.replicas > self.cluster.n_replicas:
            raise InputError(
                f"{prefix}.stragglers.replicas must be at most {self.cluster.n_replicas}, the "
                f"cluster's, got {self.stragglers.replicas}"
            )
        workload = self.workload
        if self.trace is not None:
            workload = replace(workload, path=self.trace)
        checked = replace(self, trace=None, workload=workload)
        super(ScenarioConfig, checked).validate(prefix)
        return self


VIEW = ObservationConfig()
"""Names the keys that a view may have."""


@dataclass
class SuiteConfig(Settings):
    """Scenarios times routers times runs."""

    group: ClassVar[str] = "suite"

    name: str = "suite"
    scenarios: list[Any] = many()
    """Names of files in ``conf/scenario/``, paths of files of one's own, or mappings with such a
    ``name`` and what differs from it: ``{name: equal_70, load: 0.6}``."""
    routers: list[Any] = many("round_robin", "lor")
    """Rules as ``evaluation.routers`` has them, and checkpoints: paths that end in ``.zip``."""
    baseline: str = "round_robin"
    """The router that ratios refer to."""
    runs: int = number(20, at_least=2)
    """Independent runs of each scenario, common to all routers."""
    requests: int = number(EvaluationConfig.requests, at_least=1)
    """Per run."""
    block: int = number(20, at_least=1)
    """Runs that one cell serves; what is found does not depend on it."""
    seed: int = number(EvaluationConfig.seed, at_least=0)
    confidence: float = number(EvaluationConfig.confidence, at_least=0.5, at_most=0.999)
    resamples: int = number(EvaluationConfig.resamples, at_least=1)
    slo: SLO = field(default_factory=SLO)
    leave_out: bool = False
    """Whether a scenario whose trace is absent is left out, and said so; else it is an error."""
    date: str = ""
    """Of the results, as YYYY-MM-DD; empty means today."""

    def __post_init__(self) -> None:
        """Words every router alike."""
        self.routers = rule_texts(self.routers)

    def evaluation(self, scenario: ScenarioConfig) -> EvaluationConfig:
        """Returns the settings of the comparison of one scenario."""
        return EvaluationConfig(
            routers=list(self.routers),
            baseline=self.baseline,
            runs=scenario.runs or self.runs,
            requests=scenario.requests or self.requests,
            seed=self.seed,
            confidence=self.confidence,
            resamples=self.resamples,
            slo=self.slo,
        )

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and no list is empty."""
        super().validate(group)
        for key, example in (("scenarios", "[equal_70]"), ("routers", "[round_robin,lor]")):
            if not getattr(self, key):
                raise InputError(
                    f"suite.{key} is empty; name at least one, such as suite.{key}={example}"
                )
        check_distinct("suite.routers", self.routers)
        return self
