"""Settings of the search for the constants of a rule."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from llmroute_gym.config import simulation
from llmroute_gym.config.commands import LARGEST_SEED, RUN_DIR
from llmroute_gym.config.settings import Settings, many, number, with_short
from llmroute_gym.errors import InputError, shown, unknown_name
from llmroute_gym.ground.metrics import LATENCIES, METRICS
from llmroute_gym.ground.rules import rule_text

TAIL = {
    **{f"e2e_{percentile}_s": 0.25 for percentile in ("p975", "p985", "p99", "p994")},
    "e2e_mean_s": 0.15,
    "ttft_p99_s": 0.08,
}
"""What the metric ``tail`` weighs: neighbouring percentiles are less noisy than one of them."""
FURTHER = re.compile(rf"({'|'.join(LATENCIES)})_p(\d\d\d+)_s")
"""Percentiles beyond those of the metric table: ``e2e_p975_s`` is the 97.5th."""


@dataclass
class SearchingConfig(Settings):
    """Which constants are searched, by what, and on how much."""

    group: ClassVar[str] = "search"

    router: Any | None = None
    """A rule that has constants; those given with it, as in ``lor_hybrid:a=0.7``, are where the
    search starts."""
    constants: list[str] = field(default_factory=list)
    """Those that are searched; empty means all. The others stay where the search starts."""
    metric: Any = "e2e_p99_s"
    """What shall be low: the key of a latency's metric; a mapping of such keys to weights; or
    ``tail``, a weighted tail of the end-to-end latency with a little of mean and TTFT."""
    budget: int = number(200, at_least=3)
    """Candidates that are measured, the rule as it starts among them."""
    population: int | None = number(None, at_least=4)
    """Candidates of a generation; None means 4 + 3 ln(constants), at least 8."""
    sigma: float = number(0.25, above=0, at_most=1)
    """How far the first generation spreads, as a share of each constant's range."""
    runs: int = number(4, at_least=1)
    """Workloads per candidate, and per scenario."""
    requests: int = number(1000, at_least=1)
    """Per workload."""
    fresh: bool = True
    """Whether every generation gets new workloads, common to its candidates; else all get the
    same."""
    loads: list[float] = many(above=0)
    """Arrival rates as shares of the cluster's capacity; each makes scenarios of its own. Empty
    means the workload's rate."""
    speeds: list[Any] = field(default_factory=list)
    """Lists of one speed per replica; each makes scenarios of its own, and every workload meets
    them in another order."""
    replicas: list[int] = many(at_least=1)
    """Numbers of replicas; each makes scenarios of its own. Speeds are repeated or cut to fit."""
    scenarios: list[Any] = many()
    """Scenarios to search on in place of `cluster`, `workload`, `loads`, `speeds` and `replicas`:
    names of files in ``conf/scenario/``, paths, or mappings with such a ``name`` and what differs
    from it: ``{name: equal_70, load: 0.6}``. How many runs there are stands in `runs`."""
    ttft_p99_at_most: float | None = number(None, above=0)
    """Most that a candidate's P99 of the time to first token may be in any scenario, as a multiple
    of that of ``ttft_p99_of``; None sets no limit."""
    ttft_p99_of: Any = "lor"
    finalists: int = number(5, at_least=1)
    """Of the candidates, the best that meet on common workloads which none was bred on."""
    final_runs: int = number(20, at_least=2)
    """Workloads of that last round, per scenario."""
    workers: int | None = number(None, at_least=1)
    """Processes; None means one per core. What is found does not depend on it."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)

    def __post_init__(self) -> None:
        """Words the routers as settings do."""
        self.router = None if self.router is None else rule_text(self.router)
        self.ttft_p99_of = rule_text(self.ttft_p99_of)

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and the metric is one."""
        super().validate(group)
        prefix = self.group if group is None else group
        self.weights(f"{prefix}.metric" if prefix else "metric")
        for index, speeds in enumerate(self.speeds):
            good = isinstance(speeds, list | tuple) and speeds
            if not good or not all(isinstance(one, int | float) and one > 0 for one in speeds):
                raise InputError(
                    f"{self.group}.speeds[{index}] must be a list of numbers > 0, got "
                    f"{shown(speeds)}; an example is {self.group}.speeds=[[1,1,1,1],[2,1,1,0.5]]"
                )
        return self

    def weights(self, key: str = "search.metric") -> dict[str, float]:
        """Returns the metrics that count, each with its weight; they sum to 1.

        Args:
            key: how an error calls the setting.

        Raises:
            InputError: one is no metric of a latency, or a weight is no number > 0.
        """
        given = TAIL if self.metric == "tail" else self.metric
        if not isinstance(given, Mapping):
            given = {given: 1.0}
        if not given:
            raise InputError(f"{key} weighs nothing; name a metric, such as {key}=e2e_p99_s")
        for name, weight in given.items():
            known = name in METRICS and METRICS[name].latency
            if not known and not FURTHER.fullmatch(str(name)):
                latencies = (one for one, metric in METRICS.items() if metric.latency)
                raise unknown_name(key, name, ["tail", *latencies])
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
                raise InputError(f"{key}.{name} must be a weight > 0, got {shown(weight)}")
        total = sum(given.values())
        return {str(name): weight / total for name, weight in given.items()}


@dataclass
class SearchConfig(Settings):
    """All settings of ``python -m llmroute_gym.search``.

    The group ``search`` may be left out of the keys below: ``budget=50`` is ``search.budget=50``.

    Raises:
        InputError: what is given so is out of range, or given both ways with different values.
    """

    short: ClassVar[dict[str, str]] = {
        name: f"search.{name}"
        for name in (
            *("router", "metric", "budget", "population", "sigma", "runs", "requests"),
            *("loads", "speeds", "workers", "seed"),
        )
    }

    search: SearchingConfig = field(default_factory=SearchingConfig)
    cluster: simulation.ClusterConfig = field(default_factory=simulation.ClusterConfig)
    workload: simulation.WorkloadConfig = field(default_factory=simulation.WorkloadConfig)
    observation: simulation.ObservationConfig = field(default_factory=simulation.ObservationConfig)
    traces: str = "."
    """Folder with the public traces that scenarios replay."""
    run_dir: str = RUN_DIR
    resume: str | None = None
    """The folder of a search that was interrupted; it goes on there with its own settings."""
    router: Any | None = None
    metric: Any | None = None
    budget: int | None = None
    population: int | None = None
    sigma: float | None = None
    runs: int | None = None
    requests: int | None = None
    loads: list[float] | None = None
    speeds: list[Any] | None = None
    workers: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Moves what was given without the group into it."""
        self.search = with_short(self, self.search)
