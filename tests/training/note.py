"""A callback of a user, to be named in settings."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.sb3.counters import callback_state


class Note(BaseCallback):
    """Notes the number of decisions at every so many rollouts."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every

    def _on_rollout_end(self) -> None:
        state: dict[str, Any] = callback_state(self.model, "note")
        state["rollouts"] = state.get("rollouts", 0) + 1
        if state["rollouts"] % self.every == 0:
            state.setdefault("decisions", []).append(self.num_timesteps)

    def _on_step(self) -> bool:
        return True
