"""Behaviour cloning: a policy's actor learns decisions, its value head the returns that followed.

The actor minimises the cross-entropy of the demonstrated actions; where routers disagree it so
learns their mixture. The critic minimises the squared error of the returns-to-go. Each has its own
Adam, validation loss, early stopping and best weights, for the actor has much to learn from the
same decisions on which the critic overfits at once. The critic changes only what the actor does
not use, so a policy whose networks share layers keeps its actor.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch as th
import torch.nn.functional as F  # noqa: N812
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import nn

from llmroute_gym.config import CloningConfig
from llmroute_gym.demos.file import Demos
from llmroute_gym.demos.weights import decision_weights
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sb3.replica_set import ReplicaSetMixin
from llmroute_gym.sb3.row_normalizer import (
    moments,
    normalizers,
    observation_transform,
    observation_wrapper,
)

Policy = ActorCriticPolicy | MaskableActorCriticPolicy

WHOLE_BATCH = 4096
"""Decisions that are evaluated at once."""


class EpochRecord(NamedTuple):
    """One pass over the training decisions.

    The losses are cross-entropies in nats (actor), or mean squared errors relative to the variance
    of the training returns (critic); accuracies are the share of decisions whose most probable
    replica is the demonstrated one.
    """

    training_loss: float
    validation_loss: float
    training_accuracy: float = float("nan")
    validation_accuracy: float = float("nan")


@dataclass(frozen=True, eq=False)
class Cloning:
    """How a cloning went.

    Attributes:
        training: the decisions that were learned from.
        validation: those that were held out, of other episodes.
        actor: a record per epoch.
        critic: a record per epoch.
        actor_epoch: the epoch whose weights were kept, from 0.
        critic_epoch: the same of the value head.
        explained_variance: of the returns held out, by the value head; 1 is all of it.
    """

    training: Demos
    validation: Demos
    actor: Sequence[EpochRecord]
    critic: Sequence[EpochRecord]
    actor_epoch: int
    critic_epoch: int
    explained_variance: float


class _Batch(NamedTuple):
    """Decisions as tensors; all have the length n."""

    observation: th.Tensor
    mask: th.Tensor
    action: th.Tensor
    target: th.Tensor
    """Returns in standard deviations from their mean."""
    weight: th.Tensor

    def take(self, index: th.Tensor) -> "_Batch":
        return _Batch(*(column[index] for column in self))


def clone(model: BaseAlgorithm, demos: Demos, config: CloningConfig, seed: int) -> Cloning:
    """Teaches a model's policy to decide as the demonstrations do, and to foresee their returns.

    Observation statistics, of the policy or of `VecNormalize`, that have seen nothing yet are
    taken from the training decisions; others stay as they are. Keep them fixed afterwards, or the
    clone drifts. Nothing is drawn from global generators.

    Args:
        model: an actor-critic algorithm over the environment that the demonstrations are of.
        demos: what is learned.
        config: how.
        seed: of the split by episodes and of the minibatches.

    Returns:
        The learning curves and the split.

    Raises:
        InputError: the observations have another shape, or there are too few episodes to split.
    """
    policy = model.policy
    if not isinstance(policy, Policy):
        raise InputError(f"{type(policy).__name__} has no actor and critic; clone into a PPO")
    wanted = tuple(policy.observation_space.shape or ())
    if demos.observation.shape[1:] != wanted:
        raise InputError(
            f"the demonstrations' observations have shape {demos.observation.shape[1:]} and the "
            f"policy takes {wanted}; collect them again on the same cluster and version"
        )
    training, validation = split_by_episode(demos, config.validation_share, seed)
    fill_statistics_from(model, training)
    mean, std = float(training.return_to_go.mean()), float(training.return_to_go.std()) or 1.0
    normalize = observation_transform(model)
    learned, held_out = (
        _tensors(
            part, normalize, decision_weights(part, config), mean, std, th.device(policy.device)
        )
        for part in (training, validation)
    )
    generator = th.Generator().manual_seed(seed)
    actor, actor_epoch = _fit_actor(policy, learned, held_out, config, generator)
    with _returns_as_unit(policy, mean, std):
        critic, critic_epoch = _fit_critic(policy, learned, held_out, config, generator)
        explained = _explained_variance(policy, held_out)
    policy.set_training_mode(False)
    return Cloning(training, validation, actor, critic, actor_epoch, critic_epoch, explained)


def split_by_episode(demos: Demos, validation_share: float, seed: int) -> tuple[Demos, Demos]:
    """Holds whole episodes out, the same for every router: equal numbers are equal requests.

    Raises:
        InputError: there are fewer than two episodes.
    """
    keys = np.stack([demos.seed, demos.episode], axis=1)
    episodes, belongs = np.unique(keys, axis=0, return_inverse=True)
    if len(episodes) < 2:
        raise InputError(
            "the demonstrations are of one episode, and at least 2 are needed to hold one out; "
            "collect more decisions"
        )
    n_held = min(max(round(validation_share * len(episodes)), 1), len(episodes) - 1)
    held = np.zeros(len(episodes), dtype=np.bool_)
    held[np.random.default_rng(seed).permutation(len(episodes))[:n_held]] = True
    chosen = held[belongs.reshape(-1)]
    return demos.select(~chosen), demos.select(chosen)


def fill_statistics_from(model: BaseAlgorithm, demos: Demos) -> None:
    """Takes observation statistics that have seen nothing yet from demonstrations."""
    for normalizer in normalizers(model.policy):
        if float(normalizer.count) == 0:
            normalizer.update(*moments(demos.observation))
    wrapper = observation_wrapper(model)
    if wrapper is not None:
        statistics = cast(RunningMeanStd, wrapper.obs_rms)
        # A fresh running mean starts with a small count instead of 0.
        if statistics.count < 1:
            statistics.update(demos.observation)


def action_logits(
    policy: Policy,
    observations: npt.NDArray[np.float32],
    masks: npt.NDArray[np.bool_],
) -> FloatArray:
    """Returns log-probabilities of all replicas, (n, n_replicas); -inf where masked.

    Args:
        policy: the clone.
        observations: (n, n_replicas, n_columns), as the policy is given them.
        masks: (n, n_replicas).
    """
    parts = []
    with th.no_grad():
        for start in range(0, len(observations), WHOLE_BATCH):
            chunk = slice(start, start + WHOLE_BATCH)
            mask = th.as_tensor(masks[chunk], device=policy.device)
            observation = th.as_tensor(observations[chunk], device=policy.device)
            parts.append(_log_probabilities(policy, observation, mask).cpu().numpy())
    logs: FloatArray = np.concatenate(parts).astype(np.float64)
    return logs


def knows_order(policy: nn.Module) -> bool:
    """Whether a policy can treat equal rows differently by their place."""
    return not isinstance(policy, ReplicaSetMixin)


def _log_probabilities(policy: Policy, observation: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """The policy's own distribution, restricted to what the masks allow."""
    distribution: Any = policy.get_distribution(observation).distribution
    return F.log_softmax(distribution.logits.masked_fill(~mask, -th.inf), dim=-1)


