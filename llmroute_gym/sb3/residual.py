"""A policy that corrects a rule: the rule's scores, and a network that starts by adding nothing."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from llmroute_gym.envs.drawn_env import FORBIDDEN, NOBODY
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sb3.policies import TemperatureMixin
from llmroute_gym.sb3.replica_set import ReplicaSetMixin, RowCategorical, RowEncoder, RowNetworks
from llmroute_gym.sb3.row_normalizer import RelativeRows, RowNormalizer

IMPOSSIBLE = -1e8
"""The logit of a row that belongs to no replica: its probability is 0, and its terms finite."""


class ScoredRows(RelativeRows):
    """`RelativeRows` of observations whose last column is a rule's score, see `DrawnEnv`.

    The score stays as it is, and goes on behind each row's features. Rows that belong to no replica
    count neither in the statistics nor in the mean of all rows.
    """

    def __init__(self, observation_space: gym.Space[FloatArray]) -> None:
        super().__init__(observation_space)
        n_rows, n_columns = observation_space.shape or (0, 0)
        self._features_dim = n_rows * (2 * (n_columns - 1) + 1)
        self.normalizer = RowNormalizer(n_columns - 1)

    def rows_of(self, observations: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Returns the rows of replicas, (n, n_columns), without the score."""
        rows = observations.reshape(-1, observations.shape[-1])
        return rows[rows[:, -1] > NOBODY, :-1]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns (batch, n_rows * (2 n_columns + 1)): columns, differences and the score."""
        score = observations[..., -1:]
        there = (score > NOBODY).to(observations.dtype)
        rows = self.normalizer(observations[..., :-1]) * there
        mean = rows.sum(dim=-2, keepdim=True) / there.sum(dim=-2, keepdim=True).clamp(min=1)
        both = th.cat([rows, (rows - mean) * there], dim=-1)
        return th.cat([th.asinh(both), score], dim=-1).flatten(start_dim=1)


class ScoredNetworks(RowNetworks):
    """`RowNetworks` over rows with a score behind their features, which only the logits read."""

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """Returns one code per row with its score behind it, (batch, n_rows, latent_dim_pi + 1)."""
        rows, score = self._split(features)
        codes, context = _encoded(self.actor, rows, score)
        code = self.activation(self.actor_joint(codes) + context.unsqueeze(1))
        return th.cat([code, rows[..., self.n_columns - self.n_relative :], score], dim=-1)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """Returns one code per observation, (batch, latent_dim_vf)."""
        code: th.Tensor = self.activation(_encoded(self.critic, *self._split(features))[1])
        return code

    def _split(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        rows = features.reshape(features.shape[0], -1, self.n_columns + 1)
        return rows[..., :-1], rows[..., -1:]


def _encoded(encoder: RowEncoder, rows: th.Tensor, score: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Does what the encoder does, but leaves rows of no replica out of the summary."""
    codes, there = encoder.rows(rows), score > NOBODY
    mean = (codes * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    most = codes.masked_fill(~there, -th.inf).amax(dim=1)
    return codes, encoder.context(th.cat([mean, most], dim=-1))


class ResidualScore(nn.Module):
    """Logits: a linear score of each code, less the rule's score times the inverse temperature.

    Args:
        latent_dim: width of a code, without the rule's score behind it.
        inverse_temperature: of the rule.
    """

    def __init__(self, latent_dim: int, inverse_temperature: float) -> None:
        super().__init__()
        self.score = nn.Linear(latent_dim, 1)
        self.inverse_temperature = inverse_temperature

    def forward(self, codes: th.Tensor) -> th.Tensor:
        """Returns logits (batch, n_rows) of codes (batch, n_rows, latent_dim + 1)."""
        rule = codes[..., -1]
        logits = self.score(codes[..., :-1]).squeeze(-1) - self.inverse_temperature * rule
        none = (rule <= NOBODY) | (rule >= FORBIDDEN)
        masked: th.Tensor = logits.masked_fill(none, IMPOSSIBLE)
        return masked


class ResidualCategorical(RowCategorical):
    """A choice among rows with a rule's scores."""

    def __init__(self, action_dim: int, inverse_temperature: float) -> None:
        super().__init__(action_dim)
        self.inverse_temperature = inverse_temperature

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Returns the layer that gives the logits."""
        return ResidualScore(latent_dim, self.inverse_temperature)


class ResidualPolicy(ReplicaSetMixin, TemperatureMixin, ActorCriticPolicy):
    """A `ReplicaSetPolicy` that corrects a rule: for PPO on `DrawnEnv`, which shows its scores.

    The last layer of its actor starts at zero, so that the most probable replica is the rule's, and
    the probabilities are the softmax of its scores times the inverse temperature, negative. Those
    that may not be chosen have none: it needs no masks.

    Args:
        observation_space: of `DrawnEnv`.
        action_space: as many as rows.
        lr_schedule: as for all policies.
        args: likewise.
        rule: whose scores the observations show, as settings name it; what routes needs it.
        inverse_temperature: what they are multiplied by, above 0.
        kwargs: as for all policies.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        rule: str,
        inverse_temperature: float = 6.0,
        **kwargs: Any,
    ) -> None:
        if not inverse_temperature > 0:
            raise InputError(f"inverse_temperature must be > 0, got {inverse_temperature}")
        self.rule, self.inverse_temperature = rule, float(inverse_temperature)
        kwargs.setdefault("features_extractor_class", ScoredRows)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.action_space, spaces.Discrete)
        self.action_dist = ResidualCategorical(int(self.action_space.n), self.inverse_temperature)
        super()._build(lr_schedule)
        last: Any = self.action_net
        with th.no_grad():
            last.score.weight.zero_()
            last.score.bias.zero_()

    def _networks(self, actor: Any, critic: Any) -> nn.Module:
        own = (self.observation_space.shape or (1, 1))[1] - 1
        return ScoredNetworks(2 * own, own, actor, critic, self.activation_fn)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        given = {"rule": self.rule, "inverse_temperature": self.inverse_temperature}
        return {**super()._get_constructor_parameters(), **given}
