"""Where prefixes are cached, metrics old or gateways many: headroom, tuned rules, a learned rule.

    python benchmarks/headroom.py                 # measures
    python benchmarks/headroom.py --write         # and writes the page
    python benchmarks/headroom.py --learned RULE  # another rule, or the YAML file of one

Every production rule that looks at prefixes is tuned by P99 TTFT in every scenario by `python -m
llmroute_gym.search`, with the same budget and on workloads of its own; what is finished is kept in
`--folder`. All meet on the workloads of the suite, on which none was tuned; the intervals are those
of the paired bootstrap over runs.
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from headroom_page import PAGE, write_page
from measuring import DATA, ROOT, origin

from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.statistics import Estimate, Resampling, estimate
from llmroute_gym.compare.suites.scenarios import (
    BuiltScenario,
    read_scenario,
    settled,
    slow_until_s,
)
from llmroute_gym.config import EvaluationConfig, ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import make
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.outcome import latency_s

UNCACHED = ("stale_100ms", "stale_5s", "stale_10s", "gateways_2", "gateways_4")
"""Scenarios without prefix caches, where what prefixes are looked up in makes no difference."""
SCENARIOS = (
    *("shared_prefix_3", "shared_prefix_6", "shared_prefix_10", "multi_turn", "agent_loop"),
    *("mooncake", *UNCACHED),
)
RUNS = 20
FEWER = {"mooncake": 10}
"""Its trace has no more windows that share no request."""
REQUESTS = 2000
"""Of a run, where the scenario does not say it."""
SIMPLE = ("round_robin", "lor", "lor_hybrid", "speed_lor", "least_tokens", "jsq", "power_of_two")
TUNED = (
    *("vllm_router_cache_aware", "smg_cache_aware", "smg_cache_aware:view=events", "aibrix_prefix"),
    *("llmd_default", "llmd_default:view=events", "llmd_baseline", "llmd_token"),
    *("llmd_token:view=events", "preble", "ray_prefix", "dynamo_kv", "smetric"),
)
UNTUNED = ("lmetric", "session_hash", "sticky_least_loaded")
"""Prefix and session rules without constants of that kind; they are in every comparison."""
ORACLE, ORACLE_RUNS = "oracle", {"multi_turn": 5, "agent_loop": 5}
"""It gets fewer runs where a decision takes it milliseconds."""
METRICS = {"ttft_p99_s": "ttft", "e2e_p99_s": "e2e"}
TUNED_BY, BUDGET, TUNING_SEED = "ttft_p99_s", 150, 14
RULE = ("learned", "learned")
RESULTS = ROOT / "benchmarks" / "headroom.csv"


class Row(NamedTuple):
    """A line of the table of results."""

    scenario: str
    metric: str
    kind: str
    router: str
    seconds: Estimate
    learned_over_it: Estimate
    over_simple: Estimate


def to_tune(scenario: str) -> list[str]:
    """Returns the rules to tune in a scenario."""
    return [rule for rule in TUNED if scenario not in UNCACHED or ":view=" not in rule]


def tuned_file(folder: Path, scenario: str, rule: str) -> Path:
    """Returns where a tuned rule stands."""
    return folder / scenario / rule.replace(":view=", "_") / "router.yaml"


def tune(folder: Path, scenario: str, rule: str, traces: Path) -> None:
    """Tunes a rule in one scenario, unless that is done."""
    file = tuned_file(folder, scenario, rule)
    if file.is_file():
        return
    words = {
        "search.router": f"'{rule}'",
        "search.scenarios": f"[{scenario}]",
        "search.metric": TUNED_BY,
        "search.budget": BUDGET,
        "search.runs": 2,
        "search.final_runs": 20,
        "search.seed": TUNING_SEED,
        "traces": traces,
        "run_dir": file.parent,
    }
    command = [sys.executable, "-m", "llmroute_gym.search"]
    command += [f"{key}={value}" for key, value in words.items()]
    if file.parent.is_dir():
        command = [*command[:3], f"resume={file.parent}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


class Course(NamedTuple):
    """The runs of a scenario, common to all rules."""

    name: str
    workloads: Sequence[Workload]
    clusters: Sequence[Cluster]
    evaluation: EvaluationConfig
    view: Mapping[str, object]

    @classmethod
    def of(cls, name: str, traces: Path) -> "Course":
        """Draws them as the suite does."""
        scenario, _ = settled(read_scenario(name), traces)
        config = EvaluationConfig(
            runs=FEWER.get(name, RUNS), requests=scenario.requests or REQUESTS
        )
        built = BuiltScenario.of(scenario)
        workloads = [built.workload(run, config) for run in range(config.runs)]
        clusters = [
            built.replicas(run, config, slow_until_s(workload))
            for run, workload in enumerate(workloads)
        ]
        return cls(name, workloads, clusters, config, scenario.view)

    def latencies(self, rule: str, runs: int) -> dict[str, FloatArray]:
        """Returns each latency, (n_runs, n_requests), of the first runs."""
        outcomes = serve(
            *(make(rule), self.workloads[:runs], self.clusters[:runs], self.evaluation),
            ObservationConfig(),
            view=self.view,
        )
        return {
            name: np.array([latency_s(one, name) for one in outcomes]) for name in METRICS.values()
        }

    def oracle_file(self, folder: Path) -> Path:
        """Returns where those of the oracle are kept; it needs no view, so some share them."""
        return folder / ORACLE / f"{UNCACHED[0] if self.name in UNCACHED else self.name}.npz"

    def oracle(self, folder: Path) -> dict[str, FloatArray]:
        """Returns those of the oracle."""
        kept = self.oracle_file(folder)
        if not kept.is_file():
            runs = ORACLE_RUNS.get(self.name, self.evaluation.runs)
            found = self.latencies(ORACLE, runs)
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, ttft=found["ttft"], e2e=found["e2e"])
        with np.load(kept) as file:
            return dict(file)

    def p99s(self, latencies: Mapping[str, FloatArray], runs: int) -> dict[str, FloatArray]:
        """Returns P99 by latency: of the first runs, then of those that each resampling takes."""
        counts = Resampling.of_runs(runs, self.evaluation)
        return {
            name: counts.percentiles(each[None, None, :runs], (99.0,))[:, 0]
            for name, each in latencies.items()
        }


def rows_of(course: Course, learned: str, folder: Path, *, oracle: bool) -> Iterator[Row]:
    """Yields the results of a scenario."""
    files = {rule: tuned_file(folder, course.name, rule) for rule in to_tune(course.name)}
    rules = {("simple", rule): rule for rule in SIMPLE}
    rules |= {("as shipped", rule): rule for rule in (*TUNED, *UNTUNED)}
    rules |= {("tuned", rule): str(file) for rule, file in files.items() if file.is_file()}
    rules[RULE] = learned
    runs = course.evaluation.runs
    found = {key: course.latencies(rule, runs) for key, rule in rules.items()}
    if oracle or course.oracle_file(folder).is_file():
        found[ORACLE, ORACLE] = course.oracle(folder)
    every = {key: course.p99s(one, min(runs, len(one["e2e"]))) for key, one in found.items()}
    for metric, latency in METRICS.items():
        simple = min(
            (key for key in every if key[0] == "simple"), key=lambda key: every[key][latency][0]
        )
        for key, one in every.items():
            same = len(found[key]["e2e"])
            both = [course.p99s(found[rule], same)[latency] for rule in (RULE, simple)]
            ratios = both[0] / one[latency], one[latency] / both[1]
            yield Row(course.name, metric, *key, estimate(one[latency]), *map(estimate, ratios))


def write_rows(rows: Sequence[Row]) -> None:
    """Writes the table of results."""
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        each = ("seconds", "learned_over_it", "over_simple")
        heads = [f"{name}{end}" for name in each for end in ("", "_low", "_high")]
        lines.writerow(["scenario", "metric", "kind", "router", *heads])
        for row in rows:
            numbers = [value for one in row[4:] for value in (one.value, one.low, one.high)]
            lines.writerow([*row[:4], *(f"{number:.5g}" for number in numbers)])


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learned", default="frontier_prefix", help="a rule, or its YAML file")
    parser.add_argument("--folder", type=Path, default=Path("runs/headroom"))
    parser.add_argument("--traces", type=Path, default=DATA / "traces")
    parser.add_argument("--scenarios", nargs="*", default=SCENARIOS)
    parser.add_argument("--no-tuning", action="store_true", help="compare what is tuned")
    parser.add_argument("--no-oracle", action="store_true", help="only where it is kept")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and pictures")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.scenarios:
        if not options.no_tuning:
            for rule in to_tune(name):
                tune(options.folder, name, rule, options.traces)
        course = Course.of(name, options.traces)
        found = list(rows_of(course, options.learned, options.folder, oracle=not options.no_oracle))
        for metric in METRICS:
            for kind in ("simple", "as shipped", "tuned", ORACLE):
                some = [row for row in found if (row.metric, row.kind) == (metric, kind)]
                if some:
                    best = min(some, key=lambda row: row.seconds.value)
                    ratio = best.learned_over_it
                    print(
                        f"{name:17}{metric:11}{kind:11}{best.router:28}{best.seconds.value:8.3f} "
                        f"learned {ratio.value:.3f} ({ratio.low:.3f}..{ratio.high:.3f})",
                        flush=True,
                    )
        rows += found
    if options.write:
        write_rows(rows)
        command = f"python benchmarks/headroom.py --learned {options.learned} --write"
        write_page(RESULTS, origin(command))


if __name__ == "__main__":
    main()
