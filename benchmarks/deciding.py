"""How long a decision in service takes, rows included, as a gateway takes it.

A random policy of the default sizes stands for a learned one: its time does not depend on weights.
Run it with OMP_NUM_THREADS=1, as `serve` does: more threads only wait for each other.
"""

import argparse
import os
import sys
import time
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from measuring import load_average, origin, table, write_section

from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.gateway.deciding import Arrival, Decider
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.exported import ExportedPolicy
from llmroute_gym.routers.policy_file import PolicyFile

BARS_US = {4: 150.0, 64: 300.0}
"""Number of backends to the most that a decision may take in the mean, microseconds."""
RULES = ("lor", "power_of_two", "llmd_default:view=tree", "estimated_latency:view=tree")
RULES += ("vllm_router_cache_aware", "smg_cache_aware")
SHARED_BLOCKS, OWN_BLOCKS, CHATS = 12, 20, 200
IN_FLIGHT, RATE_RPS = 8, 100.0
"""Of each backend, requests in flight and requests per second."""


class Times(NamedTuple):
    """Microseconds."""

    router: str
    backends: int
    mean: float
    median: float
    p99: float
    events: float
    """Mean of all that a request's placing, first token and end cost."""


def random_policy() -> Router:
    """Returns a policy over replicas of the default sizes, with all that `router` tells."""
    rng, told = np.random.default_rng(0), ObservationConfig(information="router")
    n_columns, arrays = len(told.columns), {}
    sizes = ModelConfig().actor_sizes
    width = sizes[-1]
    pairs = pairwise([2 * n_columns, *sizes])
    shapes = {f"layers.{i}": (n_out, n_in) for i, (n_in, n_out) in enumerate(pairs)}
    shapes |= {"joint": (width, width), "context": (width, 2 * width)}
    shapes |= {"score": (1, width + n_columns)}
    for name, (n_out, n_in) in shapes.items():
        arrays[f"{name}.weights"] = rng.standard_normal((n_out, n_in)) / n_in**0.5
        arrays[f"{name}.bias"] = np.zeros(n_out)
    arrays |= {name: np.ones(n_columns) for name in ("shift", "factor", "varied")}
    settings: dict[str, Any] = {"activation": "tanh", "temperature": 1.0}
    return ExportedPolicy(PolicyFile("replica_set", told, 4, settings, arrays))


def measure(name: str, router: Router, backends: int, decisions: int) -> Times:
    """Serves conversations at a steady rate; the first tenth warms up."""
    told = ObservationConfig(information="metrics", signal_interval_s=0.25)
    decider = Decider(router, [1.0] * backends, told, np.random.default_rng(0))
    rng, allowed = np.random.default_rng(1), np.ones(backends, dtype=np.bool_)
    kept, gap_s = IN_FLIGHT * backends, 1 / (RATE_RPS * backends)
    decided, told_s = [], []
    for key in range(decisions + decisions // 10):
        now_s, chat = key * gap_s, int(rng.integers(CHATS))
        own = range((chat + 1) << 20, ((chat + 1) << 20) + int(rng.integers(OWN_BLOCKS)))
        blocks = (*range(SHARED_BLOCKS), *own)
        arrival = Arrival(16 * len(blocks) + 9, blocks, chat)
        begun = time.perf_counter()
        replica = decider.decide(arrival, allowed, now_s)
        chosen = time.perf_counter()
        decider.placed(key, arrival, replica, now_s)
        decider.first_token(max(key - kept // 2, 0), now_s)
        decider.ended(key - kept, now_s, served=True)
        done = time.perf_counter()
        decided.append(chosen - begun)
        told_s.append(done - chosen)
    us = 1e6 * np.array(decided[decisions // 10 :])
    mean, median, p99 = us.mean(), np.median(us), np.percentile(us, 99)
    return Times(name, backends, mean, median, p99, 1e6 * float(np.mean(told_s)))


def main() -> None:
    """Measures and prints, or writes the section of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--policy", help="an exported policy in place of the random one")
    parser.add_argument("--write", action="store_true", help="to benchmarks/README.md")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        print("warning: OMP_NUM_THREADS is not 1, so the tail may be long", file=sys.stderr)
    load = load_average()
    rows = []
    for backends, bar in BARS_US.items():
        for name in ("a policy", *RULES):
            policy = make(options.policy) if options.policy else random_policy()
            router = policy if name == "a policy" else make(name)
            one = measure(name, router, backends, options.decisions)
            met = "bar" if one.mean <= bar else "**missed**"
            numbers = (f"{us:.0f}" for us in one[2:])
            rows.append([f"`{name}`" if name in RULES else name, backends, *numbers, f"{bar:g}"])
            rows[-1].append(met)
            print(*rows[-1], flush=True)
    columns = ["router", "backends", "mean, us", "P50", "P99", "events, us", "bar of the mean", ""]
    text = f"## Decisions in service\n\n{origin('python benchmarks/deciding.py --write', load)}\n\n"
    text += "Rows and choice; events: placing, first token and end of a request together.\n\n"
    text += table(columns, rows)
    if options.write:
        write_section("deciding", text)
    else:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
