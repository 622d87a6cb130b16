"""What was measured of clusters and published, and the same clusters simulated."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from measuring import DATA

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground import rules
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.prefixes import SharedPrefix
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.workload import Workload

PUBLISHED = DATA / "published"
Named = str | Mapping[str, Any]
Stages = Sequence[tuple[int, int]]
STAGES: Stages = (
    *((15, 50), (3, 20), (10, 20), (15, 20), (20, 38), (22, 34), (25, 30), (30, 25), (35, 21)),
    *((40, 38), (43, 36), (46, 33), (49, 30), (52, 29), (55, 27), (57, 26), (60, 25)),
)
"""Requests/s and seconds of each stage, the warm-up first."""
RATES = np.array([rate for rate, _ in STAGES[1:]], dtype=float)
APART_S = 30.0
METRICS = ("output_tps", "ttft_mean_s", "ttft_p50_s", "ttft_p90_s")
GAP = "itl_mean_s"
"""Mean time between tokens, measured over all stages only."""
MIDDLE = ("ttft_p50_s", "ttft_mean_s", "ttft_p90_s")


class Setup(NamedTuple):
    """A cluster and the prompts that it is asked."""

    profile: str
    replicas: int
    question_tokens: int
    output_tokens: int
    blocks: float = 1.0
    """Times the KV blocks of the profile."""
    attention: float = 1.0
    """Times the profile's seconds of attention in decoding."""
    shared_reads: float | None = None
    """Of the replicas, None for the profile's."""
    waits: bool = True
    """Whether a stage begins only when all of the one before is finished."""

    @property
    def name(self) -> str:
        """The cluster in a few words."""
        return f"{self.replicas} x {self.profile}"

    @property
    def cluster(self) -> Cluster:
        """The replicas, with the profile's limits."""
        replica = Cluster.from_profile(self.profile, 1)[0]
        times = replica.batch_time
        assert isinstance(times, PiecewiseBatchTime)
        times = replace(times, decode_s=times.decode_s * self.attention)
        replica = replace(
            replica, batch_time=times, num_blocks=round(replica.num_blocks * self.blocks)
        )
        if self.shared_reads is not None:
            replica = replace(replica, shared_reads=self.shared_reads)
        return Cluster((replica,) * self.replicas)

    def prompts(self, seed: int, stages: Stages = STAGES) -> Workload:
        """Returns the requests of all stages, in turn from one shuffled order."""
        source = SharedPrefix(
            qps=1.0, question_tokens=self.question_tokens, output_tokens=self.output_tokens
        )
        return source.sample(sum(requests(stages)), np.random.default_rng(seed))


QWEN_MEMORY = (34.6 + 0.05 * 79.18) / 34.6
"""llm-d's guide starts vLLM for this model with 95% of a GPU's 79.18 GiB, the profile has 90%, of
which 34.6 GiB are for KV blocks; these get the difference."""
QWEN = Setup("h100x2-qwen3-32b", 8, 1200, 1000, blocks=QWEN_MEMORY)
QWEN_ALONE = QWEN._replace(shared_reads=0.0)
"""At the profile's 0.44 the mean time between tokens of `llmd_baseline` is as in `GAPS_S`."""
QWEN_AT_BEST = QWEN_ALONE._replace(attention=0.81)
"""The profile's attention moves 2.72 TB/s of KV (190 requests of 7,700 tokens, 131,072 bytes each
on a GPU, 70.4 ms); the data sheet of an H100 says 3.35."""
GPT_OSS = Setup("h100-gpt-oss-120b", 16, 500, 500)


