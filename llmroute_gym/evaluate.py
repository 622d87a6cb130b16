"""Compares routers and a trained policy on common requests: ``python -m llmroute_gym.evaluate``."""

from llmroute_gym.compare.entrants import POLICY, rule_routers
from llmroute_gym.compare.report import report, title_of
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.config import EvaluateConfig, TrainingConfig
from llmroute_gym.routers import Router
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length


def evaluate(settings: EvaluateConfig) -> None:
    """Compares the routers that the settings name; writes and prints the comparison.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    evaluation, observation = settings.evaluation, settings.observation
    cluster = build_cluster(settings.cluster)
    routers = rule_routers(evaluation, with_policy=settings.checkpoint is not None)
    if settings.checkpoint is not None:
        routers = {POLICY: load_policy(settings, len(cluster)), **routers}
    source = build_source(settings.workload, settings.workload.rate(TrainingConfig.qps))
    check_trace_length(source, {"evaluation.requests": evaluation.requests})
    workloads = common_workloads(source, cluster, evaluation)
    with RunFolder(settings.run_dir) as folder:
        folder.write_settings(settings)
        title = title_of(settings, source.qps)
        report(routers, workloads, cluster, evaluation, observation, folder, title)


def load_policy(settings: EvaluateConfig, replicas: int) -> Router:
    """Loads the checkpoint of the settings as a router.

    Raises:
        InputError: there is none, or it was trained on another observation.
    """
    import torch

    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import PolicyRouter

    assert settings.checkpoint is not None
    checkpoint = Checkpoint.load(
        settings.checkpoint, trusted=settings.trusted, observation=settings.observation
    )
    checkpoint.check_fits(replicas, settings.observation)
    # As in training: the networks are so small that more threads only wait for each other.
    torch.set_num_threads(TrainingConfig.torch_threads)
    return PolicyRouter(checkpoint)


def main() -> None:
    """Runs the command."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
