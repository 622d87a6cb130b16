"""How much a cluster can serve, found by bisection and remembered.

The capacity is the largest Poisson rate at which no queue grows under `speed_lor`: over `RUNS` long
runs at most `STILL` of the arriving requests pile up, as `llmroute_gym.compare.suites.stability`
measures it. All rates serve the same requests. A rule that finds more in prefix caches may carry
more, so that a load of 1 is no bound for it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from llmroute_gym.compare.suites.stability import growth
from llmroute_gym.config import ClusterConfig, WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.version import __version__
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource

RULE = "speed_lor"
"""The rule that routes: sound on equal and unequal replicas alike."""
RUNS, REQUESTS = 4, 20_000
"""Runs, and requests of each; of a trace as many as it has."""
STILL = 0.005
"""Share of the arriving requests up to which a queue is said not to grow."""
TOLERANCE = 0.005
"""Where the bisection ends, relative to the rate."""
RATES = (1e-3, 1e6)
"""Requests/s between which the capacity is looked for."""


def largest_stable_rate(cluster: Cluster, source: WorkloadSource) -> float:
    """Returns the capacity of a cluster in requests/s, to three digits.

    Args:
        cluster: the replicas.
        source: what the requests are drawn from; its arrivals should be Poisson.

    Raises:
        InputError: the cluster is stable, or unstable, at every rate.
    """
    length = len(source.workload) if isinstance(source, TraceWorkload) else REQUESTS

    def stable(qps: float) -> bool:
        outcomes = []
        for run in range(RUNS):
            workload = source.with_qps(qps).sample(
                min(length, REQUESTS), np.random.default_rng([run, 5])
            )
            outcomes.append(simulate(workload, cluster, RULE, seed=run))
        return growth(outcomes).share <= STILL

    low, high = _bracket(stable, float(len(cluster)))
    while high > low * (1 + TOLERANCE):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if stable(middle) else (low, middle)
    return float(f"{low:.3g}")


def _bracket(stable: Callable[[float], bool], qps: float) -> tuple[float, float]:
    """Returns a stable rate and twice as much, which is not."""
    is_stable = stable(qps)
    factor = 2.0 if is_stable else 0.5
    while RATES[0] < qps < RATES[1]:
        if stable(qps * factor) != is_stable:
            return (qps, qps * 2) if is_stable else (qps / 2, qps)
        qps *= factor
    raise InputError(
        f"the cluster is {'stable' if is_stable else 'unstable'} at {qps:g} requests/s; give the "
        "scenario workload.qps in place of load"
    )


def capacity_of(cluster: ClusterConfig, workload: WorkloadConfig) -> float:
    """Returns the capacity of a cluster for requests of a kind in requests/s; computed once.

    Slowdowns are left out, and whatever rate and arrivals the workload has.

    Args:
        cluster: the replicas.
        workload: what the requests are like; a trace by its path.

    Raises:
        InputError: as `largest_stable_rate`, or the settings are wrong.
    """
    cluster = replace(cluster, slowdowns=[])
    poisson = {"process": "poisson"}
    workload = replace(workload, arrivals=poisson, qps=None, own_rate=False)
    file = cache_folder() / f"{_key(cluster, workload)}.json"
    if (known := _remembered(file)) is not None:
        return known
    found = largest_stable_rate(build_cluster(cluster), build_source(workload, 1.0))
    try:
        with complete_or_absent(file) as part:
            part.write_text(json.dumps({"capacity_rps": found}) + "\n", encoding="utf-8")
    except InputError:
        pass  # it is found again next time
    return found


def cache_folder() -> Path:
    """Returns the folder of remembered capacities: in ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llmroute_gym" / "capacity"


def _remembered(file: Path) -> float | None:
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["capacity_rps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(cluster: ClusterConfig, workload: WorkloadConfig) -> str:
    """Names a capacity by all that it depends on; a trace by its bytes."""
    settings = {"cluster": asdict(cluster), "workload": asdict(workload) | {"path": None}}
    told = {"version": __version__, "runs": RUNS, "requests": REQUESTS, "still": STILL}
    text = json.dumps(settings | told, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for path in (workload.path, cluster.profile):
        if path is not None and Path(path).is_file():
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()[:32]
