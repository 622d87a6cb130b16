"""What candidates are measured on: pools of requests, each with a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import numpy as np

from llmroute_gym.compare.capacity import estimated_capacity
from llmroute_gym.compare.suites.scenarios import (
    BuiltScenario,
    disturbed,
    read_scenario,
    settled,
    slow_until_s,
)
from llmroute_gym.config import (
    ClusterConfig,
    ObservationConfig,
    ScenarioConfig,
    SearchConfig,
    TrainingConfig,
    refuse_unread,
)
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.sim.submission import fitting


@dataclass(frozen=True)
class Pool:
    """One scenario.

    Attributes:
        title: for people.
        cluster: the replicas; every workload meets them in another order, so that no constant is
            fitted to which of them comes first.
        source: what the requests are drawn from, at its rate.
        observation: what a router is told that does not ask for anything itself.
        scenario: how replicas differ from run to run, what a router is told whatever it asks for,
            and how long a run is if that is no matter of the search.
    """

    title: str
    cluster: Cluster
    source: WorkloadSource
    observation: ObservationConfig
    scenario: ScenarioConfig = field(default_factory=ScenarioConfig)

    def draw(self, n_requests: int, rng: np.random.Generator) -> tuple[Workload, Cluster]:
        """Draws a workload and the replicas that serve it.

        Raises:
            InputError: a request can run on no replica.
        """
        order = rng.permutation(len(self.cluster))
        workload = self.source.sample(self.scenario.requests or n_requests, rng)
        replicas = [self.cluster[replica] for replica in order.tolist()]
        cluster = disturbed(replicas, self.scenario, slow_until_s(workload), rng)
        fitting(workload, cluster)
        return workload, cluster


def pools_of(settings: SearchConfig) -> list[Pool]:
    """Returns the scenarios that the settings name, or else describe: every cluster at every load.

    Raises:
        InputError: a scenario, a cluster or the workload is wrong, or the settings contradict each
            other.
    """
    search, workload = settings.search, settings.workload
    if search.scenarios:
        refuse_unread(search, "search", ["loads", "speeds", "replicas"], "scenarios")
        named = (settings.observation, settings.traces, search.requests)
        return [named_pool(one, *named) for one in search.scenarios]
    source = build_source(workload, workload.rate(TrainingConfig.qps))
    check_trace_length(source, {"search.requests": search.requests})
    if search.loads and (workload.own_rate or workload.qps is not None):
        given = "own_rate=true" if workload.own_rate else f"qps={workload.qps:g}"
        raise InputError(
            f"workload.{given} would not be read with search.loads={search.loads}; leave one of "
            "them out"
        )
    pools = []
    for config in _clusters(settings):
        cluster = build_cluster(config)
        rates: Sequence[float] = [source.qps]
        if search.loads:
            capacity = estimated_capacity(cluster, source)
            rates = [load * capacity for load in search.loads]
        for rate in rates:
            at_rate = source.with_qps(rate) if search.loads else source
            title = f"{rate:.3g} requests/s to {config.title()}"
            pools.append(Pool(title, cluster, at_rate, settings.observation))
    return pools


def named_pool(
    given: str | Mapping[str, Any], observation: ObservationConfig, traces: str, requests: int
) -> Pool:
    """Returns a scenario by its name; its capacity is found by bisection and remembered.

    Args:
        given: as `read_scenario` takes it.
        observation: what a router is told that does not ask for anything itself.
        traces: folder with the public traces.
        requests: of a run, where the scenario does not say it.

    Raises:
        InputError: there is no such scenario, or it is wrong.
    """
    scenario, rate = settled(read_scenario(given), traces)
    built = BuiltScenario.of(scenario)
    requests = scenario.requests or requests
    check_trace_length(built.source, {f"scenario {scenario.name}: requests": requests})
    title = f"{scenario.name}, {rate.qps:.3g} requests/s to {scenario.cluster.title()}"
    return Pool(title, built.cluster, built.source, observation, scenario)


def _clusters(settings: SearchConfig) -> list[ClusterConfig]:
    search, cluster = settings.search, settings.cluster
    if cluster.groups and (search.replicas or search.speeds):
        raise InputError(
            "cluster.groups fix replicas and speeds; leave search.replicas and search.speeds out, "
            "or describe the cluster without groups"
        )
    found = []
    for speeds in search.speeds or [cluster.speeds]:
        for replicas in search.replicas or [len(speeds) or cluster.n_replicas]:
            fitted = list(islice(cycle(speeds), replicas))
            found.append(replace(cluster, replicas=replicas, speeds=fitted))
    return [cluster] if cluster.groups else [one.validate() for one in found]
