"""Known results of rules on equal replicas: their order, and the herd that old metrics make."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llmroute_gym.compare.capacity import estimated_capacity
from llmroute_gym.compare.statistics import Estimate, Resampling, change, estimate
from llmroute_gym.config import EvaluationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, PoissonArrivals, SyntheticWorkload, azure_conv

PROFILE = "a100-internlm-20b"
SCHEDULER = "chunked"
MAX_TOKENS = 4096
"""Of a request, prompt and output."""
LOAD = 0.7
"""Of what the cluster can serve."""
ORDER = ("lor", "power_of_two", "random")
"""Each is to be no worse than the next in mean E2E."""
POLLS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FRESH_S, STALE_S = 0.1, 5.0
HERD_REPLICAS = 8


class Latencies(NamedTuple):
    """What a rule achieved in every run."""

    e2e_s: FloatArray
    """(n_runs, n_requests)"""
    ttft_s: FloatArray
    """(n_runs, n_requests)"""


class Compared(NamedTuple):
    """A number of a rule, and the same over that of another rule, with intervals."""

    rule: str
    value: Estimate
    ratio: Estimate


def equal_replicas(replicas: int) -> Cluster:
    """Returns equal replicas."""
    return Cluster.from_profile(PROFILE, replicas, scheduler=SCHEDULER)


def source_at(cluster: Cluster, load: float = LOAD) -> SyntheticWorkload:
    """Returns Poisson arrivals of Azure's lengths at a share of the cluster's capacity."""
    source = SyntheticWorkload(azure_conv(max_total_tokens=MAX_TOKENS), PoissonArrivals(), 1.0)
    return source.with_qps(load * estimated_capacity(cluster, source))


def serve(
    cluster: Cluster, source: SyntheticWorkload, rules: Sequence[str], runs: int, requests: int
) -> dict[str, Latencies]:
    """Lets every rule serve the same workloads."""
    workloads = [source.sample(requests, np.random.default_rng([0, run])) for run in range(runs)]
    found = {}
    for rule in rules:
        outcomes = [simulate(one, cluster, rule, seed=run) for run, one in enumerate(workloads)]
        e2e_s = np.array([one.finished_at_s - one.arrived_at_s for one in outcomes])
        found[rule] = Latencies(e2e_s, np.array([one.ttft_s for one in outcomes]))
    return found


def resampling(runs: int) -> Resampling:
    """Returns how often each run counts, the same for all that is compared."""
    return Resampling.of_runs(runs, EvaluationConfig(runs=runs))


def means(found: Mapping[str, Latencies]) -> list[Compared]:
    """Returns the mean E2E of each rule, and over that of the rule after it, 1 for the last."""
    n_runs = len(next(iter(found.values())).e2e_s)
    counts = resampling(n_runs).runs
    drawn = {rule: counts @ one.e2e_s.mean(axis=1) / n_runs for rule, one in found.items()}
    each = list(drawn.values())
    after = [*each[1:], each[-1]]
    return [
        Compared(rule, estimate(drawn[rule]), estimate(1 + change(drawn[rule], other)))
        for rule, other in zip(drawn, after, strict=True)
    ]


def p99s(found: Mapping[str, Latencies], baseline: str) -> dict[str, Compared]:
    """Returns the P99 TTFT of each rule over all requests, and over that of the baseline."""
    sampled = resampling(len(found[baseline].ttft_s))
    drawn = {
        rule: sampled.percentiles(one.ttft_s[None, None], (99.0,))[:, 0]
        for rule, one in found.items()
    }
    return {
        rule: Compared(rule, estimate(each), estimate(1 + change(each, drawn[baseline])))
        for rule, each in drawn.items()
    }


def herd_rule(poll_s: float) -> str:
    """Returns vLLM's balancer with metrics of that age."""
    return f"vllm_dp:poll_s={poll_s:g}"


def herd(
    runs: int, requests: int, polls: Sequence[float] = POLLS, load: float = LOAD
) -> dict[str, Compared]:
    """Returns the P99 TTFT over the age of the metrics, beside `random` and `lor`."""
    cluster = equal_replicas(HERD_REPLICAS)
    rules = ["random", "lor", *map(herd_rule, polls)]
    return p99s(serve(cluster, source_at(cluster, load), rules, runs, requests), "random")
