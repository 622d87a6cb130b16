"""Compares routers and a trained policy on common requests: ``python -m llmroute_gym.evaluate``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from llmroute_gym.comparison import (
    RouterResult,
    common_workloads,
    compare,
    serve,
    table,
    write_comparison,
)
from llmroute_gym.config import (
    EvaluateConfig,
    EvaluationConfig,
    ObservationConfig,
    PretrainConfig,
    TrainConfig,
    TrainingConfig,
    check_distinct,
)
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.plots import plot_latencies
from llmroute_gym.routers import Router, make
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import FINISHED, RunFolder
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length

PICTURE = "latency_cdf.png"
POLICY = "policy"


def evaluate(settings: EvaluateConfig) -> None:
    """Compares the routers that the settings name; writes and prints the comparison.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    cluster = build_cluster(settings.cluster)
    routers = rule_routers(settings, with_policy=settings.checkpoint is not None)
    if settings.checkpoint is not None:
        routers = {POLICY: load_policy(settings, len(cluster)), **routers}
    source = build_source(settings.workload, settings.qps)
    check_trace_length(source, {"requests": settings.requests})
    workloads = common_workloads(source, cluster, settings)
    title = title_of(settings)
    with RunFolder(settings.run_dir) as folder:
        folder.write_settings(settings)
        report(routers, workloads, cluster, settings, settings.observation, folder, title)


def title_of(settings: TrainConfig | EvaluateConfig | PretrainConfig) -> str:
    """Says what is compared: the requests, their rate, and the replicas."""
    workload, cluster = settings.workload, settings.cluster
    synthetic = workload.source == "synthetic"
    requests = str(workload.lengths.get("model")) if synthetic else Path(str(workload.path)).name
    process = str(workload.arrivals.get("process"))
    own = not synthetic and process == "trace"
    return (
        f"{requests} at {settings.qps:g} requests/s ({'its own' if own else process} arrivals) to "
        f"{cluster.replicas} x {cluster.profile}"
    )


def rule_routers(config: EvaluationConfig, *, with_policy: bool) -> dict[str, Router]:
    """Makes the routers that the settings name.

    Args:
        config: the names, and that of the baseline.
        with_policy: whether a policy will be compared too.

    Raises:
        InputError: a name is unknown, none is given, or the baseline is not among them.
    """
    check_distinct("routers", config.routers)
    routers = {name: make(name) for name in config.routers}
    if not routers and not with_policy:
        raise InputError("routers is empty; name at least one, such as routers=[round_robin,lor]")
    compared = [*routers, *([POLICY] if with_policy else [])]
    if config.baseline is not None and config.baseline not in compared:
        raise unknown_name("baseline", config.baseline, compared)
    return routers


def load_policy(settings: EvaluateConfig, replicas: int) -> Router:
    """Loads the checkpoint of the settings as a router.

    Raises:
        InputError: there is none, or it was trained on another observation.
    """
    import torch

    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import PolicyRouter

    assert settings.checkpoint is not None
    checkpoint = Checkpoint.load(settings.checkpoint)
    checkpoint.check_fits(replicas, settings.observation)
    # As in training: the networks are so small that more threads only wait for each other.
    torch.set_num_threads(TrainingConfig.torch_threads)
    return PolicyRouter(checkpoint)


def report(
    routers: Mapping[str, Router],
    workloads: Sequence[Workload],
    cluster: Cluster,
    config: EvaluationConfig,
    observation: ObservationConfig,
    folder: RunFolder,
    title: str,
) -> list[RouterResult]:
    """Runs the comparison, prints its table and writes its picture and ``comparison.csv``.

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
    baseline = config.baseline or next(iter(config.routers or routers))
    outcomes = {}
    with tqdm(total=len(routers) * len(workloads), desc="evaluation", unit="run") as bar:
        for name, router in routers.items():
            outcomes[name] = serve(router, workloads, cluster, config, observation, bar.update)
    results = compare(outcomes, baseline, config)
    with folder.writing(PICTURE) as part:
        plot_latencies(outcomes, part, title)
    with folder.writing(FINISHED) as part:
        write_comparison(results, part)
    print(f"\n{title}\n{table(results, baseline, config)}\n\nresults: {folder.path}")
    return results


def main() -> None:
    """Runs the command."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
