"""Running observation statistics."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.errors import InputError
from llmroute_gym.sb3.counters import callback_state, forget_if_new
from llmroute_gym.sb3.row_normalizer import normalizers, seen_by


class ObservationStatistics(BaseCallback):
    """Adds each rollout's observations to the policy's statistics at the next rollout's start.

    The policy's normaliser so is the same in a rollout and the update on it. Where a reference is
    in use, statistics that were filled before the learning stand still, since the policy would
    otherwise move away from it without having learned anything. Empty ones are filled even so: the
    policy would never see normalised observations.

    Args:
        freeze: whether filled statistics stand still; None means: while there is a reference.
        verbose: as in all callbacks.
    """

    STATE = "observation_statistics"

    def __init__(self, freeze: bool | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.freeze = freeze

    def _on_training_start(self) -> None:
        if not normalizers(self.model.policy):
            raise InputError(
                f"{type(self.model.policy).__name__} has no observation statistics; pass "
                "policy_kwargs={'features_extractor_class': NormalizedRows}"
            )
        forget_if_new(self.model, self.STATE)
        filled = all(float(one.count) > 0 for one in normalizers(self.model.policy))
        callback_state(self.model, self.STATE).setdefault("filled_before", filled)

    @property
    def frozen(self) -> bool:
        """Whether the statistics stay as they are."""
        freeze = self.freeze
        if freeze is None:
            freeze = bool(getattr(self.model, "has_reference", False))
        filled_before: bool = callback_state(self.model, self.STATE)["filled_before"]
        return freeze and filled_before

    def _on_rollout_start(self) -> None:
        pending = callback_state(self.model, self.STATE).pop("pending", None)
        if pending is not None and not self.frozen:
            mean, variance, count = pending
            for normalizer in normalizers(self.model.policy):
                normalizer.update(np.asarray(mean), np.asarray(variance), count)

    def _on_rollout_end(self) -> None:
        if not self.frozen:
            observations = self.locals["rollout_buffer"].observations
            mean, variance, count = seen_by(self.model.policy, observations)
            pending = [mean.tolist(), variance.tolist(), count]
            callback_state(self.model, self.STATE)["pending"] = pending

    def _on_step(self) -> bool:
        return True
