"""Replays recorded runs, and further runs on exact tables, with the shipped profiles."""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from profile_targets import TARGETS, Target

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.batch_time import BatchTimeModel, TableBatchTime
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.workload import Workload

IntArray = npt.NDArray[np.int64]

MAX_TOKENS = 4096  # of a request, prompt and output, as in the recorded runs
SPEED_FOR_SCALE = 1.001  # shows what a change of 0.1% does to the recorded runs
SCHEDULERS = ("chunked", "prefill_first")
LOADS = (0.5, 0.75, 0.95)  # of capacity
FURTHER_REQUESTS = 2500
REPLICAS = 4


@dataclass(frozen=True)
class Run:
    """A workload on a cluster with every request's replica fixed, and how it went.

    `ttft_s` and `e2e_s` are the 99th percentiles to be met.
    """

    case: str
    profile: str
    workload: Workload
    cluster: Cluster
    replica: IntArray
    ttft_s: float
    e2e_s: float


@dataclass(frozen=True)
class Replay:
    """99th percentiles of a run, to be met and as simulated, in seconds."""

    case: str
    profile: str
    ttft_s: float
    e2e_s: float
    simulated_ttft_s: float
    simulated_e2e_s: float

    @property
    def ttft_error(self) -> float:
        """Relative error of the time to first token."""
        return self.simulated_ttft_s / self.ttft_s - 1.0

    @property
    def e2e_error(self) -> float:
        """Relative error of the end-to-end latency."""
        return self.simulated_e2e_s / self.e2e_s - 1.0


def _p99s(run: Run, cluster: Cluster) -> tuple[float, float]:
    outcome = simulate(run.workload, cluster, run.replica, engine="reference")
    return float(np.quantile(outcome.ttft_s, 0.99)), float(np.quantile(outcome.e2e_s, 0.99))


def replay(run: Run, batch_time: BatchTimeModel | None, speed: float = 1.0) -> Replay:
    """Simulates a run again, with another batch time (None keeps its own) and speed."""
    one = run.cluster.replicas[0]
    one = replace(one, batch_time=batch_time or one.batch_time, speed=speed)
    simulated = _p99s(run, Cluster((one,) * len(run.cluster)))
    return Replay(run.case, run.profile, run.ttft_s, run.e2e_s, *simulated)


def recorded_runs(data: Path) -> list[Run]:
    """Reads the recorded runs that were timed by tables; `param_*` were timed by a formula."""
    runs = []
    for folder in sorted((data / "oracle").iterdir()):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["param"]:
            continue
        target = next(target for target in TARGETS if target.combo == config["combo"])
        replica = Replica(
            batch_time=read_tables(data, target),
            scheduler="prefill_first" if config["replica_scheduler"] == "vllm" else "chunked",
            max_batch=config["batch_size_cap"],
            max_batched_tokens=config["max_tokens_in_batch"] or MAX_TOKENS,
            chunk_size=config["chunk_size"] or 512,
            block_size=config["block_size"],
            num_blocks=config["num_blocks"],
            watermark_blocks=config["watermark_blocks"],
            restart="vidur",
        )
        requests = pd.read_csv(folder / "requests.csv.gz").sort_values("request_id")
        runs.append(
            Run(
                case=folder.name,
                profile=target.name,
                workload=Workload(
                    requests["arrived_at"].to_numpy(),
                    requests["num_prefill_tokens"].to_numpy(),
                    requests["num_decode_tokens"].to_numpy(),
                ),
                cluster=Cluster((replica,) * config["num_replicas"]),
                replica=requests["replica_id"].to_numpy(dtype=np.int64),
                ttft_s=float(np.quantile(requests["ttft"], 0.99)),
                e2e_s=float(np.quantile(requests["e2e"], 0.99)),
            )
        )
    return runs


def read_tables(data: Path, target: Target) -> TableBatchTime:
    """Reads the exact tables that the profile approximates."""
    return TableBatchTime.from_npz(data / "batch_time" / f"{target.combo}.npz")


def further_run(data: Path, target: Target, scheduler: str, load: float) -> Run:
    """Simulates, with exact tables, a workload that no recorded run has.

    Args:
        data: where the measurements are.
        target: the model on hardware.
        scheduler: the replicas' scheduler.
        load: share of the capacity of four replicas.
    """
    place = TARGETS.index(target), SCHEDULERS.index(scheduler), LOADS.index(load)
    rng = np.random.default_rng(place)
    trace = pd.read_csv(data / "traces" / "azure_conv_2023.csv")
    start = int(rng.integers(0, len(trace) - FURTHER_REQUESTS))
    window = trace.iloc[start : start + FURTHER_REQUESTS]
    output = np.minimum(window["num_decode_tokens"].to_numpy(), MAX_TOKENS - 1)
    prompt = np.minimum(window["num_prefill_tokens"].to_numpy(), MAX_TOKENS - output)
    gaps_s = rng.exponential(1.0 / (load * target.capacity_rps), FURTHER_REQUESTS)
    limits: dict[str, Any] = target.limits()
    replica = Replica(batch_time=read_tables(data, target), scheduler=scheduler, **limits)
    run = Run(
        case=f"{target.name} {scheduler} {load:.0%}",
        profile=target.name,
        workload=Workload(np.cumsum(gaps_s), prompt, output),
        cluster=Cluster((replica,) * REPLICAS),
        replica=np.arange(FURTHER_REQUESTS) % REPLICAS,
        ttft_s=math.nan,
        e2e_s=math.nan,
    )
    ttft_s, e2e_s = _p99s(run, run.cluster)
    return replace(run, ttft_s=ttft_s, e2e_s=e2e_s)


def replay_further(
    data: Path, target: Target, scheduler: str, load: float, model: BatchTimeModel
) -> Replay:
    """Compares a profile with exact tables on one further workload."""
    return replay(further_run(data, target, scheduler, load), model)


@dataclass(frozen=True)
class Results:
    """All replays: recorded runs, the same with exact tables 0.1% faster, and further runs."""

    recorded: list[Replay]
    faster: list[Replay]
    further: list[Replay]


def replay_all(data: Path, models: Mapping[str, BatchTimeModel]) -> Results:
    """Replays every run, on all cores."""
    runs = recorded_runs(data)
    with ProcessPoolExecutor() as pool:
        recorded = [pool.submit(replay, run, models[run.profile]) for run in runs]
        faster = [pool.submit(replay, run, None, SPEED_FOR_SCALE) for run in runs]
        further = [
            pool.submit(replay_further, data, target, scheduler, load, models[target.name])
            for target in TARGETS
            for scheduler in SCHEDULERS
            for load in LOADS
        ]
        return Results(*([job.result() for job in jobs] for jobs in (recorded, faster, further)))


def median_errors(replays: Sequence[Replay]) -> tuple[float, float]:
    """Returns the median absolute relative errors of P99 TTFT and P99 end-to-end latency."""
    return (
        float(np.median([abs(one.ttft_error) for one in replays])),
        float(np.median([abs(one.e2e_error) for one in replays])),
    )
