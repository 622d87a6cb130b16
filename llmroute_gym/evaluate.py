"""Compares routers and a trained policy on common requests: ``python -m llmroute_gym.evaluate``."""

from functools import partial

from llmroute_gym.compare.entrants import POLICY, rule_routers
from llmroute_gym.compare.report import report, title_of
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.suites.report import report_suite
from llmroute_gym.config import EvaluateConfig, TrainingConfig
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.training.entrant import policy_router


def evaluate(settings: EvaluateConfig) -> None:
    """Compares the routers that the settings name; writes and prints the comparison.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    if settings.suite is not None:
        report_suite(settings, settings.suite, partial(policy_router, trusted=settings.trusted))
        return
    evaluation, observation = settings.evaluation, settings.observation
    cluster = build_cluster(settings.cluster)
    routers = rule_routers(evaluation, with_policy=settings.checkpoint is not None)
    if settings.checkpoint is not None:
        given = (settings.checkpoint, len(cluster), observation)
        routers = {POLICY: policy_router(*given, trusted=settings.trusted), **routers}
    source = build_source(settings.workload, settings.workload.rate(TrainingConfig.qps))
    check_trace_length(source, {"evaluation.requests": evaluation.requests})
    workloads = common_workloads(source, cluster, evaluation)
    with RunFolder(settings.run_dir) as folder:
        folder.write_settings(settings)
        title = title_of(settings, source.qps)
        report(routers, workloads, cluster, evaluation, observation, folder, title)


def main() -> None:
    """Runs the command."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
