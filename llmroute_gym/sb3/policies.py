"""A temperature for the stock policies: it divides the logits."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule

from llmroute_gym.errors import InputError

if TYPE_CHECKING:
    _Base = ActorCriticPolicy
else:
    _Base = object


class TemperatureMixin(_Base):
    """Divides the logits of a policy by a temperature, kept as a buffer and saved with it.

    Goes before an actor-critic policy of Stable-Baselines3 or sb3-contrib. At temperature 1 the
    policy is the stock one, bit for bit. Above 1 it explores more, below 1 less; the most probable
    action never changes. With continuous actions, which have no logits, it stays at 1.

    The temperature must be constant from a rollout's start to the end of the update on it, or the
    probability ratio of PPO is not 1 before the first step. Write it in `_on_rollout_start` only.
    """

    temperature: th.Tensor

    def _build(self, lr_schedule: Schedule) -> None:
        self.register_buffer("temperature", th.ones(()))
        super()._build(lr_schedule)

    def set_temperature(self, temperature: float) -> None:
        """Sets the temperature.

        Raises:
            InputError: it is not a finite number > 0, or the actions are continuous.
        """
        if not (np.isfinite(temperature) and temperature > 0):
            raise InputError(f"the temperature must be a finite number > 0, got {temperature}")
        if temperature != 1 and not self._has_logits:
            raise InputError(
                f"a temperature of {temperature:g} needs discrete actions, got "
                f"{self.action_space}; leave the temperature at 1"
            )
        self.temperature.fill_(temperature)

    @property
    def _has_logits(self) -> bool:
        return not isinstance(self.action_space, spaces.Box)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        if not self._has_logits:
            return super()._get_action_dist_from_latent(latent_pi)
        proba_distribution: Any = self.action_dist.proba_distribution
        distribution: Distribution = proba_distribution(
            action_logits=self.action_net(latent_pi) / self.temperature
        )
        return distribution

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights of the stock policy fit too: they were trained at temperature 1.
        state_dict.setdefault(prefix + "temperature", th.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)


class TemperedMlpPolicy(TemperatureMixin, ActorCriticPolicy):
    """`MlpPolicy` with a temperature."""


class TemperedMaskableMlpPolicy(TemperatureMixin, MaskableActorCriticPolicy):  # type: ignore[misc]
    """`MlpPolicy` of MaskablePPO with a temperature."""


class TemperedMlpLstmPolicy(TemperatureMixin, RecurrentActorCriticPolicy):
    """`MlpLstmPolicy` of RecurrentPPO with a temperature."""
