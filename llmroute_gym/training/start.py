"""Bringing a model to where PPO starts: statistics, warm start, reference."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from llmroute_gym.config import StabilizationConfig, TrainConfig
from llmroute_gym.demos.weights import decision_weights
from llmroute_gym.envs.drawn_env import NOBODY
from llmroute_gym.envs.observation import Columns
from llmroute_gym.routers import make
from llmroute_gym.sb3 import fill_statistics
from llmroute_gym.sb3.residual import ResidualPolicy
from llmroute_gym.sb3.row_normalizer import normalizers, seen_by
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.training.setup import (
    Model,
    algorithm,
    make_model,
    needs_masks,
    ppo_settings,
    reward_scale,
)
from llmroute_gym.training.warm_start import WarmStart, cloning

log = logging.getLogger(__name__)


def prepare(
    settings: TrainConfig,
    env: VecNormalize,
    start: WarmStart,
    cluster: Cluster,
    source: WorkloadSource,
) -> Model:
    """Builds the model and brings it to where PPO starts: statistics, warm start, reference.

    What the warm start has taught is the reference of the KL; random weights are none, for to keep
    near them teaches nothing.

    Args:
        settings: of the whole run.
        env: what is learned from.
        start: where the weights come from.
        cluster: what the policy routes to.
        source: what demonstrations' requests are drawn from.
    """
    residual = settings.model.policy == "residual"
    masked = needs_masks(cluster) and not residual
    ppo = ppo_settings(
        settings.training,
        settings.exploration,
        settings.kl,
        num_envs=env.num_envs,
        seed=settings.seed,
    )
    if start.checkpoint is None:
        model = make_model(settings.model, env, ppo, masked=masked)
    else:
        model = algorithm(masked=masked).from_pretrained(
            start.checkpoint,
            env,
            device="cpu",
            trusted=settings.warm_start.trusted,
            **ppo,
        )
    if settings.stabilization.enabled:
        stabilize(settings.stabilization, model, env, settings.seed)
    if start.layout is not None:
        scale_values(model, start.layout.reward_scale / reward_scale(env))
    demos = start.demonstrations(settings, cluster, source)
    if demos is not None:
        from llmroute_gym.sb3.cloning import clone

        scale_values(model, reward_scale(env))
        how = cloning(settings.warm_start)
        learned = clone(model, demos, how, settings.seed)
        scale_values(model, 1 / reward_scale(env))
        last = learned.actor[learned.actor_epoch]
        log.info(
            "cloned %d of %d decisions of %s: accuracy %.3f on episodes held out, the value head "
            "explains %.0f%% of the returns",
            np.count_nonzero(decision_weights(demos, how)),
            len(demos),
            ", ".join(demos.routers()),
            last.validation_accuracy,
            100 * learned.explained_variance,
        )
    origin = start.origin(demos)
    if residual and not origin:
        temperature = 1 / settings.model.inverse_temperature
        origin = f"the rule {settings.model.rule} at temperature {temperature:.3g}"
    if not origin:
        log.info("no reference: PPO starts from random weights")
        return model
    log.info("PPO starts from %s", origin)
    if max(settings.kl.kl_ref_coef_initial, settings.kl.kl_ref_coef_final) > 0:
        model.set_reference()
        model.reference_origin = origin
    return model


def stabilize(config: StabilizationConfig, model: Model, env: VecNormalize, seed: int) -> None:
    """Fills the statistics of observations and rewards.

    A checkpoint keeps its own observation statistics, which its weights were made for.
    """
    filled = [one for one in normalizers(model.policy) if float(one.count) > 0]
    kept = copy.deepcopy(model.policy.state_dict())
    if isinstance(model.policy, ResidualPolicy):
        _fill_with_scores(config.steps, model, env)
    elif config.policy == "random":
        fill_statistics(model, config.steps, seed)
    else:
        _fill_with_router(config.policy, config.steps, model, env, seed)
    if filled:
        model.policy.load_state_dict(kept)
    log.info(
        "statistics: %d decisions by %s; rewards are divided by %.3g%s",
        config.steps * env.num_envs,
        "the rule" if isinstance(model.policy, ResidualPolicy) else config.policy,
        reward_scale(env),
        ", observations normalised as in the checkpoint" if filled else "",
    )


def _fill_with_router(name: str, steps: int, model: Model, env: VecEnv, seed: int) -> None:
    """Does what `fill_statistics` does, with a router that decides; one of its own per env."""
    observations: Any = env.reset()
    routers = [make(name) for _ in range(env.num_envs)]
    for router, rng in zip(routers, np.random.default_rng(seed).spawn(env.num_envs), strict=True):
        router.reset(observations.shape[1], steps, rng)
    columns = Columns(env.get_attr("observation_config")[0].columns)
    seen = []
    for _ in range(steps):
        masks = env.env_method("action_masks")
        rows = columns.unscaled(observations)
        actions = [
            router.route(row, mask.astype(np.bool_))
            for router, row, mask in zip(routers, rows, masks, strict=True)
        ]
        observations = env.step(np.array(actions))[0]
        seen.append(observations)
    for normalizer in normalizers(model.policy):
        normalizer.update(*seen_by(model.policy, np.stack(seen)))


def _fill_with_scores(steps: int, model: Model, env: VecEnv) -> None:
    """Does what `fill_statistics` does, with the rule whose scores the observations show."""
    observations: Any = env.reset()
    seen = []
    for _ in range(steps):
        scores = observations[..., -1]
        actions = np.where(scores > NOBODY, scores, np.inf).argmin(axis=-1)
        observations = env.step(actions)[0]
        seen.append(observations)
    for normalizer in normalizers(model.policy):
        normalizer.update(*seen_by(model.policy, np.stack(seen)))


def scale_values(model: Model, factor: float) -> None:
    """Multiplies what the value head foresees: it then speaks of rewards in another unit."""
    head = model.policy.value_net
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)
