"""Trains a router and compares it with rules: ``python -m llmroute_gym.train``."""

from dataclasses import replace

from llmroute_gym.compare.entrants import POLICY, rule_routers
from llmroute_gym.compare.report import PICTURE, report, title_of
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.config import TrainConfig
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import CONFIG_FILE, FINISHED, MODEL_FILE, STATE_FILE, RunFolder
from llmroute_gym.runs.resuming import resumed
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.training.checks import check_names, warn_of_unread
from llmroute_gym.training.resuming import check_state, with_whole_paths


def train(settings: TrainConfig) -> float:
    """Trains a policy, keeps it, and compares it with the rules on common requests.

    Args:
        settings: of the whole run.

    Returns:
        The policy's P99 end-to-end latency in seconds, which a sweep may minimise.

    Raises:
        InputError: a setting is wrong, and nothing is written; or the training met numbers that
            are not finite.
    """
    settings = resumed(with_whole_paths(settings))
    warn_of_unread(settings.warm_start, settings.stabilization, settings.curriculum)
    cluster = build_cluster(settings.cluster)
    check_names(settings)
    rules = rule_routers(settings.evaluation, with_policy=True)
    source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
    settings = settings.at_rate(source.qps)
    episode, run = settings.env.requests_per_episode, settings.evaluation.requests
    check_trace_length(source, {"env.requests_per_episode": episode, "evaluation.requests": run})
    workloads = common_workloads(source, cluster, settings.evaluation)
    # Slow to import: only once the settings have proved right.
    from llmroute_gym.sb3.policy_router import router_of
    from llmroute_gym.training.dashboard import DASHBOARD, write_dashboard
    from llmroute_gym.training.learning import learn
    from llmroute_gym.training.own_callbacks import make_callbacks
    from llmroute_gym.training.tracking import wandb_run
    from llmroute_gym.training.warm_start import WarmStart

    if settings.resume is not None:
        check_state(settings)
    start = WarmStart.find(settings, cluster)
    own = make_callbacks(settings.callbacks)
    results = (CONFIG_FILE, MODEL_FILE, FINISHED, PICTURE, DASHBOARD)
    with (
        RunFolder(settings.run_dir, resuming=settings.resume is not None) as folder,
        wandb_run(settings, folder, results),
    ):
        folder.write_settings(replace(settings, resume=None))
        checkpoint = learn(settings, cluster, source, folder, start, own)
        write_dashboard(folder)
        compared = report(
            {POLICY: router_of(checkpoint), **rules},
            workloads,
            cluster,
            settings.evaluation,
            settings.observation,
            folder,
            title_of(settings, source.qps),
        )
        (folder.path / STATE_FILE).unlink(missing_ok=True)
    return compared[0].metrics["e2e_p99_s"].value


def main() -> None:
    """Runs the command."""
    run_command("train", train)


if __name__ == "__main__":
    main()
