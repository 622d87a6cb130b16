"""RouterPPO: PPO with a regularisation loss."""

from typing import ClassVar

from stable_baselines3 import PPO
from stable_baselines3.common.policies import BasePolicy

from llmroute_gym.sb3.policies import TemperedMlpPolicy
from llmroute_gym.sb3.regularized import RegularizedUpdate
from llmroute_gym.sb3.replica_set import ReplicaSetPolicy
from llmroute_gym.sb3.residual import ResidualPolicy


class RouterPPO(RegularizedUpdate, PPO):
    """PPO that can be kept near a reference, near its rollout, and above an entropy floor.

    Takes all arguments of `stable_baselines3.PPO` and the five below; where those are 0 it is PPO,
    bit for bit. The loss stands in `RegularizedUpdate`.

    Args:
        policy: `"MlpPolicy"`, `"ReplicaSetPolicy"` or a class. Stock policies work; those named
            here have a temperature too.
        env: what to learn from.
        kl_coef: weight of KL(policy of the rollout, policy).
        kl_ref_coef: weight of KL(policy, reference); needs `set_reference`.
        entropy_min: nats; below this mean entropy a penalty acts.
        entropy_min_coef: weight of that penalty.
        normalize_per_env: whether advantages are normalised over each environment's part of a
            rollout in place of each minibatch; for environments whose loads differ.

    Raises:
        InputError: a weight is negative, or the floor lies above ln N.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **PPO.policy_aliases,
        "MlpPolicy": TemperedMlpPolicy,
        "ReplicaSetPolicy": ReplicaSetPolicy,
        "ResidualPolicy": ResidualPolicy,
    }
