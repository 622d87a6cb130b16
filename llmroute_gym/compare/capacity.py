"""How much a cluster can serve."""

import logging
from dataclasses import replace

import numpy as np

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource

log = logging.getLogger(__name__)

ALL_AT_ONCE_QPS = 1e6


def estimated_capacity(cluster: Cluster, source: WorkloadSource, requests: int = 2000) -> float:
    """Estimates how many requests per second a cluster can serve.

    Serves requests that all arrive at almost the same time, those of one conversation too, with
    least outstanding requests, and counts completions between the first and the last tenth.

    Args:
        cluster: the replicas.
        source: what the requests are drawn from.
        requests: how many at the least; 200 per replica if that is more; or as many as a trace has.
    """
    requests = max(requests, 200 * len(cluster))
    if isinstance(source, TraceWorkload):
        requests = min(requests, len(source.workload))
    # Drawn at the source's own rate: at a high one, conversations that began before time 0 are
    # without number.
    workload = source.sample(requests, np.random.default_rng(0))
    squeeze = min(ALL_AT_ONCE_QPS, source.qps) / ALL_AT_ONCE_QPS
    at_once = replace(
        workload.with_arrivals(squeeze * workload.arrived_at_s), after=None, gap_s=None
    )
    finished = np.sort(simulate(at_once, cluster, "lor", seed=0).finished_at_s)
    finished = finished[np.isfinite(finished)]
    first, last = len(finished) // 10, len(finished) - 1 - len(finished) // 10
    seconds = float(finished[last] - finished[first]) if last > first else 0.0
    return (last - first) / seconds if seconds > 0 else float("inf")


def warn_of_overload(cluster: Cluster, source: WorkloadSource, key: str, qps: float) -> None:
    """Warns where more requests arrive than the cluster can serve: queues then only grow.

    Args:
        cluster: the replicas.
        source: what the requests are drawn from.
        key: the setting that holds the arrival rate.
        qps: the rate, requests per second.
    """
    capacity = estimated_capacity(cluster, source)
    if qps > capacity:
        log.warning(
            "%s reaches %g requests/s, but the cluster serves about %.2g at the most; "
            "queues will grow all through an episode",
            key,
            qps,
            capacity,
        )