class Comparison(NamedTuple):
    """A simulated cluster behind a router and what was measured of one."""

    setup: Setup
    router: Named
    file: str = ""
    """Empty where nobody measured."""
    columns: str = ""
    """How the names of the file's columns of that router begin."""
    what_if: str = ""
    """What is otherwise than in the measured cluster or its profile; only summed up."""

    @property
    def rule(self) -> str:
        """The router in a few words."""
        return rule_text(self.router)

    def measured(self) -> dict[str, FloatArray]:
        """Each metric that was measured, by stage; NaN where a cell is blank."""
        if not self.file:
            return {}
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
SGLANG = "llmd_qwen3-32b_sglang_token"
AT_RANDOM = "as a Service may do"
GAPS_S = {("round_robin", SCORERS): 0.044, ("llmd_baseline", SCORERS): 0.047}
"""Measured mean times between tokens, as the guide beside that file sums up its stages."""
ALONE = "no shared reads"
AT_BEST = "no shared reads, attention at 3.35 TB/s"
SGLANG_AS_VLLM = "SGLang's servers as vLLM's"
GPT_OSS_RULE = {"name": "llmd_token", "tokens_per_s": 39065}
SGLANG_RULE = {"name": "llmd_token", "tokens_per_s": 30720}
"""Calibrated rates of prefill as the measured files give them."""
COMPARISONS = (
    Comparison(QWEN, "round_robin", SCORERS, "rr"),
    Comparison(QWEN, "round_robin", TOKEN, "rr"),
    Comparison(GPT_OSS, "round_robin", GPT_OSS_TOKEN, "rr"),
    Comparison(QWEN, "llmd_baseline", SCORERS, "llmd"),
    Comparison(QWEN, "llmd_token", TOKEN, "llmd"),
    Comparison(GPT_OSS, GPT_OSS_RULE, GPT_OSS_TOKEN, "llmd"),
    Comparison(QWEN, "smg_cache_aware"),
    Comparison(QWEN, {"name": "smg_cache_aware", "gateways": 2}),
    Comparison(QWEN, "round_robin", SGLANG, "rr", SGLANG_AS_VLLM),
    Comparison(QWEN, SGLANG_RULE, SGLANG, "llmd", SGLANG_AS_VLLM),
    Comparison(QWEN, "random", SCORERS, "rr", AT_RANDOM),
    Comparison(QWEN, "random", TOKEN, "rr", AT_RANDOM),
    Comparison(GPT_OSS, "random", GPT_OSS_TOKEN, "rr", AT_RANDOM),
    Comparison(QWEN._replace(waits=False), "round_robin", TOKEN, "rr", "stages by the clock"),
    Comparison(QWEN._replace(blocks=1.0), "round_robin", SCORERS, "rr", "90% of the memory"),
    Comparison(QWEN._replace(blocks=1.0), "llmd_token", TOKEN, "llmd", "90% of the memory"),
    Comparison(QWEN_AT_BEST, "llmd_baseline", SCORERS, "llmd", AT_BEST),
    Comparison(QWEN_ALONE, "round_robin", SCORERS, "rr", ALONE),
    Comparison(QWEN_ALONE, "round_robin", TOKEN, "rr", ALONE),
    Comparison(QWEN_ALONE, "llmd_baseline", SCORERS, "llmd", ALONE),
    Comparison(QWEN_ALONE, "llmd_token", TOKEN, "llmd", ALONE),
    Comparison(
        GPT_OSS._replace(blocks=1.5), "round_robin", GPT_OSS_TOKEN, "rr", "1.5 times the KV blocks"
    ),
)


def rule_text(router: Named) -> str:
    """Returns a router's name and options as one writes them."""
    if isinstance(router, str):
        return router
    text = rules.rule_text({name: value for name, value in router.items() if name != "gateways"})
    return f"{text}, {router['gateways']} gateways" if "gateways" in router else text


def built(router: Named) -> Router:
    """Returns a router; the option `gateways` says how many copies of it take turns."""
    if isinstance(router, str):
        return make(router)
    rule = make({name: value for name, value in router.items() if name != "gateways"})
    if "gateways" in router:
        told = rule.observation or ObservationConfig()
        rule.observation = replace(told, gateways=router["gateways"])
    return rule


