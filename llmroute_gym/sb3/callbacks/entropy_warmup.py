"""More exploration at the start."""

from typing import cast

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.config import ExplorationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.counters import gradient_steps
from llmroute_gym.sb3.regularization import LinearDecay
from llmroute_gym.sb3.regularized import RegularizedUpdate


class EntropyWarmup(BaseCallback):
    """Sets the entropy coefficient to entropy_coef + entropy_warmup_coef (1 - g/warmup_steps)+.

    g counts gradient steps. RouterPPO follows the formula at each minibatch; for a stock PPO, whose
    Adam counts the steps, it is evaluated once before each update. From `warmup_steps` on it is
    `entropy_coef` exactly.

    Args:
        config: the three settings.
        verbose: as in all callbacks.
    """

    def __init__(self, config: ExplorationConfig, verbose: int = 0) -> None:
        super().__init__(verbose)
        config.validate()
        self.schedule = LinearDecay(
            config.entropy_coef + config.entropy_warmup_coef,
            config.entropy_coef,
            config.warmup_steps,
        )

    def _on_training_start(self) -> None:
        if isinstance(self.model, RegularizedUpdate):
            self.model.set_schedule("ent_coef", self.schedule)
        elif gradient_steps(self.model) is None or not hasattr(self.model, "ent_coef"):
            raise InputError(
                f"EntropyWarmup cannot count the gradient steps of {type(self.model).__name__} "
                f"with {type(self.model.policy.optimizer).__name__}; use RouterPPO, or Adam"
            )

    def _on_rollout_start(self) -> None:
        if not isinstance(self.model, RegularizedUpdate):
            step = gradient_steps(self.model)
            assert step is not None
            cast(PPO, self.model).ent_coef = self.schedule(step)

    def _on_step(self) -> bool:
        return True
