"""A comparison from its requests to its files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from llmroute_gym.compare.pictures import plot_latencies
from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.statistics import COLUMNS, PAIRED, Estimate, RouterResult, compare
from llmroute_gym.compare.text import table
from llmroute_gym.config import (
    EvaluateConfig,
    EvaluationConfig,
    ObservationConfig,
    PretrainConfig,
    ScenarioConfig,
    TrainConfig,
)
from llmroute_gym.ground.metrics import METRICS
from llmroute_gym.ground.rules import rule_title
from llmroute_gym.routers import Router
from llmroute_gym.runs.folder import ALL_METRICS, FINISHED, RunFolder
from llmroute_gym.sim import Cluster, Workload

DESCRIBED = ("unit", "title", "definition")
"""What ``comparison_full.csv`` tells of each metric."""


def write_comparison(results: Sequence[RouterResult], path: Path) -> None:
    """Writes one line per router: each metric, each difference, and the ends of its interval."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["router"]
        for name in [*COLUMNS, *(f"{name}_vs_baseline" for name in PAIRED)]:
            header += [name, f"{name}_low", f"{name}_high"]
        writer.writerow(header)
        for result in results:
            line = [result.router]
            for name in COLUMNS:
                line += cells(result.metrics[name])
            for name in PAIRED:
                line += cells(result.differences.get(name))
            writer.writerow(line)


def write_all_metrics(results: Sequence[RouterResult], path: Path) -> None:
    """Writes one line per router and metric, latencies over all and over served requests."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*("router", "metric", "requests", "value", "low", "high"), *DESCRIBED])
        for result in results:
            for requests, metrics in (("all", result.metrics), ("served", result.served)):
                for key, one in metrics.items():
                    words = [getattr(METRICS[key], name) for name in DESCRIBED]
                    writer.writerow([result.router, key, requests, *cells(one), *words])


def cells(estimate: Estimate | None) -> list[str]:
    """Returns value, low end and high end for a CSV file, blank where there is none."""
    if estimate is None:
        return ["", "", ""]
    return [f"{number:.6g}" for number in (estimate.value, estimate.low, estimate.high)]


PICTURE = "latency_cdf.png"


def title_of(
    settings: TrainConfig | EvaluateConfig | PretrainConfig | ScenarioConfig, qps: float
) -> str:
    """Says what is compared: the requests, their rate in requests/s, and the replicas."""
    workload, cluster = settings.workload, settings.cluster
    replayed = workload.source == "trace"
    requests = Path(str(workload.path)).name if replayed else workload.source
    if workload.source == "synthetic":
        requests = str(workload.lengths.get("model"))
    process = str(workload.arrivals.get("process"))
    arrivals = f"{'its own' if replayed and process == 'trace' else process} arrivals"
    rate = f"{qps:g} requests/s ({arrivals})"
    if workload.own_rate:
        rate = f"its own rate ({qps:.3g} requests/s, {arrivals})"
    return f"{requests} at {rate} to {cluster.title()}"


def report(
    routers: Mapping[str, Router],
    workloads: Sequence[Workload],
    cluster: Cluster,
    config: EvaluationConfig,
    observation: ObservationConfig,
    folder: RunFolder,
    title: str,
) -> list[RouterResult]:
    """Runs the comparison, prints its table and writes its picture and its files.

    Args:
        routers: name to router.
        workloads: the common requests.
        cluster: what they are routed to.
        config: how much is compared.
        observation: what the routers are told.
        folder: what is written to; the comparison comes last and marks the run as finished.
        title: of the picture and the table.

    Returns:
        One result per router.
    """
    baseline = config.baseline or rule_title(next(iter(config.routers or routers)))
    outcomes = {}
    with tqdm(total=len(routers) * len(workloads), desc="evaluation", unit="run") as bar:
        for name, router in routers.items():
            outcomes[name] = serve(router, workloads, cluster, config, observation, bar.update)
    results = compare(outcomes, baseline, config, len(cluster))
    with folder.writing(PICTURE) as part:
        plot_latencies(outcomes, part, title)
    with folder.writing(ALL_METRICS) as part:
        write_all_metrics(results, part)
    with folder.writing(FINISHED) as part:
        write_comparison(results, part)
    print(f"\n{title}\n{table(results, baseline, config)}\n\nresults: {folder.path}")
    return results
