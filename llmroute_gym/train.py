"""Trains a router and compares it with rules: ``python -m llmroute_gym.train``."""

from llmroute_gym.build import build_cluster, build_source
from llmroute_gym.commands import run_command
from llmroute_gym.comparison import common_workloads
from llmroute_gym.config import TrainConfig
from llmroute_gym.evaluate import POLICY, report, rule_routers
from llmroute_gym.run_folder import RunFolder


def train(settings: TrainConfig) -> float:
    """Trains a policy, keeps it, and compares it with the rules on common requests.

    Args:
        settings: of the whole run.

    Returns:
        The policy's P99 end-to-end latency in seconds, which a sweep may minimise.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    cluster = build_cluster(settings.cluster)
    rules = rule_routers(settings.evaluation, with_policy=True)
    source = build_source(settings.workload, settings.qps)
    workloads = common_workloads(source, cluster, settings.evaluation)
    # Slow to import: only once the settings have proved right.
    from llmroute_gym.sb3.checkpoint import MODEL_FILE
    from llmroute_gym.sb3.policy_router import PolicyRouter
    from llmroute_gym.training import learn, wandb_run

    folder = RunFolder(settings.run_dir)
    folder.write_settings(settings)
    with wandb_run(settings, folder):
        checkpoint = learn(settings, cluster, source, folder)
        with folder.writing(MODEL_FILE) as part:
            checkpoint.save(part)
        results = report(
            {POLICY: PolicyRouter(checkpoint), **rules},
            workloads,
            cluster,
            settings.evaluation,
            settings.observation,
            folder,
            f"{settings.qps:g} requests/s to {len(cluster)} x {settings.cluster.profile}",
        )
    return results[0].metrics["e2e_p99_s"].value


def main() -> None:
    """Runs the command."""
    run_command("train", train)


if __name__ == "__main__":
    main()
