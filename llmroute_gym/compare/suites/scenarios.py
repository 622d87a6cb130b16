"""From the name of a scenario to the cluster, the requests and the disturbances of each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llmroute_gym.compare.requests import workload_of
from llmroute_gym.compare.suites.bisection import capacity_of
from llmroute_gym.config import EvaluationConfig, ScenarioConfig, StragglerConfig
from llmroute_gym.errors import InputError, checked_name, shown, unknown_name
from llmroute_gym.runs.command import config_dir
from llmroute_gym.sim import Cluster, Replica, Workload
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.sim.fetch import PUBLIC_TRACES
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.sim.submission import fitting

SUFFIXES = (".csv", ".jsonl")
"""Of traces that are kept under their own name."""


KEYS = tuple(one.name for one in fields(ScenarioConfig) if one.name != "name")
"""What may differ from a scenario's file."""
AS = "as"
"""The key of a scenario that differs from its file: what it is called then."""


def read_scenario(given: str | Mapping[str, Any]) -> ScenarioConfig:
    """Reads a scenario's file.

    Args:
        given: the name of one in ``conf/scenario/``, a path, or a mapping with such a ``name`` and
            what differs from the file.

    Raises:
        InputError: there is no such file, or it holds no scenario.
    """
    changes: dict[str, Any] = {}
    name: object = given
    if isinstance(given, Mapping):
        changes = {str(key): value for key, value in given.items() if key != "name"}
        name = given.get("name")
    if not isinstance(name, str):
        raise InputError(
            f"a scenario is a name, a path or a mapping with a name, got {shown(given)}"
        )
    for key in changes:
        checked_name(f"key of the scenario {name}:", key, [*KEYS, AS])
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        folder = config_dir() / "scenario"
        file = folder / f"{name}.yaml"
        if not file.is_file():
            raise unknown_name("scenario", name, [one.stem for one in folder.glob("*.yaml")])
    try:
        layers = [OmegaConf.structured(ScenarioConfig), OmegaConf.load(file), changes]
        merged = OmegaConf.merge(*layers, {"name": changes.pop(AS, file.stem)})
        scenario = cast(ScenarioConfig, OmegaConf.to_object(merged))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise InputError(
            f"{file} holds no scenario ({reason}); see the files in conf/scenario/"
        ) from error
    return scenario.validate()


def trace_file(name: str, folder: str | Path) -> Path:
    """Returns the file of a public trace.

    Args:
        name: as ``python -m llmroute_gym.fetch`` has it.
        folder: where it was downloaded to.

    Raises:
        InputError: no public trace has this name, or it is not there.
    """
    if name not in PUBLIC_TRACES:
        raise unknown_name("trace", name, PUBLIC_TRACES)
    places = [Path(folder) / PUBLIC_TRACES[name].file_name]
    places += [Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"the trace {name} is not in {folder}; download it with python -m llmroute_gym.fetch "
        f"{name} --out {folder}, or name its folder with traces=FOLDER"
    )


@dataclass(frozen=True)
class Rate:
    """How many requests arrive, and how many the cluster can serve, per second."""

    qps: float
    capacity_rps: float | None


def settled(scenario: ScenarioConfig, traces: str | Path) -> tuple[ScenarioConfig, Rate]:
    """Returns a scenario whose trace is a path and whose rate is a number, as cells take it.

    Args:
        scenario: as read.
        traces: folder with the public traces.

    Raises:
        InputError: its trace is absent, or its capacity cannot be found.
    """
    workload, capacity = scenario.workload, None
    if scenario.trace is not None:
        workload = replace(workload, path=str(trace_file(scenario.trace, traces)))
    if scenario.load is not None:
        capacity = capacity_of(scenario.cluster, workload)
        workload = replace(workload, qps=float(f"{scenario.load * capacity:.4g}"))
    qps = workload.qps
    if qps is None:
        qps = build_source(workload, 1.0).qps
    return replace(scenario, workload=workload, load=None, trace=None), Rate(qps, capacity)


