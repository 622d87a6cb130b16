"""Regularised PPO on the routing environment: from settings to a trained checkpoint."""

import copy
import logging
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from tqdm.contrib.logging import logging_redirect_tqdm

from llmroute_gym.config import TrainConfig
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.envs.observation import COLUMNS, SCALE
from llmroute_gym.errors import InputError
from llmroute_gym.resuming import noted
from llmroute_gym.routers import make
from llmroute_gym.runs.folder import MODEL_FILE, STATE_FILE, RunFolder
from llmroute_gym.sb3 import (
    EntropyWarmup,
    HealthMonitor,
    KLReferenceDecay,
    NormalizedRows,
    ObservationStatistics,
    RecentLatencies,
    RelativeRows,
    Replayable,
    RolloutStatistics,
    RouterMaskablePPO,
    RouterMonitor,
    RouterPPO,
    SaveTrainingState,
    TemperatureControl,
    fill_statistics,
    load_training_state,
    remaining_timesteps,
)
from llmroute_gym.sb3.checkpoint import Checkpoint, Layout
from llmroute_gym.sb3.curriculum import QPSCurriculum
from llmroute_gym.sb3.recent_vector import MonitoredVecEnv, RememberingVectorEnv
from llmroute_gym.sb3.row_normalizer import moments, normalizers
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.build import warn_of_overload
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.tracking import ProgressBar, training_logger
from llmroute_gym.warm_start import WarmStart, cloning

log = logging.getLogger(__name__)

Model = RouterPPO | RouterMaskablePPO

