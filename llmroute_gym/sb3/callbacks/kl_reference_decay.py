"""How strongly the reference holds, step by step."""

from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.config import KLConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.regularization import LinearDecay
from llmroute_gym.sb3.regularized import RegularizedUpdate


class KLReferenceDecay(BaseCallback):
    """Lets `kl_ref_coef` fall linearly over gradient steps.

    The schedule is evaluated at each minibatch from the model's own counter, and is saved with the
    model, so that it goes on exactly where a run was stopped. Needs RouterPPO or RouterMaskablePPO.

    Args:
        config: `kl_ref_coef_initial`, `kl_ref_coef_final` and `kl_ref_decay_steps` are used.
        verbose: as in all callbacks.
    """

    def __init__(self, config: KLConfig, verbose: int = 0) -> None:
        super().__init__(verbose)
        config.validate()
        self.schedule = LinearDecay(
            config.kl_ref_coef_initial, config.kl_ref_coef_final, config.kl_ref_decay_steps
        )

    def _on_training_start(self) -> None:
        model = self.model
        if not isinstance(model, RegularizedUpdate):
            raise InputError(
                f"{type(model).__name__} has no loss to a reference; use RouterPPO or "
                "RouterMaskablePPO, or set kl_ref_coef_initial and kl_ref_coef_final to 0 and "
                "leave KLReferenceDecay out"
            )
        if not model.has_reference and max(self.schedule.initial, self.schedule.final) > 0:
            raise InputError(
                f"kl_ref_coef_initial is {self.schedule.initial:g} and kl_ref_coef_final "
                f"{self.schedule.final:g} but there is no reference; call set_reference() "
                "before learn(), or set both to 0"
            )
        model.set_schedule("kl_ref_coef", self.schedule)
        if model.has_reference:
            self.logger.info(f"reference of the KL: {model.reference_origin}")

    def _on_step(self) -> bool:
        return True
