"""A policy over a set of replicas: what it learned serves any number of them, in any order."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from llmroute_gym.errors import InputError
from llmroute_gym.sb3.policies import TemperatureMixin
from llmroute_gym.sb3.row_normalizer import RelativeRows

if TYPE_CHECKING:
    _Base = TemperatureMixin
else:
    _Base = object


class RowEncoder(nn.Module):
    """One network for all rows, and a summary of the rows that does not know their order.

    Args:
        n_columns: of a row.
        sizes: of the layers.
        activation: between them.
    """

    def __init__(self, n_columns: int, sizes: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__()
        widths = [n_columns, *sizes]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), activation()]
        self.rows = nn.Sequential(*layers)
        self.context = nn.Linear(2 * widths[-1], widths[-1])

    def forward(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns codes (batch, n_replicas, width) and their summary (batch, width)."""
        codes = self.rows(rows)
        pooled = th.cat([codes.mean(dim=1), codes.amax(dim=1)], dim=-1)
        return codes, self.context(pooled)


class RowNetworks(nn.Module):
    """Actor and critic over rows; they share nothing. Has the interface of SB3's `MlpExtractor`.

    Args:
        n_columns: of a row.
        n_relative: how many of these, the last ones, tell how a row differs from the others.
        actor: sizes of the actor's layers.
        critic: sizes of the critic's layers.
        activation: between them.
    """

    def __init__(
        self,
        n_columns: int,
        n_relative: int,
        actor: Sequence[int],
        critic: Sequence[int],
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.n_columns, self.n_relative = n_columns, n_relative
        self.latent_dim_pi, self.latent_dim_vf = actor[-1] + n_relative, critic[-1]
        self.actor = RowEncoder(n_columns, actor, activation)
        self.actor_joint = nn.Linear(actor[-1], actor[-1])
        self.critic = RowEncoder(n_columns, critic, activation)
        self.activation = activation()

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns the codes of `forward_actor` and `forward_critic`."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """Returns one code per replica, (batch, n_replicas, latent_dim_pi).

        A row's differences go past the network too: its activations saturate under loads beyond
        those of the training, and a score that is linear in the differences goes on to rank.

        Args:
            features: (batch, n_replicas * n_columns).
        """
        rows = self._rows(features)
        codes, context = self.actor(rows)
        code = self.activation(self.actor_joint(codes) + context.unsqueeze(1))
        return th.cat([code, rows[..., self.n_columns - self.n_relative :]], dim=-1)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """Returns one code per observation, (batch, latent_dim_vf)."""
        code: th.Tensor = self.activation(self.critic(self._rows(features))[1])
        return code

    def _rows(self, features: th.Tensor) -> th.Tensor:
        return features.reshape(features.shape[0], -1, self.n_columns)


class RowScore(nn.Module):
    """One logit per row code, the same weights for all.

    Args:
        latent_dim: width of a code.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(latent_dim, 1)

    def forward(self, codes: th.Tensor) -> th.Tensor:
        """Returns logits (batch, n_replicas) of codes (batch, n_replicas, latent_dim)."""
        logits: th.Tensor = self.score(codes).squeeze(-1)
        return logits


class RowCategorical(CategoricalDistribution):
    """A choice among rows."""

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Returns the layer that gives the logits."""
        return RowScore(latent_dim)


class MaskableRowCategorical(MaskableCategoricalDistribution):
    """A choice among rows that may be masked."""

    def proba_distribution(self, action_logits: th.Tensor) -> Self:
        """Sets the distribution, among as many rows as there are logits."""
        self.action_dim = action_logits.shape[-1]
        return super().proba_distribution(action_logits)

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Returns the layer that gives the logits."""
        return RowScore(latent_dim)


class ReplicaSetMixin(_Base):
    """Replaces a policy's networks by ones over the rows of the observation.

    An encoder shared by all rows (each with its differences from the mean row, see `RelativeRows`),
    a pooled context (mean and maximum over the rows) and one score per row. Permuting the rows
    permutes the action probabilities, and no weight's shape depends on the number of rows. The
    idea: Zaheer et al., "Deep Sets", NeurIPS 2017.

    `net_arch` is a list of sizes for both, or `{"pi": [...], "vf": [...]}` for actor and critic.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        shape = observation_space.shape or ()
        n_actions = action_space.n if isinstance(action_space, spaces.Discrete) else None
        if len(shape) != 2 or shape[0] != n_actions:
            raise InputError(
                "a ReplicaSetPolicy takes observations of shape (n_replicas, n_columns) and "
                f"Discrete(n_replicas) actions, got {shape} and {action_space}; use MlpPolicy"
            )
        kwargs.setdefault("features_extractor_class", RelativeRows)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        arch = self.net_arch
        if not isinstance(arch, dict):
            arch = {"pi": arch, "vf": arch}
        actor, critic = arch.get("pi", []), arch.get("vf", [])
        if not actor or not critic:
            raise InputError(
                "a ReplicaSetPolicy needs at least one layer in actor and critic, got "
                f"net_arch={self.net_arch}; set actor_sizes and critic_sizes"
            )
        networks: Any = self._networks(actor, critic)
        self.mlp_extractor = networks.to(self.device)

    def _networks(self, actor: Sequence[int], critic: Sequence[int]) -> nn.Module:
        n_rows, own_columns = self.observation_space.shape or ()
        n_columns = self.features_dim // n_rows
        return RowNetworks(n_columns, n_columns - own_columns, actor, critic, self.activation_fn)

    def for_replicas(self, n_replicas: int) -> Self:
        """Returns a copy of the policy that routes to another number of replicas."""
        space = self.observation_space
        assert isinstance(space, spaces.Box)
        settings = self._get_constructor_parameters()
        settings["observation_space"] = spaces.Box(
            np.repeat(space.low[:1], n_replicas, axis=0),
            np.repeat(space.high[:1], n_replicas, axis=0),
            dtype=space.dtype.type,
        )
        settings["action_space"] = spaces.Discrete(n_replicas)
        with th.random.fork_rng(devices=[]):
            policy = type(self)(**settings)
        policy.load_state_dict(self.state_dict())
        policy.set_training_mode(False)
        return policy.to(self.device)


class ReplicaSetPolicy(ReplicaSetMixin, TemperatureMixin, ActorCriticPolicy):
    """The policy of `ReplicaSetMixin` for PPO."""

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.action_space, spaces.Discrete)
        self.action_dist = RowCategorical(int(self.action_space.n))
        super()._build(lr_schedule)


class MaskableReplicaSetPolicy(  # type: ignore[misc]
    ReplicaSetMixin, TemperatureMixin, MaskableActorCriticPolicy
):
    """The policy of `ReplicaSetMixin` for MaskablePPO."""

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.action_space, spaces.Discrete)
        self.action_dist = MaskableRowCategorical(int(self.action_space.n))
        super()._build(lr_schedule)
