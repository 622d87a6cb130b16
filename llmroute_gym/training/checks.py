"""What a training's settings say that nothing will read, or that will not go as it looks."""

import logging

from llmroute_gym.compare.suites.scenarios import read_scenario, trace_file
from llmroute_gym.config import (
    CurriculumConfig,
    EnvConfig,
    StabilizationConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
)
from llmroute_gym.routers import make
from llmroute_gym.routers.residual import scored_rule

log = logging.getLogger(__name__)


def warn_of_unread(
    start: WarmStartConfig, stabilization: StabilizationConfig, curriculum: CurriculumConfig
) -> None:
    """Warns of values that have no effect beside the others of their group."""
    for group, why in (
        (start, "warm_start.cloning=false"),
        (stabilization, "stabilization.enabled=false"),
        (curriculum, "curriculum.stages=[]"),
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


def check_names(settings: TrainConfig) -> None:
    """Checks what settings name of rules and scenarios, of which nothing is built yet.

    Raises:
        InputError: a rule is none or has no scores to correct, a scenario is none, or its trace is
            absent.
    """
    make(settings.stabilization.policy)
    if settings.model.rule is not None:
        scored_rule(settings.model.rule)
    for one in (*settings.domains.scenarios, *settings.domains.kept_by):
        scenario = read_scenario(one)
        if scenario.trace is not None:
            trace_file(scenario.trace, settings.domains.traces)


def warn_of_short_stages(
    curriculum: CurriculumConfig, training: TrainingConfig, env: EnvConfig
) -> None:
    """Warns where a stage of the curriculum is shorter than the episodes that it begins with."""
    total, episodes = training.ppo_requests, env.num_envs * env.requests_per_episode
    if not curriculum.stages or curriculum.advance != "requests":
        return
    each = total // len(curriculum.stages)
    lengths = curriculum.requests or [each] * (len(curriculum.stages) - 1)
    shortest = min([*lengths, total - sum(lengths)])
    if shortest < episodes:
        log.warning(
            "a stage of the curriculum has %d requests, but a new load holds from the next episode "
            "on, and the episodes at hand take %d (%d environments of %d requests); make "
            "training.ppo_requests larger or env.requests_per_episode smaller",
            shortest,
            episodes,
            env.num_envs,
            env.requests_per_episode,
        )


def highest_load(settings: TrainConfig) -> tuple[str, float]:
    """Returns the key that sets the highest arrival rate of a training, and the rate."""
    if settings.curriculum.stages:
        return "curriculum.stages", max(settings.curriculum.stages)
    workload = settings.workload
    return workload.rate_key("training.qps"), workload.rate(settings.training.qps)
