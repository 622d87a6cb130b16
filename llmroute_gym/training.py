"""PPO on the routing environment: from settings to a trained checkpoint."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from tqdm import tqdm

from llmroute_gym.config import TrainConfig
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.envs.observation import COLUMNS
from llmroute_gym.errors import InputError
from llmroute_gym.run_folder import RunFolder
from llmroute_gym.sb3.checkpoint import Checkpoint, Layout
from llmroute_gym.sb3.normalizer import Normalizer
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.workload import WorkloadSource

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def learn(
    settings: TrainConfig, cluster: Cluster, source: WorkloadSource, folder: RunFolder
) -> Checkpoint:
    """Trains a policy.

    Writes ``metrics.csv`` and the TensorBoard files of the training into the folder.

    Args:
        settings: of the whole run.
        cluster: what the policy routes to.
        source: what the episodes' requests are drawn from.
        folder: what is written to.

    Returns:
        The trained policy with its observation statistics.
    """
    torch.set_num_threads(settings.training.torch_threads)
    for line in without_effect(settings):
        log.warning("no effect yet: %s", line)
    env = make_vec_env(settings, cluster, source)
    try:
        model = make_model(settings, env)
        steps = rollouts(settings) * model.n_steps * env.num_envs
        log.info(
            "training on %d requests: %d rollouts of %d environments x %d decisions, %.3g "
            "requests/s; PyTorch on the CPU with %d thread(s)",
            steps,
            rollouts(settings),
            env.num_envs,
            model.n_steps,
            settings.qps,
            torch.get_num_threads(),
        )
        with training_logger(folder) as logger:
            model.set_logger(logger)
            model.learn(steps, callback=[EpisodeMetrics(), ProgressBar(steps)])
            # The values of the last update would otherwise never be written.
            logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
            logger.dump(model.num_timesteps)
        layout = Layout(len(cluster), COLUMNS, settings.observation, settings.model)
        return Checkpoint(model, layout, Normalizer.of(env))
    finally:
        env.close()


def make_vec_env(settings: TrainConfig, cluster: Cluster, source: WorkloadSource) -> VecNormalize:
    """Builds the training environments: seeded, monitored, with normalised observations."""

    def make() -> LLMRouteEnv:
        return LLMRouteEnv(
            cluster=cluster,
            workload=source,
            qps=None,
            requests_per_episode=settings.env.requests_per_episode,
            reward=settings.reward,
            observation=settings.observation,
            engine=settings.env.engine,
        )

    env = DummyVecEnv([make] * settings.env.num_envs)
    env.seed(settings.seed)
    return VecNormalize(VecMonitor(env), norm_reward=False, gamma=settings.training.gamma)


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


def make_model(settings: TrainConfig, env: VecNormalize) -> PPO:
    """Builds PPO with the settings that it understands."""
    training, model = settings.training, settings.model
    steps = rollout_steps(settings)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=training.learning_rate,
        n_steps=steps,
        batch_size=min(training.minibatch_size, steps * env.num_envs),
        n_epochs=training.epochs,
        gamma=training.gamma,
        gae_lambda=training.gae_lambda,
        clip_range=training.clip_range,
        ent_coef=settings.exploration.entropy_coef,
        vf_coef=training.value_coef,
        max_grad_norm=training.max_grad_norm,
        target_kl=settings.kl.target_kl,
        policy_kwargs={
            "net_arch": {"pi": list(model.actor_sizes), "vf": list(model.critic_sizes)},
            "activation_fn": ACTIVATIONS[model.activation],
        },
        seed=settings.seed,
        device="cpu",
    )


def without_effect(settings: TrainConfig) -> list[str]:
    """One line for each group with settings that stock PPO cannot follow."""
    keys: dict[str, tuple[str, ...]] = {
        "exploration": ("entropy_warmup_coef", "warmup_steps"),
        "kl": (
            "entropy_min",
            "entropy_min_coef",
            "kl_coef",
            "kl_ref_coef_initial",
            "kl_ref_coef_final",
            "kl_ref_decay_steps",
        ),
        "temperature": tuple(asdict(settings.temperature)),
    }
    if settings.stabilization.enabled:
        keys["stabilization"] = tuple(asdict(settings.stabilization))
    start = settings.warm_start
    if start.cloning or start.checkpoint or start.demos:
        keys["warm_start"] = tuple(asdict(start))
    if settings.curriculum.stages:
        keys["curriculum"] = ("stages",)
    return [f"{group}.{{{', '.join(names)}}}" for group, names in keys.items()]


@contextmanager
def training_logger(folder: RunFolder) -> Iterator[Logger]:
    """Opens SB3's logger on ``metrics.csv`` (there only when complete) and on TensorBoard."""
    part = folder.path / f"{METRICS_FILE}.part"
    formats = [
        CSVOutputFormat(str(part)),
        TensorBoardOutputFormat(str(folder.path / "tensorboard")),
    ]
    logger = Logger(str(folder.path), formats)
    try:
        yield logger
    finally:
        logger.close()
    part.replace(folder.path / METRICS_FILE)


@contextmanager
def wandb_run(settings: TrainConfig, folder: RunFolder) -> Iterator[None]:
    """Mirrors the TensorBoard values to Weights & Biases where ``logger.wandb`` asks for it.

    Raises:
        InputError: the service cannot be reached or wants a login.
    """
    if settings.logger.wandb == "disabled":
        yield
        return
    import wandb

    try:
        run = wandb.init(
            project=settings.logger.project,
            mode=cast(Any, settings.logger.wandb),
            dir=folder.path,
            config=asdict(settings),
            sync_tensorboard=True,
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"logger.wandb={settings.logger.wandb} failed ({error}); run 'wandb login' or choose "
            "logger.wandb=offline"
        ) from error
    try:
        yield
    finally:
        run.finish()


class ProgressBar(BaseCallback):
    """Shows on standard error how many requests were routed.

    Args:
        total: requests in all.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.total, desc="training", unit="request", unit_scale=True)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class EpisodeMetrics(BaseCallback):
    """Logs, per rollout, the reward terms, the replicas' shares and the ended episodes.

    Means only: a mean of the percentiles of episodes would be no percentile.
    """

    EPISODE = ("e2e_mean_s", "ttft_mean_s", "throughput_rps")

    def _on_rollout_start(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.actions: list[Any] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"])
        for info in self.locals["infos"]:
            for key, value in info.items():
                if key.startswith("reward/"):
                    self.values.setdefault(key, []).append(value)
            for name in self.EPISODE:
                if (key := f"episode_metrics/{name}") in info:
                    self.values.setdefault(f"episode/{name}", []).append(info[key])
        return True

    def _on_rollout_end(self) -> None:
        for key, values in self.values.items():
            self.logger.record(key, float(np.mean(values)))
        n_replicas = int(cast(spaces.Discrete, self.training_env.action_space).n)
        shares = np.bincount(np.concatenate(self.actions).ravel(), minlength=n_replicas)
        for replica, share in enumerate(shares / shares.sum()):
            self.logger.record(f"replica/share_{replica:02d}", float(share))
