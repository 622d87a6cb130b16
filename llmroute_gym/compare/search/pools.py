"""What candidates are measured on: pools of requests, each with a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np

from llmroute_gym.compare.capacity import estimated_capacity
from llmroute_gym.config import ClusterConfig, ObservationConfig, SearchConfig, TrainingConfig
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
    """

    title: str
    cluster: Cluster
    source: WorkloadSource
    observation: ObservationConfig

    def draw(self, n_requests: int, rng: np.random.Generator) -> tuple[Workload, Cluster]:
        """Draws a workload and the order of the replicas that serve it.

        Raises:
            InputError: a request can run on no replica.
        """
        order = rng.permutation(len(self.cluster))
        workload = self.source.sample(n_requests, rng)
        cluster = Cluster(tuple(self.cluster[replica] for replica in order.tolist()))
        fitting(workload, cluster)
        return workload, cluster


def pools_of(settings: SearchConfig) -> list[Pool]:
    """Returns the scenarios that the settings describe: every cluster at every load.

    Raises:
        InputError: a cluster or the workload is wrong, or the settings contradict each other.
    """
    search, workload = settings.search, settings.workload
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
