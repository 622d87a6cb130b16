"""The speed of `vllm_v1` where a router sees the prefix cache of every replica at every arrival.

A part of `engine.py`, which runs it: `python benchmarks/engine.py --only vllm`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from measuring import Target, millions, seconds, table, verdict
from vllm_speeds import FEW, MANY, Case, Source, sources

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import kernel
from llmroute_gym.sim.compiled.memory import Memory
from llmroute_gym.sim.compiled.running import keep_up, run_on
from llmroute_gym.sim.compiled.stale import drop_stale_kernels
from llmroute_gym.sim.compiled.views import write_cached
from llmroute_gym.sim.workload import Workload

drop_stale_kernels(Path(__file__).parent)  # the kernel below is made of theirs

AZURE, MOONCAKE, CHATS = "Azure, cache on", "Mooncake, blocks of 16, tight memory", "sessions"
TARGETS = {
    (AZURE, FEW): Target(2, 4.5),
    (MOONCAKE, FEW): Target(1.5, 3.5),
    (CHATS, FEW): Target(0.8, 2),
    (AZURE, MANY): Target(1, 2.3),
    (MOONCAKE, MANY): Target(0.5, 1.3),
    (CHATS, MANY): Target(0.2, 0.5),
}
"""By workload and replicas."""
COLUMN_BAR = 0.25


class Observed(NamedTuple):
    """Medians of one case."""

    source: str
    replicas: int
    busy: bool
    """Whether more replicas get as many requests each, instead of the same altogether."""
    per_s: float
    """Requests per second."""
    column: float
    """What the prefix column adds to the time, as a share."""


@kernel
def _serve(
    assignment: IntArray,
    replicas: IntArray,
    requests: IntArray,
    looks: bool,
    ends: FloatArray,
    column: FloatArray,
    ints: IntArray,
    floats: FloatArray,
) -> float:
    """Runs all replicas on to each arrival, looks at their caches, places the request."""
    seen = 0.0
    for i in range(len(requests)):
        request = requests[i]
        now = floats[request + at.ARRIVED]
        for r in range(len(replicas)):
            if ends[r] < now:
                keep_up(replicas[r], 0, now, False, 0, ints, floats)
                ends[r] = floats[replicas[r] + at.BATCH_END]
        if looks:
            column[:] = 0.0
            write_cached(0, request, 0, column, ints, floats)
            seen += column[0, 0]
        chosen = assignment[i]
        ints[request + at.REPLICA] = chosen
        run_on(replicas[chosen], 0, request, now, False, 0, ints, floats)
        ends[chosen] = min(floats[replicas[chosen] + at.BATCH_END], now)
    for r in range(len(replicas)):
        run_on(replicas[r], 0, -1, math.inf, False, 0, ints, floats)
    return seen


def _seconds(workload: Workload, case: Case, looks: bool) -> float:
    n = len(workload)
    memory = Memory(case.cluster, 1, n, workload.longest_request, ObservationConfig(), 6.0)
    memory.start(0, workload, np.zeros(n))
    assignment = np.arange(n) % case.replicas
    ends = np.full(case.replicas, math.inf)
    column = np.zeros((case.replicas, 1))
    arrays = memory.ints, memory.floats
    replicas = memory.replicas(0)
    requests = memory.first_request(0) + np.arange(n) * at.REQUEST_WORDS
    return seconds(lambda: _serve(assignment, replicas, requests, looks, ends, column, *arrays))


def measure_observed(repeats: int, n_requests: int | None) -> list[Observed]:
    """Times the runs, without and with the column in turn."""
    found = []
    named: dict[str, Source] = {one.name: one for one in sources()}
    for (name, replicas), _ in TARGETS.items():
        for busy in (True, False)[: 1 if replicas == FEW else 2]:
            case = Case(named[name], replicas, None)
            rated = case if busy else case._replace(replicas=FEW)
            workload = rated.workload.slice(0, n_requests)
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(repeats + 1):  # the first compiles
                for looks, measured in times.items():
                    measured.append(_seconds(workload, case, looks))
            plain_s, looked_s = (median(times[looks][1:]) for looks in (False, True))
            one = Observed(name, replicas, busy, len(workload) / looked_s, looked_s / plain_s - 1)
            print(f"{name}, {replicas} observed: {millions(one.per_s)} M/s", flush=True)
            found.append(one)
    return found


def measure(repeats: int, n_requests: int | None) -> str:
    """Measures everything and returns the README's paragraph."""
    return "\n".join(
        [
            "The same requests in one kernel call that runs every replica on to each arrival and "
            "looks up the share of its prompt in every replica's prefix cache before it is placed, "
            f"round robin; medians of {repeats}, without set-up. The last column is what the "
            f"look adds (bar: {COLUMN_BAR:.0%}).",
            "",
            observed_table(measure_observed(repeats, n_requests)),
        ]
    )


def observed_table(found: Sequence[Observed]) -> str:
    """Returns the README's table."""
    columns = ["workload", "replicas", "requests", "M/s", "bar", "reach", "met"]
    rows = [
        [
            one.source,
            one.replicas,
            "per replica as with 4" if one.busy else "altogether as with 4",
            f"**{millions(one.per_s)}**",
            *verdict(one.per_s, TARGETS[one.source, one.replicas]),
            f"{one.column:+.0%}",
        ]
        for one in found
    ]
    return table([*columns, f"prefix column (bar +{COLUMN_BAR:.0%})"], rows)
