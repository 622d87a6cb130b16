"""Trains a router and compares it with rules: ``python -m llmroute_gym.train``."""

import logging
from dataclasses import replace
from pathlib import Path

from llmroute_gym.compare.entrants import POLICY, rule_routers
from llmroute_gym.compare.report import PICTURE, report, title_of
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.config import TrainConfig
from llmroute_gym.routers import make
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import CONFIG_FILE, FINISHED, MODEL_FILE, STATE_FILE, RunFolder
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.training.resuming import check_state, interrupted

log = logging.getLogger(__name__)

DASHBOARD = "training.png"


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
    settings = with_whole_paths(settings)
    if settings.resume is not None:
        settings = interrupted(settings)
    _warn_of_unread(settings)
    cluster = build_cluster(settings.cluster)
    make(settings.stabilization.policy)
    rules = rule_routers(settings.evaluation, with_policy=True)
    source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
    settings = settings.at_rate(source.qps)
    episode, run = settings.env.requests_per_episode, settings.evaluation.requests
    check_trace_length(source, {"env.requests_per_episode": episode, "evaluation.requests": run})
    workloads = common_workloads(source, cluster, settings.evaluation)
    # Slow to import: only once the settings have proved right.
    from llmroute_gym.sb3.policy_router import PolicyRouter
    from llmroute_gym.training.dashboard import plot_training
    from llmroute_gym.training.learning import learn
    from llmroute_gym.training.tracking import METRICS_FILE, wandb_run
    from llmroute_gym.training.warm_start import WarmStart

    if settings.resume is None:
        start = WarmStart.find(settings)
    else:
        check_state(settings)
        start = WarmStart(None, None, None, collects=False)
    results = (CONFIG_FILE, MODEL_FILE, FINISHED, PICTURE, DASHBOARD)
    with (
        RunFolder(settings.run_dir, resuming=settings.resume is not None) as folder,
        wandb_run(settings, folder, results),
    ):
        folder.write_settings(replace(settings, resume=None))
        checkpoint = learn(settings, cluster, source, folder, start)
        with folder.writing(DASHBOARD) as part:
            plot_training(folder.path / METRICS_FILE, part)
        compared = report(
            {POLICY: PolicyRouter(checkpoint), **rules},
            workloads,
            cluster,
            settings.evaluation,
            settings.observation,
            folder,
            title_of(settings, source.qps),
        )
        (folder.path / STATE_FILE).unlink(missing_ok=True)
    return compared[0].metrics["e2e_p99_s"].value


def with_whole_paths(settings: TrainConfig) -> TrainConfig:
    """Returns the settings with paths that hold in every folder, for whoever goes on elsewhere."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    workload, start = settings.workload, settings.warm_start
    return replace(
        settings,
        workload=replace(workload, path=whole(workload.path)),
        warm_start=replace(start, checkpoint=whole(start.checkpoint), demos=whole(start.demos)),
    )


def _warn_of_unread(settings: TrainConfig) -> None:
    start, stabilization = settings.warm_start, settings.stabilization
    for group, why in (
        (start, "warm_start.cloning=false"),
        (stabilization, "stabilization.enabled=false"),
        (settings.curriculum, "curriculum.stages=[]"),
    ):
        for key in group.unread():
            value = getattr(group, key)
            log.warning("%s.%s=%s has no effect with %s", group.group, key, value, why)
    fills = stabilization.enabled or start.cloning or start.checkpoint is not None
    if stabilization.freeze and not fills:
        log.warning(
            "stabilization.freeze=true has no effect with stabilization.enabled=false and without "
            "a warm start: nothing fills the statistics before PPO"
        )


def main() -> None:
    """Runs the command."""
    run_command("train", train)


if __name__ == "__main__":
    main()
