"""From settings to the environments and the model that are trained."""

import logging
import math
import os
from typing import Any

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from llmroute_gym.config import TrainConfig
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
    return (
        len({(*limits, one.oversize) for limits, one in zip(cluster.limits, cluster, strict=True)})
        > 1
    )


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
        policy_kwargs=network_options(model),
        device="cpu",
        **ppo_settings(settings, env),
    )


def reward_scale(env: VecNormalize) -> float:
    """Returns what the environment divides rewards by."""
    return math.sqrt(float(env.ret_rms.var) + env.epsilon) if env.norm_reward else 1.0


def layout_of(settings: TrainConfig, cluster: Cluster, env: VecNormalize) -> Layout:
    """Describes the networks of a trained policy."""
    return Layout(len(cluster), settings.observation, settings.model, reward_scale(env))
