"""Logs of simulated servers, of which it is known how fast they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.request_log import LoggedRequest

BEGAN_S = 1_790_000_000.0
FORMULA = FormulaBatchTime(c0=0.012, c1=8e-5, n0=40.0, c2=2e-7, c3=4e-9)
REPLICA = Replica(FORMULA, scheduler="vllm_v1", num_blocks=4000)


def log_of(
    path: Path,
    n: int = 400,
    qps: float = 6.0,
    speeds: tuple[float, ...] = (1.0, 1.0),
    besides_s: float = 0.004,
    streamed: bool = True,
) -> list[LoggedRequest]:
    """Writes the log of servers called a, b, ..., in the order in which requests ended."""
    rng = np.random.default_rng(1)
    workload = Workload(
        np.cumsum(rng.exponential(1 / qps, n)),
        np.clip(rng.lognormal(6.0, 0.9, n).astype(int), 4, 4000),
        np.clip(rng.lognormal(4.0, 0.8, n).astype(int), 1, 400),
    )
    cluster = Cluster(tuple(replace(REPLICA, speed=speed) for speed in speeds))
    outcome = simulate(workload, cluster, "lor")
    columns = (
        *(outcome.arrived_at_s, outcome.replica, outcome.prompt_tokens, outcome.output_tokens),
        *(outcome.first_token_at_s, outcome.finished_at_s),
    )
    logged = [
        LoggedRequest(
            *(BEGAN_S + arrived_at_s, "abcd"[backend], prompt, output, None),
            BEGAN_S + first_s + besides_s if streamed else None,
            *(BEGAN_S + ended_s + besides_s, "ok"),
        )
        for arrived_at_s, backend, prompt, output, first_s, ended_s in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]
    logged.sort(key=lambda one: one.ended_at_s)
    write(path, logged)
    return logged


def write(path: Path, logged: list[LoggedRequest]) -> None:
    path.write_text(LoggedRequest.header() + "".join(one.line() for one in logged))
