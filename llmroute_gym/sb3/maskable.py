"""RouterMaskablePPO: the same regularisation loss for MaskablePPO."""

from typing import Any, ClassVar

import torch as th
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy

from llmroute_gym.sb3.policies import TemperedMaskableMlpPolicy
from llmroute_gym.sb3.regularized import RegularizedUpdate
from llmroute_gym.sb3.replica_set import MaskableReplicaSetPolicy


class RouterMaskablePPO(RegularizedUpdate, MaskablePPO):  # type: ignore[misc]
    """MaskablePPO with the regularisation loss of `RouterPPO` and the same extra arguments.

    KL and entropy are those of the masked distributions.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **MaskablePPO.policy_aliases,
        "MlpPolicy": TemperedMaskableMlpPolicy,
        "ReplicaSetPolicy": MaskableReplicaSetPolicy,
    }

    def _evaluate(self, batch: Any, actions: th.Tensor) -> Any:
        return self.policy.evaluate_actions(
            batch.observations, actions, action_masks=batch.action_masks
        )

    def _distribution(self, policy: Any, batch: Any) -> Distribution:
        distribution: Distribution = policy.get_distribution(
            batch.observations, action_masks=batch.action_masks
        )
        return distribution
