"""Compares routers and a trained policy on common requests: ``python -m llmroute_gym.evaluate``."""

import logging
from collections.abc import Mapping

from tqdm import tqdm

from llmroute_gym.build import build_cluster, build_source
from llmroute_gym.commands import run_command
from llmroute_gym.comparison import (
    RouterResult,
    common_workloads,
    compare,
    serve,
    table,
    write_comparison,
)
from llmroute_gym.config import EvaluateConfig, EvaluationConfig, ObservationConfig
from llmroute_gym.plots import plot_latencies
from llmroute_gym.routers import Router, make
from llmroute_gym.run_folder import FINISHED, RunFolder
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.workload import WorkloadSource

log = logging.getLogger(__name__)

PICTURE = "latency_cdf.png"


def evaluate(settings: EvaluateConfig) -> None:
    """Compares the routers that the settings name; writes and prints the comparison.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    cluster = build_cluster(settings.cluster)
    source = build_source(settings.workload, settings.qps)
    routers = {name: make(name) for name in settings.routers}
    if settings.checkpoint is not None:
        routers = {"policy": load_policy(settings, len(cluster)), **routers}
    folder = RunFolder(settings.run_dir)
    folder.write_settings(settings)
    title = f"{settings.qps:g} requests/s to {len(cluster)} x {settings.cluster.profile}"
    report(routers, source, cluster, settings, settings.observation, folder, title)


def load_policy(settings: EvaluateConfig, replicas: int) -> Router:
    """Loads the checkpoint of the settings as a router.

    Raises:
        InputError: there is none, or it was trained on another observation.
    """
    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import PolicyRouter

    assert settings.checkpoint is not None
    checkpoint = Checkpoint.load(settings.checkpoint)
    checkpoint.check_fits(replicas, settings.observation)
    return PolicyRouter(checkpoint)


def report(
    routers: Mapping[str, Router],
    source: WorkloadSource,
    cluster: Cluster,
    config: EvaluationConfig,
    observation: ObservationConfig,
    folder: RunFolder,
    title: str,
) -> list[RouterResult]:
    """Runs the comparison, prints its table and writes its picture and ``comparison.csv``.

    Args:
        routers: name to router.
        source: what the common requests are drawn from.
        cluster: what they are routed to.
        config: how much is compared.
        observation: what the routers are told.
        folder: what is written to; the comparison comes last and marks the run as finished.
        title: of the picture and the table.

    Returns:
        One result per router.
    """
    workloads = common_workloads(source, config)
    outcomes = {}
    with tqdm(total=len(routers) * len(workloads), desc="evaluation", unit="run") as bar:
        for name, router in routers.items():
            outcomes[name] = serve(router, workloads, cluster, config, observation, bar.update)
    results = compare(outcomes, config)
    with folder.writing(PICTURE) as part:
        plot_latencies(outcomes, part, title)
    with folder.writing(FINISHED) as part:
        write_comparison(results, part)
    print(f"\n{title}\n{table(results, config)}\n\nresults: {folder.path}")
    return results


def main() -> None:
    """Runs the command."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
