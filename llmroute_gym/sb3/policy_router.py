"""A trained policy as a router, beside the rules."""

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from llmroute_gym.envs.observation import Columns
from llmroute_gym.errors import InputError, shown
from llmroute_gym.routers import Router
from llmroute_gym.sb3.checkpoint import Checkpoint


class PolicyRouter(Router):
    """Routes each request to the replica that the policy finds most probable.

    Args:
        checkpoint: the policy with its observation statistics.

    Raises:
        InputError: it is something else.
    """

    name = "policy"

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise InputError(
                f"PolicyRouter takes a Checkpoint, got {shown(checkpoint)}; give "
                "Checkpoint.load(FOLDER) of a run, or subclass Router for another policy"
            )
        policy = checkpoint.model.policy
        assert isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy)
        policy.set_training_mode(False)
        self.policy = policy
        self.observation = checkpoint.layout.observation
        self._columns = Columns(checkpoint.layout.columns)

    def route(self, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> int:
        """Returns the most probable replica among those that the mask allows."""
        return int(self.route_many(rows[None], mask[None])[0])

    def route_many(
        self, rows: npt.NDArray[np.float64], masks: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """Decides in several clusters at once; a policy has no memory of its own.

        Args:
            rows: (n, n_replicas, N_SIGNALS), in physical units.
            masks: (n, n_replicas).

        Returns:
            (n,) replicas.
        """
        observations = self._columns.scaled(rows)
        with torch.no_grad():
            distribution = self.policy.get_distribution(torch.from_numpy(observations))
            scores = distribution.distribution.logits.numpy()  # type: ignore[union-attr]
        chosen: npt.NDArray[np.int64] = np.argmax(np.where(masks, scores, -np.inf), axis=1)
        return chosen
