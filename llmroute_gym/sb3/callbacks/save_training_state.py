"""Checkpoints from which a killed run goes on exactly."""

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.errors import InputError
from llmroute_gym.sb3.counters import callback_state
from llmroute_gym.sb3.resume import UNLOGGED, save_training_state


class SaveTrainingState(BaseCallback):
    """Writes the whole state of a training at the start of every `every`-th rollout.

    Its place among the callbacks does not matter. See `llmroute_gym.sb3.resume`.

    Args:
        path: of the one file, which is replaced each time and complete at any moment.
        every: rollouts between two writes.
        note: kept beside it, see `llmroute_gym.sb3.resume.training_note`.
        verbose: as in all callbacks.
    """

    def __init__(self, path: str | Path, every: int = 1, note: str = "", verbose: int = 0) -> None:
        super().__init__(verbose)
        if every < 1:
            raise InputError(f"every must be >= 1 rollout, got {every}")
        self.path, self.every, self.note = Path(path), every, note

    def _on_training_start(self) -> None:
        for name, value in callback_state(self.model, UNLOGGED).pop("values", {}).items():
            self.logger.record(name, value)

    def _on_rollout_start(self) -> None:
        rollout = self.model.num_timesteps // (self.model.n_steps * self.model.n_envs)  # type: ignore[attr-defined]
        if rollout % self.every == 0:
            save_training_state(self.path, self.model, self.note)

    def _on_step(self) -> bool:
        return True
