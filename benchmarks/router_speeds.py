"""How fast every rule routes, in whole runs, and how long its decision takes to compile."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measuring import Target, median_seconds, millions, seconds, table
from router_runs import equal_replicas, source_at

from llmroute_gym.ground.signals import OF_PREFIXES
from llmroute_gym.routers import Router, available, describe, make
from llmroute_gym.routers.decision import Decision
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, SharedPrefix, Workload

REPLICAS = 4
OF_UPPER_BOUNDS = 0.01
"""Share of the requests that an upper bound gets, which is slow and has no bar."""
SHARED_PROFILE, SHARED_QPS = "h100x2-qwen3-32b", 8.0
PLAIN, SLOWER = Target(1.0, None), Target(0.2, None)


class Speed(NamedTuple):
    """Of one rule, requests per second."""

    rule: str
    plain: float
    """Chunked prefill, lengths of a trace."""
    shared: float | None
    """vLLM v1 and prompts that begin alike; None for a rule that looks at no prefix."""
    target: Target | None
    compile_s: float | None
    """Of its decision in a process whose caches are empty; None if it has none."""


def target_of(router: Router) -> Target | None:
    """Returns the bar: lower for rules that learn or keep trees, none for upper bounds."""
    if router.upper_bound:
        return None
    learns = type(router).lessons is not Router.lessons
    seen = router.observation
    trees = seen is not None and seen.prefix_view == "tree"
    return SLOWER if learns or trees else PLAIN


def looks_at_prefixes(name: str) -> bool:
    """Returns whether a rule reads a signal that depends on a view of prefixes."""
    signals = next(one.signals for one in describe() if one.name == name)
    return bool(set(signals).intersection(OF_PREFIXES))


def plain_case(requests: int) -> tuple[Cluster, Workload]:
    """Returns equal replicas at 70% of their capacity."""
    cluster = equal_replicas(REPLICAS)
    return cluster, source_at(cluster).sample(requests, np.random.default_rng(0))


def shared_case(requests: int) -> tuple[Cluster, Workload]:
    """Returns vLLM v1 with the shared prefixes of llm-d's guides."""
    cluster = Cluster.from_profile(SHARED_PROFILE, REPLICAS)
    source = SharedPrefix(qps=SHARED_QPS)
    return cluster, source.sample(requests, np.random.default_rng(0))


def requests_per_s(case: tuple[Cluster, Workload], name: str, repeats: int) -> float:
    """Times whole `simulate` calls, kernels compiled before."""
    cluster, workload = case
    if make(name).upper_bound:
        workload = workload.slice(0, round(OF_UPPER_BOUNDS * len(workload)))
    simulate(workload.slice(0, min(len(workload), 1000)), cluster, name, seed=0)
    duration_s = median_seconds(lambda: simulate(workload, cluster, name, seed=0), repeats)
    return len(workload) / duration_s


def compile_seconds(names: list[str]) -> dict[str, float]:
    """Returns the seconds that each decision takes, one after the other in an empty process.

    A block that several decisions share is compiled with the first of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__)), *names]
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compile_here(names: list[str]) -> dict[str, float]:
    """Compiles decisions in this process; `random` first, which warms the compiler up."""
    found = {}
    for name in ["random", *names]:
        decide = getattr(make(name), "decide", None)
        if isinstance(decide, Decision):
            found.setdefault(name, seconds(lambda decide=decide: decide.compiled))
    return found


def measure(names: list[str], requests: int, shared_requests: int, repeats: int) -> list[Speed]:
    """Measures every rule."""
    plain, shared = plain_case(requests), shared_case(shared_requests)
    compiled = compile_seconds(names)
    found = []
    for name in names:
        speed = Speed(
            name,
            requests_per_s(plain, name, repeats),
            requests_per_s(shared, name, repeats) if looks_at_prefixes(name) else None,
            target_of(make(name)),
            compiled.get(name),
        )
        print(f"{name}: {millions(speed.plain)} M requests/s", flush=True)
        found.append(speed)
    return found


def speed_table(speeds: list[Speed]) -> str:
    """Returns the table of speeds."""
    columns = ["rule", "M requests/s", "bar", "met", "shared prefixes (M/s)", "compiling (s)"]
    rows = []
    for one in speeds:
        bar, met = "", ""
        if one.target is not None:
            bar = f"{one.target.bar:g}"
            met = "yes" if one.plain >= 1e6 * one.target.bar else "**no**"
        rows.append(
            [
                f"`{one.rule}`",
                f"**{millions(one.plain)}**",
                bar,
                met,
                "" if one.shared is None else millions(one.shared),
                "" if one.compile_s is None else f"{one.compile_s:.2f}",
            ]
        )
    return table(columns, rows)


if __name__ == "__main__":
    print(json.dumps(compile_here(sys.argv[1:] or list(available()))))
