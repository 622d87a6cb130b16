"""What the environments are given, checked: clusters, workloads, settings, actions."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig, RewardConfig
from llmroute_gym.errors import InputError, checked_name, shown, unknown_name
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.ground.signals import Signal
from llmroute_gym.sim.arrivals import arrival_process
from llmroute_gym.sim.lengths import LENGTH_MODELS, length_model
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.sources import (
    PROMPT_SOURCES,
    SyntheticWorkload,
    WorkloadSource,
    prompt_source,
)
from llmroute_gym.sim.submission import replica_index
from llmroute_gym.sim.workload import Workload

Config = TypeVar("Config", RewardConfig, ObservationConfig)


REPLICAS = 4
"""How many of a profile an environment has unless it is told."""


def refuse_unknown(kind: type, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that an environment does not take.

    Args:
        kind: of the environment.
        arguments: what was given beside those that it names.

    Raises:
        InputError: there is one; the sentence names those that there are.
    """
    known = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    for name in arguments:
        raise unknown_name(f"argument of {kind.__name__}", name, known)


def cluster_and_source(
    cluster: Cluster | str,
    replicas: int | None,
    workload: WorkloadSource | str,
    qps: float | None,
    arrivals: str | None,
    requests_per_episode: int,
) -> tuple[Cluster, WorkloadSource]:
    """Turns the names that an environment takes into the objects it works with.

    Raises:
        InputError: a name is unknown, a number is out of range, or what was given has no meaning
            beside the rest.
    """
    qps = None if qps is None else positive("qps", qps)
    count("requests_per_episode", requests_per_episode)
    if not isinstance(cluster, Cluster):
        cluster = Cluster.from_profile(cluster, REPLICAS if replicas is None else replicas)
    elif replicas is not None:
        raise InputError(
            f"replicas={shown(replicas)} has no meaning beside a Cluster, which has "
            f"{len(cluster)}; leave it out, or give the name of a profile"
        )
    if arrivals is not None and not isinstance(workload, str):
        raise InputError(
            f"arrivals={shown(arrivals)} has no meaning beside a WorkloadSource, which has its "
            "own; leave it out, or give the workload by name"
        )
    if isinstance(workload, str):
        process = arrival_process("poisson" if arrivals is None else arrivals)
        rate = 1.0 if qps is None else qps
        if workload in PROMPT_SOURCES:
            workload = prompt_source(workload, qps=rate, arrivals=process)
        else:
            checked_name("workload", workload, (*LENGTH_MODELS, *PROMPT_SOURCES))
            workload = SyntheticWorkload(length_model(workload), process, rate)
    elif not hasattr(workload, "with_qps") or not hasattr(workload, "sample"):
        raise InputError(
            "workload must be a WorkloadSource, or the name of a length model or source, got "
            f"{shown(workload)}; put a Workload into reset(options={{'workload': ...}})"
        )
    elif qps is not None:
        workload = workload.with_qps(qps)
    return cluster, workload


def build_config(kind: type[Config], given: Config | Mapping[str, Any] | None) -> Config:
    """Returns a checked config from itself, from a mapping of its fields, or the default.

    Raises:
        InputError: a field is unknown or out of range.
    """
    if given is not None and not isinstance(given, kind | Mapping):
        raise InputError(
            f"expected a {kind.__name__} or a mapping of its fields, got {shown(given)}"
        )
    if not isinstance(given, kind):
        known = {field.name for field in fields(kind)}
        values = dict(given) if isinstance(given, Mapping) else {}
        for key in values:
            if key not in known:
                raise unknown_name(f"key of {kind.__name__}", key, known)
        given = kind(**values)
    given.validate()
    return given


def requested_workload(options: Mapping[str, Any] | None) -> Workload | None:
    """Returns the workload in the options of `reset`, if any.

    Raises:
        InputError: an option is unknown, or the workload is none.
    """
    for key in options or {}:
        if key != "workload":
            raise unknown_name("reset option", key, ["workload"])
    workload: object = (options or {}).get("workload")
    if workload is not None and not isinstance(workload, Workload):
        raise InputError(f"options['workload'] must be a Workload, got {type(workload).__name__}")
    return workload


def checked_action(action: Any, run: Run) -> int:
    """Returns the action as an int.

    Raises:
        InputError: it is not an integer, out of range, or masked.
    """
    n_replicas = len(run.cluster)
    replica = replica_index(action, n_replicas)
    if replica is None:
        raise range_error(action, n_replicas)
    if not run.mask()[replica]:
        raise masked_error(replica, run.request, run.mask(), run.rows())
    return replica


def range_error(action: object, n_replicas: int, where: str = "") -> InputError:
    """Returns the error for an action that names no replica."""
    return InputError(
        f"the action{where} must be an integer from 0 to {n_replicas - 1}, got {action!r}"
    )


def masked_error(
    replica: int,
    request: int,
    mask: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.float64],
    where: str = "",
) -> InputError:
    """Returns the error for a replica that may not take the request.

    Args:
        replica: the one chosen.
        request: number of the request.
        mask: (n_replicas,) those that may.
        rows: (n_replicas, N_SIGNALS).
        where: names the environment, where there are several.
    """
    row = rows[replica]
    state = f"{row[Signal.WAITING]:.0f} waiting, {row[Signal.RUNNING]:.0f} running there"
    if row[Signal.AVAILABLE]:
        prompt = f"{row[Signal.PROMPT_TOKENS]:.0f} prompt tokens"
        why = f"cannot hold request {request} ({prompt}; {state})"
    else:
        why = f"takes no requests now, request {request} included ({state})"
    return InputError(
        f"replica {replica}{where} is masked: it {why}; choose one of "
        f"{np.flatnonzero(mask).tolist()}"
    )