FINDINGS_FILE = "findings.json"
POLICIES = {"mlp": "MlpPolicy", "replica_set": "ReplicaSetPolicy"}
EXTRACTORS = {"mlp": NormalizedRows, "replica_set": RelativeRows}
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def learn(
    settings: TrainConfig,
    cluster: Cluster,
    source: WorkloadSource,
    folder: RunFolder,
    start: WarmStart,
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

    Returns:
        The trained policy with its observation statistics.

    Raises:
        InputError: the training ended in numbers that are not finite; the last good policy is in
            the folder.
    """
    set_threads(settings.training.torch_threads)
    warn_of_overload(cluster, source, *_highest_load(settings))
    warn_of_short_stages(settings)
    env = make_vec_env(settings, cluster, source)
    try:
        masked = needs_masks(cluster)
        if settings.resume is None:
            model = prepare(settings, env, start, masked=masked)
        else:
            algorithm: Any = RouterMaskablePPO if masked else RouterPPO
            model = load_training_state(folder.path / STATE_FILE, env, algorithm, device="cpu")
        # Rewards are scaled alike from here on: their scale would move as the policy gets better.
        env.training = not (settings.stabilization.enabled and frozen(settings, model))
        run(settings, model, folder)
        checkpoint = Checkpoint(model, layout_of(settings, cluster, env))
        with folder.writing(MODEL_FILE) as part:
            checkpoint.save(part)
        if model.non_finite or _found_non_finite(model):
            raise InputError(
                f"the training met numbers that are not finite after {model.num_timesteps} "
                f"requests and stopped; the last good policy is in {folder.path / MODEL_FILE}, "
                "lower training.learning_rate"
            )
        return checkpoint
    finally:
        env.close()


def set_threads(wanted: int) -> None:
    """Lets PyTorch use so many threads, but no more than the machine has cores."""
    cores = os.cpu_count() or 1
    if wanted > cores:
        log.warning(
            "training.torch_threads=%d is more than this machine's cores; using %d", wanted, cores
        )
    torch.set_num_threads(min(wanted, cores))


def run(settings: TrainConfig, model: Model, folder: RunFolder) -> None:
    """Learns what is left to learn, with all controllers, monitors and logs."""
    total = rollouts(settings) * model.n_steps * model.n_envs
    resumed = settings.resume is not None
    log.info(
        "PPO %s: %d requests in %d rollouts of %d environments x %d decisions, %.3g requests/s; "
        "%s engine on one thread; PyTorch on the CPU with %d thread(s)",
        f"goes on after {model.num_timesteps}" if resumed else "starts",
        total,
        rollouts(settings),
        model.n_envs,
        model.n_steps,
        settings.qps,
        settings.env.engine,
        torch.get_num_threads(),
    )
    if model.has_reference:
        log.info("reference of the KL: %s", model.reference_origin)
    with training_logger(folder, model.num_timesteps) as logger, logging_redirect_tqdm():
        model.set_logger(logger)
        model.learn(
            remaining_timesteps(model) if resumed else total,
            callbacks(settings, model, folder, total),
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
    chosen: list[BaseCallback] = [
        KLReferenceDecay(settings.kl),
        EntropyWarmup(settings.exploration),
        TemperatureControl(temperature, statistics),
        HealthMonitor(folder.path / FINDINGS_FILE, statistics=statistics),
        RouterMonitor(statistics),
        SaveTrainingState(folder.path / STATE_FILE, note=noted(settings)),
        ProgressBar(total),
    ]
    if normalizers(model.policy):
        chosen.append(ObservationStatistics(settings.stabilization.freeze))
    if settings.curriculum.stages:
        chosen.append(QPSCurriculum(settings.curriculum, total))
    return chosen


def frozen(settings: TrainConfig, model: Model) -> bool:
    """Whether statistics that were filled before the learning stand still from then on."""
    freeze = settings.stabilization.freeze
    return model.has_reference if freeze is None else freeze


def prepare(
    settings: TrainConfig, env: VecNormalize, start: WarmStart, *, masked: bool = False
) -> Model:
    """Builds the model and brings it to where PPO starts: statistics, warm start, reference."""
    if start.checkpoint is None:
        model = make_model(settings, env, masked=masked)
    else:
        algorithm = RouterMaskablePPO if masked else RouterPPO
        model = algorithm.from_pretrained(
            start.checkpoint, env, device="cpu", **ppo_settings(settings, env)
        )
    if settings.stabilization.enabled:
        stabilize(settings, model, env)
    if start.layout is not None:
        scale_values(model, start.layout.reward_scale / reward_scale(env))
    demos = start.demonstrations(settings)
    if demos is not None:
        from llmroute_gym.sb3.cloning import clone

        scale_values(model, reward_scale(env))
        learned = clone(model, demos, cloning(settings), settings.seed)
        scale_values(model, 1 / reward_scale(env))
        last = learned.actor[learned.actor_epoch]
        log.info(
            "cloned %d decisions of %s: accuracy %.3f on episodes held out, the value head "
            "explains %.0f%% of the returns",
            len(demos),
            ", ".join(demos.routers()),
            last.validation_accuracy,
            100 * learned.explained_variance,
        )
    origin = start.origin(demos)
    log.info("PPO starts from %s", origin)
    if max(settings.kl.kl_ref_coef_initial, settings.kl.kl_ref_coef_final) > 0:
        model.set_reference()
        model.reference_origin = origin
    return model


def stabilize(settings: TrainConfig, model: Model, env: VecNormalize) -> None:
    """Fills the statistics of observations and rewards.

    A checkpoint keeps its own observation statistics, which its weights were made for.
    """
    config, seed = settings.stabilization, settings.seed
    filled = [one for one in normalizers(model.policy) if float(one.count) > 0]
    kept = copy.deepcopy(model.policy.state_dict())
    if config.policy == "random":
        fill_statistics(model, config.steps, seed)
    else:
        _fill_with_router(config.policy, config.steps, model, env, seed)
    if filled:
        model.policy.load_state_dict(kept)
    log.info(
        "statistics: %d decisions by %s; rewards are divided by %.3g%s",
        config.steps * env.num_envs,
        config.policy,
        reward_scale(env),
        ", observations normalised as in the checkpoint" if filled else "",
    )


def _fill_with_router(name: str, steps: int, model: Model, env: VecEnv, seed: int) -> None:
    """Does what `fill_statistics` does, with a router that decides; one of its own per env."""
    observations: Any = env.reset()
    routers = [make(name) for _ in range(env.num_envs)]
    for router, rng in zip(routers, np.random.default_rng(seed).spawn(env.num_envs), strict=True):
        router.reset(observations.shape[1], steps, rng)
    seen = []
    for _ in range(steps):
        masks = env.env_method("action_masks")
        rows = observations.astype(np.float64) / SCALE
        actions = [
            router.route(row, mask.astype(np.bool_))
            for router, row, mask in zip(routers, rows, masks, strict=True)
        ]
        observations = env.step(np.array(actions))[0]
        seen.append(observations)
    for normalizer in normalizers(model.policy):
        normalizer.update(*moments(np.stack(seen)))


def reward_scale(env: VecNormalize) -> float:
    """Returns what the environment divides rewards by."""
    return math.sqrt(float(env.ret_rms.var) + env.epsilon) if env.norm_reward else 1.0


def scale_values(model: Model, factor: float) -> None:
    """Multiplies what the value head foresees: it then speaks of rewards in another unit."""
    head = model.policy.value_net
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)


def layout_of(settings: TrainConfig, cluster: Cluster, env: VecNormalize) -> Layout:
    """Describes the networks of a trained policy."""
    return Layout(len(cluster), COLUMNS, settings.observation, settings.model, reward_scale(env))


def make_vec_env(settings: TrainConfig, cluster: Cluster, source: WorkloadSource) -> VecNormalize:
    """Builds the training environments: seeded, monitored, with normalised rewards.

    Observations are normalised in the policy, so that one file carries all of it.
    """
    if settings.curriculum.stages:
        source = source.with_qps(settings.curriculum.stages[0])
    shared: dict[str, Any] = {
        "cluster": cluster,
        "workload": source,
        "qps": None,
        "requests_per_episode": settings.env.requests_per_episode,
        "reward": settings.reward,
        "observation": settings.observation,
        "engine": settings.env.engine,
    }
    env: VecEnv
    if settings.env.engine == "compiled":
        env = MonitoredVecEnv(RememberingVectorEnv(settings.env.num_envs, **shared))
    else:
        env = DummyVecEnv(
            [lambda: Replayable(RecentLatencies(LLMRouteEnv(**shared)))] * settings.env.num_envs
        )
    env.seed(settings.seed)
    return VecNormalize(VecMonitor(env), norm_obs=False, gamma=settings.training.gamma)


def needs_masks(cluster: Cluster) -> bool:
    """Whether some replica may be too small for a request that another one can hold."""
    limits = set()
    for one in cluster.replicas:
        longest = one.max_batched_tokens if one.scheduler == "prefill_first" else None
        blocks = (one.num_blocks, one.watermark_blocks, one.block_size)
        limits.add((one.scheduler, one.oversize, longest, blocks))
    return len(limits) > 1


def rollout_steps(settings: TrainConfig) -> int:
    """Decisions per environment and rollout; fewer than asked where the whole run is shorter."""
    share = math.ceil(settings.training.ppo_requests / settings.env.num_envs)
    # PPO normalises advantages, which takes two of them.
    return max(min(settings.training.rollout_steps, share), math.ceil(2 / settings.env.num_envs))


def rollouts(settings: TrainConfig) -> int:
    """How many rollouts it takes to train on at least ``training.ppo_requests`` requests."""
    return math.ceil(
        settings.training.ppo_requests / (rollout_steps(settings) * settings.env.num_envs)
    )


def ppo_settings(settings: TrainConfig, env: VecEnv) -> dict[str, Any]:
    """Returns the arguments of `RouterPPO` that do not concern the networks."""
    training, steps = settings.training, rollout_steps(settings)
    return {
        "learning_rate": training.learning_rate,
        "n_steps": steps,
        "batch_size": min(training.minibatch_size, steps * env.num_envs),
        "n_epochs": training.epochs,
        "gamma": training.gamma,
        "gae_lambda": training.gae_lambda,
        "clip_range": training.clip_range,
        "ent_coef": settings.exploration.entropy_coef,
        "vf_coef": training.value_coef,
        "max_grad_norm": training.max_grad_norm,
        "target_kl": settings.kl.target_kl,
        "kl_coef": settings.kl.kl_coef,
        "entropy_min": settings.kl.entropy_min,
        "entropy_min_coef": settings.kl.entropy_min_coef,
        "seed": settings.seed,
    }


def make_model(settings: TrainConfig, env: VecEnv, *, masked: bool = False) -> Model:
    """Builds regularised PPO with random weights."""
    model = settings.model
    algorithm = RouterMaskablePPO if masked else RouterPPO
    return algorithm(
        POLICIES[model.policy],
        env,
        policy_kwargs={
            "net_arch": {"pi": list(model.actor_sizes), "vf": list(model.critic_sizes)},
            "activation_fn": ACTIVATIONS[model.activation],
            "features_extractor_class": EXTRACTORS[model.policy],
        },
        device="cpu",
        **ppo_settings(settings, env),
    )


def _highest_load(settings: TrainConfig) -> tuple[str, float]:
    """Returns the key that sets the highest arrival rate of a training, and the rate."""
    if settings.curriculum.stages:
        return "curriculum.stages", max(settings.curriculum.stages)
    key = "training.qps" if settings.workload.qps is None else "workload.qps"
    return key, settings.qps


def warn_of_short_stages(settings: TrainConfig) -> None:
    """Warns where a stage of the curriculum is shorter than the episodes that it begins with."""
    curriculum, env = settings.curriculum, settings.env
    total, episodes = settings.training.ppo_requests, env.num_envs * env.requests_per_episode
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


def _found_non_finite(model: Model) -> bool:
    found = getattr(model, "callback_state", {}).get(HealthMonitor.STATE, {}).get("findings", [])
    return any(finding["name"] == "non_finite" for finding in found)