def _tensors(
    demos: Demos,
    normalize: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    weights: FloatArray,
    mean: float,
    std: float,
    device: th.device,
) -> _Batch:
    def tensor(values: npt.NDArray[Any]) -> th.Tensor:
        return th.as_tensor(values, device=device)

    return _Batch(
        tensor(normalize(demos.observation)),
        tensor(demos.mask),
        tensor(demos.action),
        tensor(((demos.return_to_go - mean) / std).astype(np.float32)),
        tensor(weights.astype(np.float32)),
    )


def _fit_actor(
    policy: Policy,
    training: _Batch,
    validation: _Batch,
    config: CloningConfig,
    generator: th.Generator,
) -> tuple[list[EpochRecord], int]:
    def loss(batch: _Batch) -> th.Tensor:
        logs = _log_probabilities(policy, batch.observation, batch.mask)
        chosen = logs.gather(1, batch.action.unsqueeze(1)).squeeze(1)
        # Masked entries are -inf, and 0 times -inf is no number.
        spread = logs.masked_fill(~batch.mask, 0.0).sum(1) / batch.mask.sum(1)
        smooth = config.label_smoothing
        return -(batch.weight * ((1 - smooth) * chosen + smooth * spread)).mean()

    def accuracy(batch: _Batch) -> float:
        logs = _log_probabilities(policy, batch.observation, batch.mask)
        return float((batch.weight * (logs.argmax(1) == batch.action)).mean())

    parameters = _reached_by(policy, loss(training.take(th.arange(2))))
    return _fit(
        policy,
        parameters,
        loss,
        accuracy,
        training,
        validation,
        config,
        config.learning_rate,
        generator,
    )


