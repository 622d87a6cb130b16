"""What was measured of clusters and published, and the same clusters simulated."""

import csv
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from measuring import DATA

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.prefixes import SharedPrefix
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.workload import Workload

PUBLISHED = DATA / "published"
STAGES = (
    *((15, 50), (3, 20), (10, 20), (15, 20), (20, 38), (22, 34), (25, 30), (30, 25), (35, 21)),
    *((40, 38), (43, 36), (46, 33), (49, 30), (52, 29), (55, 27), (57, 26), (60, 25)),
)
"""Requests/s and seconds of each stage, the warm-up first."""
RATES = np.array([rate for rate, _ in STAGES[1:]], dtype=float)
APART_S = 30.0
METRICS = ("output_tps", "ttft_mean_s", "ttft_p50_s", "ttft_p90_s")


class Setup(NamedTuple):
    """A cluster and the prompts that it is asked."""

    profile: str
    replicas: int
    question_tokens: int
    output_tokens: int
    blocks: float = 1.0
    """Times the KV blocks of the profile."""
    waits: bool = True
    """Whether a stage begins only when all of the one before is finished."""

    @property
    def name(self) -> str:
        """The cluster in a few words."""
        return f"{self.replicas} x {self.profile}"

    @property
    def cluster(self) -> Cluster:
        """The replicas, with the profile's limits."""
        cluster = Cluster.from_profile(self.profile, self.replicas)
        num_blocks = round(cluster[0].num_blocks * self.blocks)
        return Cluster.from_profile(self.profile, self.replicas, num_blocks=num_blocks)

    def prompts(self, seed: int) -> Workload:
        """Returns the requests of all stages, in turn from one shuffled order."""
        source = SharedPrefix(
            qps=1.0, question_tokens=self.question_tokens, output_tokens=self.output_tokens
        )
        return source.sample(sum(requests()), np.random.default_rng(seed))


QWEN = Setup("h100x2-qwen3-32b", 8, 1200, 1000)
GPT_OSS = Setup("h100-gpt-oss-120b", 16, 500, 500)


class Comparison(NamedTuple):
    """A simulated cluster behind a router and what was measured of one."""

    setup: Setup
    router: str | Mapping[str, Any]
    file: str
    columns: str
    """How the names of the file's columns of that router begin."""
    what_if: str = ""
    """What is otherwise than in the measured cluster or its profile; only summed up."""

    def measured(self) -> dict[str, FloatArray]:
        """Each metric that was measured, by stage; NaN where a cell is blank."""
        with (PUBLISHED / f"{self.file}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if [float(row["rate_rps"]) for row in rows] != RATES.tolist():
            raise ValueError(f"{self.file}.csv has other rates than the stages, {RATES}")
        names = {metric: f"{self.columns}_{metric}" for metric in METRICS}
        return {
            metric: np.array([float(row[name] or "nan") for row in rows])
            for metric, name in names.items()
            if name in rows[0]
        }


SCORERS, TOKEN = "llmd_qwen3-32b_vllm_scorers", "llmd_qwen3-32b_vllm_token"
GPT_OSS_TOKEN = "llmd_gpt-oss-120b_vllm_token"
COMPARISONS = (
    Comparison(QWEN, "round_robin", SCORERS, "rr"),
    Comparison(QWEN, "round_robin", TOKEN, "rr"),
    Comparison(GPT_OSS, "round_robin", GPT_OSS_TOKEN, "rr"),
    Comparison(QWEN, "random", SCORERS, "rr", "at random"),
    Comparison(QWEN, "random", TOKEN, "rr", "at random"),
    Comparison(GPT_OSS, "random", GPT_OSS_TOKEN, "rr", "at random"),
    Comparison(QWEN._replace(waits=False), "round_robin", TOKEN, "rr", "stages by the clock"),
    Comparison(
        GPT_OSS._replace(blocks=1.5), "round_robin", GPT_OSS_TOKEN, "rr", "1.5 times the KV blocks"
    ),
)


def requests() -> list[int]:
    """Returns the number of requests of each stage."""
    return [rate * duration_s for rate, duration_s in STAGES]


def replay(setup: Setup, router: str | Mapping[str, Any], seed: int) -> Outcome:
    """Simulates all stages as one run.

    A stage begins when the one before has ended, so they are simulated one after the other, each
    time from the start: what comes later changes nothing of what was.
    """
    rng = np.random.default_rng([seed, 1])
    prompts, cluster = setup.prompts(seed), setup.cluster
    arrived_at_s = np.empty(0)
    start_s = 0.0
    for (rate, duration_s), count in zip(STAGES, requests(), strict=True):
        times = start_s + np.cumsum(rng.exponential(1 / rate, count))
        arrived_at_s = np.concatenate([arrived_at_s, times])
        workload = prompts.slice(0, len(arrived_at_s)).with_arrivals(arrived_at_s)
        outcome = simulate(workload, cluster, router, seed=seed)
        end_s = float(outcome.finished_at_s.max()) if setup.waits else start_s + duration_s
        start_s = end_s + APART_S
    return outcome


def by_stage(outcome: Outcome) -> dict[str, FloatArray]:
    """Returns each metric of the stages after the warm-up, shape (n_stages,)."""
    ends = np.cumsum(requests())
    rows = []
    for start, end in pairwise(ends):
        part = np.s_[start:end]
        span_s = outcome.finished_at_s[part].max() - outcome.arrived_at_s[part].min()
        ttft_s = outcome.ttft_s[part]
        tokens = outcome.output_tokens[part].sum()
        rows.append((tokens / span_s, ttft_s.mean(), *np.percentile(ttft_s, (50, 90))))
    return dict(zip(METRICS, np.array(rows).T, strict=True))


class Result(NamedTuple):
    """What was measured and what was simulated, by metric."""

    comparison: Comparison
    measured: dict[str, FloatArray]
    """Shape (n_stages,)."""
    runs: dict[str, FloatArray]
    """Shape (seeds, n_stages)."""

    @property
    def ttft(self) -> str:
        """The middle TTFT that was measured: the median where there is one."""
        return "ttft_p50_s" if "ttft_p50_s" in self.measured else "ttft_mean_s"

    def mean(self, metric: str) -> FloatArray:
        """Returns the mean over the seeds, shape (n_stages,)."""
        return np.asarray(self.runs[metric].mean(axis=0))


def simulate_all(seeds: int) -> list[Result]:
    """Simulates each cluster once, however many measurements it is compared with."""
    known: dict[tuple[Setup, str], dict[str, FloatArray]] = {}
    results = []
    for one in COMPARISONS:
        key = (one.setup, repr(one.router))
        if key not in known:
            outcomes = (replay(one.setup, one.router, seed) for seed in range(seeds))
            runs = [by_stage(outcome) for outcome in outcomes]
            known[key] = {metric: np.array([run[metric] for run in runs]) for metric in METRICS}
        results.append(Result(one, one.measured(), known[key]))
    return results
