"""The requests that all routers serve in a comparison."""

import numpy as np

from llmroute_gym.config import EvaluationConfig
from llmroute_gym.errors import unknown_name
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource
from llmroute_gym.sim.submission import fitting


def common_workloads(
    source: WorkloadSource, cluster: Cluster, config: EvaluationConfig
) -> list[Workload]:
    """Draws the workloads that all routers serve.

    The windows of a trace are spread evenly over it, so that all its parts count.

    Args:
        source: what the requests are drawn from.
        cluster: what they must fit on.
        config: how many runs of how many requests, the seed and the engine.

    Returns:
        One workload per run.

    Raises:
        InputError: the engine is unknown, the trace is shorter than a run, or a request can run
            on no replica.
    """
    if config.engine not in ENGINES:
        raise unknown_name("evaluation engine", config.engine, ENGINES)
    workloads = [workload_of(run, source, config) for run in range(config.runs)]
    for workload in workloads:
        fitting(workload, cluster)
    return workloads


def workload_of(run: int, source: WorkloadSource, config: EvaluationConfig) -> Workload:
    """Draws the workload of one run of `common_workloads`, 0 to ``config.runs - 1``."""
    part = source
    if isinstance(source, TraceWorkload) and config.requests <= len(source.workload):
        part = _window(source, run / max(config.runs - 1, 1), config.requests)
    return part.sample(config.requests, np.random.default_rng([config.seed, run]))


def _window(source: TraceWorkload, position: float, n_requests: int) -> TraceWorkload:
    """Cuts a window out of a trace; position 0 is its beginning, 1 its end."""
    start = round(position * (len(source.workload) - n_requests))
    if source.arrivals is not None:
        window = source.workload.slice(start, start + n_requests)
        return TraceWorkload(window, source.qps, source.arrivals)
    return TraceWorkload(source.workload.with_qps(source.qps).slice(start, start + n_requests))