def _fit_critic(
    policy: Policy,
    training: _Batch,
    validation: _Batch,
    config: CloningConfig,
    generator: th.Generator,
) -> tuple[list[EpochRecord], int]:
    def loss(batch: _Batch) -> th.Tensor:
        values = policy.predict_values(batch.observation).squeeze(1)
        return (batch.weight * (values - batch.target) ** 2).mean()

    with th.no_grad():
        # A head that has learned nothing yet starts at the mean return.
        shift = training.target - policy.predict_values(training.observation).squeeze(1)
        policy.value_net.bias.add_(shift.mean())
    few = training.take(th.arange(2))
    logs = _log_probabilities(policy, few.observation, few.mask)
    actors = {id(one) for one in _reached_by(policy, logs[few.mask].sum())}
    own = [one for one in _reached_by(policy, loss(few)) if id(one) not in actors]
    return _fit(
        policy,
        own,
        loss,
        None,
        training,
        validation,
        config,
        config.value_learning_rate,
        generator,
    )


def _explained_variance(policy: Policy, batch: _Batch) -> float:
    with th.no_grad():
        errors = batch.target - policy.predict_values(batch.observation).squeeze(1)
    return 1.0 - float(errors.var() / batch.target.var().clamp_min(1e-12))


def _reached_by(policy: Policy, loss: th.Tensor) -> list[nn.Parameter]:
    """Returns the parameters that a loss depends on."""
    parameters = [one for one in policy.parameters() if one.requires_grad]
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    return [
        one for one, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    ]


def _fit(
    policy: Policy,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[_Batch], th.Tensor],
    accuracy: Callable[[_Batch], float] | None,
    training: _Batch,
    validation: _Batch,
    config: CloningConfig,
    learning_rate: float,
    generator: th.Generator,
) -> tuple[list[EpochRecord], int]:
    """Minimises a loss; leaves the weights of the epoch with the best validation loss."""
    policy.set_training_mode(True)
    optimizer = th.optim.Adam(parameters, lr=learning_rate)
    n_steps = config.epochs * -(-len(training.action) // config.minibatch_size)
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    records: list[EpochRecord] = []
    best_loss, best_epoch, best = float("inf"), 0, copy.deepcopy(policy.state_dict())
    for epoch in range(config.epochs):
        order = th.randperm(len(training.action), generator=generator)
        for index in th.split(order, config.minibatch_size):
            optimizer.zero_grad()
            loss(training.take(index)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            schedule.step()
        with th.no_grad():
            losses = [float(loss(batch)) for batch in (training, validation)]
            shares = [accuracy(batch) for batch in (training, validation)] if accuracy else []
        records.append(EpochRecord(*losses, *shares))
        if losses[1] < best_loss:
            best_loss, best_epoch = losses[1], epoch
            best = copy.deepcopy(policy.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    policy.load_state_dict(best)
    return records, best_epoch


@contextmanager
def _returns_as_unit(policy: Policy, mean: float, std: float) -> Iterator[None]:
    """Lets the value head speak of returns in standard deviations from their mean.

    Returns of minus fifty are far away for a head that starts near 0, and Adam's steps are small.
    """
    head = policy.value_net
    assert isinstance(head, nn.Linear)
    with th.no_grad():
        head.weight.div_(std)
        head.bias.sub_(mean).div_(std)
    try:
        yield
    finally:
        with th.no_grad():
            head.weight.mul_(std)
            head.bias.mul_(std).add_(mean)