@dataclass(frozen=True, eq=False)
class BuiltScenario:
    """A scenario that runs can be drawn from.

    Attributes:
        scenario: settled.
        cluster: the replicas, undisturbed and in their order.
        source: what the requests are drawn from.
    """

    scenario: ScenarioConfig
    cluster: Cluster
    source: WorkloadSource

    @classmethod
    def of(cls, scenario: ScenarioConfig) -> "BuiltScenario":
        """Builds a settled scenario.

        Raises:
            InputError: a setting is wrong, or the trace cannot be read.
        """
        cluster = build_cluster(scenario.cluster)
        return cls(scenario, cluster, build_source(scenario.workload, scenario.workload.rate(1.0)))

    def check(self, evaluation: EvaluationConfig) -> None:
        """Checks that the trace is long enough and that the first run's requests fit.

        Raises:
            InputError: naming what does not.
        """
        key = f"scenario {self.scenario.name}: requests"
        check_trace_length(self.source, {key: evaluation.requests})
        fitting(self.workload(0, evaluation), self.cluster)

    def workload(self, run: int, evaluation: EvaluationConfig) -> Workload:
        """Draws the requests of a run."""
        return workload_of(run, self.source, evaluation)

    def replicas(self, run: int, evaluation: EvaluationConfig, until_s: float) -> Cluster:
        """Draws the order of the replicas in a run, and which of them are slow when.

        Args:
            run: its number.
            evaluation: the seed.
            until_s: slow times begin until then.
        """
        rng = np.random.default_rng([evaluation.seed, run, 4])
        replicas = list(self.cluster)
        if self.scenario.permute:
            replicas = [replicas[place] for place in rng.permutation(len(replicas))]
        return disturbed(replicas, self.scenario, until_s, rng)


def disturbed(
    replicas: Sequence[Replica], scenario: ScenarioConfig, until_s: float, rng: np.random.Generator
) -> Cluster:
    """Draws how fast replicas are in a run of a scenario, and which of them are slow when.

    Args:
        replicas: in their order.
        scenario: settled.
        until_s: slow times begin until then.
        rng: all randomness.
    """
    found = list(replicas)
    if scenario.speed_spread > 1:
        factors = scenario.speed_spread ** rng.uniform(-1, 1, len(found))
        speeds = factors * [replica.speed for replica in found]
        speeds *= sum(replica.speed for replica in found) / speeds.sum()
        found = [
            replace(one, speed=speed) for one, speed in zip(found, speeds.tolist(), strict=True)
        ]
    stragglers = scenario.stragglers
    if stragglers.replicas:
        for place in rng.permutation(len(found))[: stragglers.replicas]:
            slow = _slow_times(stragglers, float(rng.random()), until_s)
            found[place] = replace(found[place], slowdowns=slow)
    return Cluster(tuple(found))


def slow_until_s(workload: Workload) -> float:
    """Returns until when slow times begin: where queues have grown, as long as they may last."""
    return 10 * float(workload.arrived_at_s.max()) + 1


def _slow_times(
    stragglers: StragglerConfig, phase: float, until_s: float
) -> tuple[tuple[float, float], ...]:
    """Returns pairs of start in seconds and factor, by rising start."""
    pairs: list[tuple[float, float]] = []
    begin = (phase - 1) * stragglers.every_s
    while begin < until_s:
        end = begin + min(stragglers.slow_s, stragglers.every_s)
        if end > 0:
            pairs += [(max(begin, 0.0), stragglers.factor), (end, 1.0)]
        begin += stragglers.every_s
    return tuple(pairs)


@lru_cache(maxsize=2)
def built_scenario(key: str) -> BuiltScenario:
    """Builds a settled scenario, given as `scenario_text`; the last ones are kept."""
    merged = OmegaConf.merge(OmegaConf.structured(ScenarioConfig), OmegaConf.create(key))
    return BuiltScenario.of(cast(ScenarioConfig, OmegaConf.to_object(merged)))


def scenario_text(scenario: ScenarioConfig) -> str:
    """Returns a scenario as one text."""
    return OmegaConf.to_yaml(OmegaConf.structured(scenario))