def requests(stages: Stages = STAGES) -> list[int]:
    """Returns the number of requests of each stage."""
    return [rate * duration_s for rate, duration_s in stages]


def replay(setup: Setup, router: Named, seed: int, stages: Stages = STAGES) -> Outcome:
    """Simulates all stages as one run.

    A stage begins when the one before has ended, so they are simulated one after the other, each
    time from the start: what comes later changes nothing of what was.
    """
    rng = np.random.default_rng([seed, 1])
    prompts, cluster = setup.prompts(seed, stages), setup.cluster
    arrived_at_s = np.empty(0)
    start_s = 0.0
    for (rate, duration_s), count in zip(stages, requests(stages), strict=True):
        times = start_s + np.cumsum(rng.exponential(1 / rate, count))
        arrived_at_s = np.concatenate([arrived_at_s, times])
        workload = prompts.slice(0, len(arrived_at_s)).with_arrivals(arrived_at_s)
        outcome = simulate(workload, cluster, built(router), seed=seed)
        end_s = float(outcome.finished_at_s.max()) if setup.waits else start_s + duration_s
        start_s = end_s + APART_S
    return outcome


def by_stage(outcome: Outcome, stages: Stages = STAGES) -> dict[str, FloatArray]:
    """Returns each metric of the stages after the warm-up, shape (n_stages - 1,)."""
    ends = np.cumsum(requests(stages))
    rows = []
    for start, end in pairwise(ends):
        part = np.s_[start:end]
        span_s = outcome.finished_at_s[part].max() - outcome.arrived_at_s[part].min()
        ttft_s = outcome.ttft_s[part]
        tokens = outcome.output_tokens[part].sum()
        quantiles = np.percentile(ttft_s, (50, 90))
        rows.append((tokens / span_s, ttft_s.mean(), *quantiles, outcome.tpot_s[part].mean()))
    return dict(zip((*METRICS, GAP), np.array(rows).T, strict=True))


class Result(NamedTuple):
    """What was measured and what was simulated, by metric."""

    comparison: Comparison
    measured: dict[str, FloatArray]
    """Shape (n_stages,)."""
    runs: dict[str, FloatArray]
    """Shape (seeds, n_stages)."""

    @property
    def ttft(self) -> str:
        """The TTFT that was measured: the median where there is one, else the mean or P90."""
        return next((one for one in MIDDLE if one in self.measured), MIDDLE[0])

    def mean(self, metric: str) -> FloatArray:
        """Returns the mean over the seeds, shape (n_stages,)."""
        return np.asarray(self.runs[metric].mean(axis=0))

    @property
    def gap_s(self) -> float:
        """The mean time between tokens over all requests after the warm-up, seconds."""
        return float(np.average(self.mean(GAP), weights=requests()[1:]))


def paired(results: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Returns each result of another rule with that of round robin in the same file.

    Where a comparison says what is otherwise, round robin's is the one of the same words, or else
    that of the cluster as it was.
    """
    base = {
        (one.comparison.file, one.comparison.what_if): one
        for one in results
        if one.comparison.router == "round_robin"
    }
    return [
        (one, base.get((one.comparison.file, one.comparison.what_if)) or base[file, ""])
        for one in results
        if (file := one.comparison.file) and one.comparison.columns == "llmd"
    ]


def simulate_all(seeds: int) -> list[Result]:
    """Simulates each cluster once, however many measurements it is compared with."""
    known: dict[tuple[Setup, str], dict[str, FloatArray]] = {}
    results = []
    for one in COMPARISONS:
        key = (one.setup, repr(one.router))
        if key not in known:
            outcomes = (replay(one.setup, one.router, seed) for seed in range(seeds))
            runs = [by_stage(outcome) for outcome in outcomes]
            known[key] = {metric: np.array([run[metric] for run in runs]) for metric in runs[0]}
        results.append(Result(one, one.measured(), known[key]))
    return results
