"""Regularised PPO on the routing environment: from settings to a trained checkpoint."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.contrib.logging import logging_redirect_tqdm

from llmroute_gym.compare.capacity import warn_of_overload
from llmroute_gym.config import StabilizationConfig, TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers.residual import scored_rule
from llmroute_gym.runs.folder import MODEL_FILE, STATE_FILE, RunFolder
from llmroute_gym.sb3 import (
    EntropyWarmup,
    HealthMonitor,
    KLReferenceDecay,
    ObservationStatistics,
    RolloutStatistics,
    RouterMonitor,
    SaveTrainingState,
    TemperatureControl,
    load_training_state,
    remaining_timesteps,
)
from llmroute_gym.sb3.callbacks.curriculum import QPSCurriculum
from llmroute_gym.sb3.callbacks.health_monitor import add_finding, findings_of, write_findings
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.row_normalizer import normalizers
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.training.checks import highest_load, warn_of_short_stages
from llmroute_gym.training.domains import Domains, named_pools
from llmroute_gym.training.keeping import KeepBest
from llmroute_gym.training.resuming import noted
from llmroute_gym.training.setup import (
    Model,
    algorithm,
    gradient_steps,
    layout_of,
    make_vec_env,
    needs_masks,
    reward_scale,
    rollouts,
    set_threads,
)
from llmroute_gym.training.start import prepare
from llmroute_gym.training.tracking import ProgressBar, training_logger
from llmroute_gym.training.validation import Validation
from llmroute_gym.training.warm_start import WarmStart

log = logging.getLogger(__name__)

FINDINGS_FILE = "findings.json"
MLP_FOUND = (
    "model=mlp learns to see each replica by itself and fails beyond the loads that it was trained "
    "at: of five such policies trained at 2.5 requests/s the P99 at 5.5 was 1.2 to 1.8 times round "
    "robin's, and without demonstrations it is several times round robin's from 4.5 on"
)


def learn(
    settings: TrainConfig,
    cluster: Cluster,
    source: WorkloadSource,
    folder: RunFolder,
    start: WarmStart,
    callbacks: Sequence[BaseCallback] = (),
) -> Checkpoint:
    """Trains a policy, or goes on with an interrupted training.

    Writes ``metrics.csv``, ``findings.json``, ``model.zip`` and the TensorBoard files of the
    training into the folder, and ``training_state.zip``, from which it goes on or, once it has
    ended, comes to the same policy again.

    Args:
        settings: of the whole run.
        cluster: what the policy routes to.
        source: what the episodes' requests are drawn from.
        folder: what is written to.
        start: where the weights come from.
        callbacks: of the user, called after the training's own. What one must remember when the
            training is resumed it keeps in `llmroute_gym.sb3.counters.callback_state`.

    Returns:
        The trained policy with its observation statistics.

    Raises:
        InputError: the training ended in numbers that are not finite; the last good policy is in
            the folder.
    """
    set_threads(settings.training.torch_threads)
    warn_of_overload(cluster, source, *highest_load(settings))
    warn_of_short_stages(settings.curriculum, settings.training, settings.env)
    validation = Validation.draw(
        cluster,
        source,
        settings.observation,
        highest_load(settings)[1],
        max(settings.env.requests_per_episode, settings.evaluation.requests),
    )
    residual = settings.model.policy == "residual"
    env = environments(settings, cluster, source)
    keeping = keeper(settings)
    try:
        if settings.resume is None:
            model = prepare(settings, env, start, cluster, source)
        else:
            kind = algorithm(masked=needs_masks(cluster) and not residual)
            model = load_training_state(folder.path / STATE_FILE, env, kind, device="cpu")
        # Rewards are scaled alike from here on: their scale would move as the policy gets better.
        env.training = not frozen(settings.stabilization, model)
        run(settings, model, folder, callbacks, keeping)
        for one in keeping:
            one.restore()
        rows = (model.observation_space.shape or (0,))[0]
        checkpoint = Checkpoint(
            model, layout_of(rows, settings.observation, settings.model, reward_scale(env))
        )
        finite = not (model.non_finite or _found_non_finite(model))
        if finite:
            for name, sentence in validation.examine(checkpoint).items():
                add_finding(model, name, sentence)
            if settings.model.policy == "mlp":
                add_finding(model, "mlp_beyond_load", MLP_FOUND)
            write_findings(model, folder.path / FINDINGS_FILE)
        with folder.writing(MODEL_FILE) as part:
            checkpoint.save(part)
        if not finite:
            raise InputError(
                f"the training met numbers that are not finite after {model.num_timesteps} "
                f"requests and stopped; the last good policy is in {folder.path / MODEL_FILE}, "
                "lower training.learning_rate"
            )
        return checkpoint
    finally:
        env.close()


def environments(settings: TrainConfig, cluster: Cluster, source: WorkloadSource) -> VecNormalize:
    """Builds what a training learns from, at the first load of its curriculum."""
    if settings.model.policy == "residual":
        return Domains.of(settings, cluster, source).environments(settings)
    stages = settings.curriculum.stages
    return make_vec_env(
        settings.env,
        settings.reward,
        settings.observation,
        cluster,
        source.with_qps(stages[0]) if stages else source,
        gamma=settings.training.gamma,
        seed=settings.seed,
    )


def keeper(settings: TrainConfig) -> list[KeepBest]:
    """Returns what keeps the best weights of a training, nothing where the last ones are kept."""
    domains, rule = settings.domains, settings.model.rule
    if not domains.kept_by or rule is None:
        return []
    return [KeepBest(named_pools(settings, domains.kept_by), scored_rule(rule), domains)]


def run(
    settings: TrainConfig,
    model: Model,
    folder: RunFolder,
    further: Sequence[BaseCallback],
    first: Sequence[BaseCallback] = (),
) -> None:
    """Learns what is left to learn, with all controllers, monitors and logs, and with further ones.

    Args:
        settings: of the whole run.
        model: that learns.
        folder: what is written to.
        further: callbacks, called after the training's own.
        first: callbacks, called before them: what they record is in the last line of the log too.
    """
    n_rollouts = rollouts(settings.training, model.n_envs)
    total = n_rollouts * model.n_steps * model.n_envs
    resumed = settings.resume is not None
    log.info(
        "PPO %s: %d requests in %d rollouts of %d environments x %d decisions, %.3g requests/s; "
        "%s engine on one thread; PyTorch on the CPU with %d thread(s)",
        f"goes on after {model.num_timesteps}" if resumed else "starts",
        total,
        n_rollouts,
        model.n_envs,
        model.n_steps,
        settings.workload.rate(settings.training.qps),
        settings.env.engine,
        torch.get_num_threads(),
    )
    if model.has_reference:
        log.info("reference of the KL: %s", model.reference_origin)
    with training_logger(folder, model.num_timesteps) as logger, logging_redirect_tqdm():
        model.set_logger(logger)
        model.learn(
            remaining_timesteps(model) if resumed else total,
            [*first, *callbacks(settings, model, folder, total), *further],
            reset_num_timesteps=not resumed,
        )


def callbacks(
    settings: TrainConfig, model: Model, folder: RunFolder, total: int
) -> list[BaseCallback]:
    """Returns what controls and watches a training."""
    statistics = RolloutStatistics()
    temperature = settings.temperature
    if temperature.target_qps is None:
        temperature = replace(temperature, target_qps=settings.training.qps)
    if temperature.target_latency is None:
        temperature = replace(temperature, target_latency=settings.reward.latency_threshold)
    kl = replace(
        settings.kl, kl_ref_decay_steps=gradient_steps(settings.kl.kl_ref_decay_steps, model)
    )
    exploration = replace(
        settings.exploration, warmup_steps=gradient_steps(settings.exploration.warmup_steps, model)
    )
    chosen: list[BaseCallback] = [KLReferenceDecay(kl)] if model.has_reference else []
    chosen += [
        EntropyWarmup(exploration),
        TemperatureControl(temperature, statistics),
        HealthMonitor(
            folder.path / FINDINGS_FILE,
            statistics=statistics,
            # Replicas that are drawn for each episode have no shares of their own.
            compares_shares=settings.model.policy != "residual",
        ),
        RouterMonitor(statistics),
        SaveTrainingState(folder.path / STATE_FILE, note=noted(settings)),
        ProgressBar(total),
    ]
    if normalizers(model.policy):
        chosen.append(ObservationStatistics(settings.stabilization.freeze))
    if settings.curriculum.stages:
        chosen.append(QPSCurriculum(settings.curriculum, total))
    return chosen


def frozen(stabilization: StabilizationConfig, model: Model) -> bool:
    """Whether the scale of the rewards was filled before the learning and stands still then."""
    freeze = stabilization.freeze
    return stabilization.enabled and (model.has_reference if freeze is None else freeze)


def _found_non_finite(model: Model) -> bool:
    return any(finding["name"] == "non_finite" for finding in findings_of(model))
