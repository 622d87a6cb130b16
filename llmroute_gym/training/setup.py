"""From settings to the environments and the model that are trained."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from llmroute_gym.config import (
    LOG_STEP_REQUESTS,
    EnvConfig,
    ExplorationConfig,
    KLConfig,
    ModelConfig,
    ObservationConfig,
    RewardConfig,
    TrainingConfig,
)
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.sb3 import (
    RecentLatencies,
    Replayable,
    RouterMaskablePPO,
    RouterPPO,
)
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sb3.networks import POLICIES, network_options
from llmroute_gym.sb3.recent_vector import MonitoredVecEnv, RememberingVectorEnv
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource

log = logging.getLogger(__name__)


Model = RouterPPO | RouterMaskablePPO


def set_threads(wanted: int) -> None:
    """Lets PyTorch use so many threads, but no more than the machine has cores."""
    cores = os.cpu_count() or 1
    if wanted > cores:
        log.warning(
            "training.torch_threads=%d is more than this machine's cores; using %d", wanted, cores
        )
    torch.set_num_threads(min(wanted, cores))


def make_vec_env(
    env: EnvConfig,
    reward: RewardConfig,
    observation: ObservationConfig,
    cluster: Cluster,
    source: WorkloadSource,
    *,
    gamma: float,
    seed: int,
) -> VecNormalize:
    """Builds the training environments: seeded, monitored, with normalised rewards.

    Observations are normalised in the policy, so that one file carries all of it.

    Args:
        env: how many, how long their episodes are, and the engine.
        reward: its weights.
        observation: what the router is told.
        cluster: what it routes to.
        source: what the episodes' requests are drawn from.
        gamma: discount of the returns that rewards are scaled by.
        seed: of the environments.
    """
    shared: dict[str, Any] = {
        "cluster": cluster,
        "workload": source,
        "qps": None,
        "requests_per_episode": env.requests_per_episode,
        "reward": reward,
        "observation": observation,
        "engine": env.engine,
    }
    made: VecEnv
    if env.engine == "compiled":
        made = MonitoredVecEnv(RememberingVectorEnv(env.num_envs, **shared))
    else:
        made = DummyVecEnv(
            [lambda: Replayable(RecentLatencies(LLMRouteEnv(**shared)))] * env.num_envs
        )
    made.seed(seed)
    return VecNormalize(VecMonitor(made), norm_obs=False, gamma=gamma)


def needs_masks(cluster: Cluster) -> bool:
    """Whether some replica may be too small for a request that another one can hold."""
    return (
        len({(*limits, one.oversize) for limits, one in zip(cluster.limits, cluster, strict=True)})
        > 1
    )


def rollout_steps(training: TrainingConfig, num_envs: int) -> int:
    """Decisions per environment and rollout; fewer than asked where the whole run is shorter."""
    share = math.ceil(training.ppo_requests / num_envs)
    # PPO normalises advantages, which takes two of them.
    return max(min(training.rollout_steps, share), math.ceil(2 / num_envs))


def rollouts(training: TrainingConfig, num_envs: int) -> int:
    """How many rollouts it takes to train on at least ``training.ppo_requests`` requests."""
    return math.ceil(training.ppo_requests / (rollout_steps(training, num_envs) * num_envs))


def gradient_steps(log_steps: int, model: Model) -> int:
    """Returns in how many steps of a model as many requests are learned as in the log's.

    Args:
        log_steps: gradient steps of the tuning log.
        model: whose minibatches of `batch_size` requests are each learned `n_epochs` times.

    Returns:
        At least 1.
    """
    return max(round(log_steps * LOG_STEP_REQUESTS * model.n_epochs / model.batch_size), 1)


def ppo_settings(
    training: TrainingConfig,
    exploration: ExplorationConfig,
    kl: KLConfig,
    *,
    num_envs: int,
    seed: int,
) -> dict[str, Any]:
    """Returns the arguments of `RouterPPO` that do not concern the networks."""
    steps = rollout_steps(training, num_envs)
    return {
        "learning_rate": training.learning_rate,
        "n_steps": steps,
        "batch_size": min(training.minibatch_size, steps * num_envs),
        "n_epochs": training.epochs,
        "gamma": training.gamma,
        "gae_lambda": training.gae_lambda,
        "clip_range": training.clip_range,
        "ent_coef": exploration.entropy_coef,
        "vf_coef": training.value_coef,
        "max_grad_norm": training.max_grad_norm,
        "normalize_per_env": training.advantages == "environment",
        "target_kl": kl.target_kl,
        "kl_coef": kl.kl_coef,
        "entropy_min": kl.entropy_min,
        "entropy_min_coef": kl.entropy_min_coef,
        "seed": seed,
    }


def algorithm(*, masked: bool) -> type[Model]:
    """Returns the regularised PPO that learns with masked actions, or without."""
    return RouterMaskablePPO if masked else RouterPPO


def make_model(
    model: ModelConfig, env: VecEnv, settings: Mapping[str, Any], *, masked: bool = False
) -> Model:
    """Builds regularised PPO with random weights.

    Args:
        model: kind and sizes of the networks.
        env: to learn from.
        settings: of `ppo_settings`.
        masked: whether actions are masked.
    """
    return algorithm(masked=masked)(
        POLICIES[model.policy],
        env,
        policy_kwargs=network_options(model),
        device="cpu",
        **settings,
    )


def reward_scale(env: VecNormalize) -> float:
    """Returns what the environment divides rewards by."""
    return math.sqrt(float(env.ret_rms.var) + env.epsilon) if env.norm_reward else 1.0


def layout_of(
    replicas: int, observation: ObservationConfig, model: ModelConfig, reward_scale: float
) -> Layout:
    """Describes what the networks of a trained policy take in."""
    return Layout(replicas, observation, model, reward_scale)
