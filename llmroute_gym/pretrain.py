"""Clones routers into a policy to start PPO from: ``python -m llmroute_gym.pretrain``."""

from llmroute_gym.compare.entrants import POLICY, rule_routers
from llmroute_gym.compare.report import report, title_of
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.config import PretrainConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import MODEL_FILE, RunFolder
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.training.comparison import comparison


def pretrain(settings: PretrainConfig) -> float:
    """Clones demonstrations into a policy, keeps it, and compares it with those it imitates.

    Args:
        settings: of the whole run.

    Returns:
        The clone's P99 end-to-end latency in seconds.

    Raises:
        InputError: a setting or the demonstrations are wrong; nothing is written then.
    """
    if settings.demos is None:
        raise InputError(
            "demos is missing; give demos=FILE, which python -m llmroute_gym.collect_demos writes"
        )
    cluster = build_cluster(settings.cluster)
    demos = Demos.load(settings.demos)
    demos.check_fits(len(cluster), settings.observation)
    demos.check_returns(settings.reward, settings.training.gamma, settings.cluster)
    evaluation = comparison(settings.evaluation, demos)
    rules = rule_routers(evaluation, with_policy=True)
    source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
    check_trace_length(source, {"evaluation.requests": evaluation.requests})
    workloads = common_workloads(source, cluster, evaluation)
    # Slow to import: only once the settings have proved right.
    from llmroute_gym.sb3.policy_router import PolicyRouter
    from llmroute_gym.training import imitation

    with RunFolder(settings.run_dir) as folder:
        checkpoint, cloning = imitation.clone_checkpoint(settings, cluster, source, demos)
        accuracies = imitation.measure(checkpoint, cloning)
        folder.write_settings(settings)
        with folder.writing(MODEL_FILE) as part:
            checkpoint.save(part)
        imitation.write_imitation(folder, accuracies, cloning)
        print(imitation.accuracy_table(accuracies, cloning))
        results = report(
            {POLICY: PolicyRouter(checkpoint), **rules},
            workloads,
            cluster,
            evaluation,
            settings.observation,
            folder,
            title_of(settings, source.qps),
        )
    return results[0].metrics["e2e_p99_s"].value


def main() -> None:
    """Runs the command."""
    run_command("pretrain", pretrain)


if __name__ == "__main__":
    main()
