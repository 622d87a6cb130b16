"""From settings to the objects they describe."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmroute_gym.config import ClusterConfig, WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.arrivals import ArrivalProcess, arrival_process
from llmroute_gym.sim.lengths import length_model
from llmroute_gym.sim.sources import (
    PROMPT_SOURCES,
    SyntheticWorkload,
    TraceWorkload,
    WorkloadSource,
    prompt_source,
)
from llmroute_gym.sim.traces import load_trace


def build_cluster(config: ClusterConfig) -> Cluster:
    """Builds the replicas.

    Raises:
        InputError: a profile or scheduler is unknown, or a limit or slowdown is out of range.
    """
    replicas = [
        replica
        for group in config.groups or [config]
        for replica in Cluster.from_profile(group.profile, group.replicas, **group.overrides())
    ]
    for index, pairs in enumerate(config.slowdowns):
        slowdowns = tuple((start_s, factor) for start_s, factor in pairs)
        replicas[index] = replace(replicas[index], slowdowns=slowdowns)
    cluster = Cluster(tuple(replicas))
    return cluster.with_speeds(config.speeds) if config.speeds else cluster


def build_source(config: WorkloadConfig, qps: float) -> WorkloadSource:
    """Builds what episodes draw their requests from.

    Args:
        config: lengths and arrivals.
        qps: mean arrival rate in requests per second; not read where the trace keeps its own.

    Raises:
        InputError: a model, process or option is unknown or wrong, or the trace cannot be read.
    """
    if config.source == "synthetic":
        name, options = _named(config.lengths, "model", "workload.lengths")
        return SyntheticWorkload(length_model(name, **options), _arrivals(config), qps)
    if config.source in PROMPT_SOURCES:
        for key in {"qps", "arrivals"} & set(config.prompts):
            raise InputError(f"workload.prompts.{key} is unknown; set workload.{key} instead")
        return prompt_source(config.source, qps=qps, arrivals=_arrivals(config), **config.prompts)
    assert config.path is not None
    own_times = config.arrivals.get("process") == "trace"
    recorded = load_trace(
        config.path,
        start=config.start,
        limit=config.limit,
        max_prompt_tokens=config.max_prompt_tokens,
        on_error=config.on_error,
        need_times=own_times or config.own_rate,
    )
    if config.own_rate and not math.isfinite(recorded.qps):
        raise InputError(
            f"workload.own_rate=true needs a rate, and all {len(recorded)} request(s) of "
            f"{config.path} arrive at the same instant; give workload.qps and choose "
            "workload/arrivals=poisson"
        )
    rate = None if config.own_rate else qps
    return TraceWorkload(recorded, rate, None if own_times else _arrivals(config))


def check_trace_length(source: WorkloadSource, needed: Mapping[str, int]) -> None:
    """Checks that a trace has as many requests as are to be served in a row.

    Args:
        source: what requests are drawn from.
        needed: setting to its number of requests.

    Raises:
        InputError: the trace is shorter; the message names the setting.
    """
    for key, requests in needed.items():
        if isinstance(source, TraceWorkload) and requests > len(source.workload):
            raise InputError(
                f"{key}={requests} is more than the {len(source.workload)} requests of the trace; "
                f"set {key} to that or less, or read more of the trace"
            )


def _arrivals(config: WorkloadConfig) -> ArrivalProcess:
    name, options = _named(config.arrivals, "process", "workload.arrivals")
    return arrival_process(name, **options)


def _named(settings: dict[str, Any], key: str, group: str) -> tuple[str, dict[str, Any]]:
    options = dict(settings)
    if key not in options:
        raise InputError(f"{group}.{key} is missing; it names what the other keys belong to")
    return str(options.pop(key)), options
