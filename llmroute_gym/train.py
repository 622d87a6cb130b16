"""Trains a router and compares it with rules: ``python -m llmroute_gym.train``."""

import logging
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmroute_gym.build import build_cluster, build_source, check_trace_length
from llmroute_gym.commands import run_command, typed_overrides
from llmroute_gym.comparison import common_workloads
from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import PICTURE, POLICY, report, rule_routers, title_of
from llmroute_gym.routers import make
from llmroute_gym.run_folder import (
    CONFIG_FILE,
    FINISHED,
    MODEL_FILE,
    STATE_FILE,
    RunFolder,
    read_training_settings,
)

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
    source = build_source(settings.workload, settings.qps)
    episode, run = settings.env.requests_per_episode, settings.evaluation.requests
    check_trace_length(source, {"env.requests_per_episode": episode, "evaluation.requests": run})
    workloads = common_workloads(source, cluster, settings.evaluation)
    # Slow to import: only once the settings have proved right.
    from llmroute_gym.plots import plot_training
    from llmroute_gym.sb3.policy_router import PolicyRouter
    from llmroute_gym.tracking import METRICS_FILE, wandb_run
    from llmroute_gym.training import check_interrupted, learn
    from llmroute_gym.warm_start import WarmStart

    if settings.resume is None:
        start = WarmStart.find(settings)
    else:
        check_interrupted(settings)
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
            title_of(settings),
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


def interrupted(settings: TrainConfig) -> TrainConfig:
    """Returns the settings of the run that is to be resumed.

    Raises:
        InputError: there is no such run, it is finished, or other settings were given too.
    """
    assert settings.resume is not None
    folder = Path(settings.resume)
    if not settings.resume.strip():
        raise InputError("resume is empty; give the folder of an interrupted run")
    if not folder.is_dir():
        raise InputError(f"resume={folder} is no folder; give the folder of an interrupted run")
    if (folder / FINISHED).exists():
        raise InputError(f"resume={folder}: the run is finished, there is nothing to go on with")
    stored = read_training_settings(folder)
    known, given, default = (_flat(asdict(one)) for one in (stored, settings, TrainConfig()))
    for key in sorted(set(known) - {"run_dir", "resume"}):
        unsaid = given[key] == default[key] and not _typed_settings()
        if given[key] != known[key] and not unsaid:
            raise InputError(
                f"resume={folder} goes on with {key}={known[key]}, got {given[key]}; give no other "
                "settings, or start a new run"
            )
    if Path(settings.run_dir).resolve() != folder.resolve():
        if any(one.startswith("run_dir=") for one in typed_overrides()):
            raise InputError(
                f"resume={folder} goes on in its own folder, got run_dir={settings.run_dir}; leave "
                "run_dir out"
            )
        # Made for this command by Hydra, which did not know where it would write.
        with suppress(OSError):
            Path(settings.run_dir).rmdir()
    return replace(stored, run_dir=str(folder.absolute()), resume=str(folder))


def _typed_settings() -> list[str]:
    """Returns what the command line sets beside where to resume; nothing where there is none."""
    return [one for one in typed_overrides() if one.partition("=")[0] not in ("resume", "run_dir")]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and prefix.count(".") == 0:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def main() -> None:
    """Runs the command."""
    run_command("train", train)


if __name__ == "__main__":
    main()
