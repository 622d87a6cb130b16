"""The controller of the policy's temperature."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.config import TemperatureConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sb3.callbacks.rollout_statistics import RolloutStatistics
from llmroute_gym.sb3.counters import callback_state, forget_if_new

PRESSURE_WEIGHT = 0.2
"""Weight of the newest rollout in the moving averages of the pressures."""


class TemperatureControl(BaseCallback):
    """Sharpens the policy under pressure and lets it explore when all is calm.

    At each rollout's start, and never between a rollout and its update,

        T = clip(base_temperature - qps_sensitivity P_q - latency_sensitivity P_l
                 + balance_sensitivity (1 - balance), min_temperature, max_temperature)

    with P_q the moving average of (qps - target_qps) / target_qps, P_l that of
    max(0, (latency - target_latency) / target_latency), and balance the normalised entropy of the
    last rollout's actions. A moving average gives the newest rollout the weight `PRESSURE_WEIGHT`
    and starts at the first value; before the first rollout both pressures are 0 and balance is 1.

    What it remembers is saved with the model. Works with every algorithm whose policy has a
    temperature. Where the environment does not tell a quantity, its sensitivity must be 0.

    Args:
        config: the settings; the two targets must be set where their sensitivity is not 0.
        statistics: to share with other callbacks.
        verbose: as in all callbacks.

    Raises:
        InputError: a setting is out of range, or a target is missing.
    """

    STATE = "temperature_control"

    def __init__(
        self,
        config: TemperatureConfig,
        statistics: RolloutStatistics | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        config.validate()
        for name in ("qps", "latency"):
            sensitivity = getattr(config, f"{name}_sensitivity")
            if sensitivity > 0 and getattr(config, f"target_{name}") is None:
                raise InputError(
                    f"temperature.target_{name} must be set where {name}_sensitivity "
                    f"({sensitivity:g}) is not 0"
                )
        self.config = config
        self.statistics = statistics or RolloutStatistics()

    @property
    def temperature(self) -> float:
        """The temperature that the pressures at hand ask for."""
        config, state = self.config, callback_state(self.model, self.STATE)
        wanted = (
            config.base_temperature
            - config.qps_sensitivity * state.get("qps_pressure", 0.0)
            - config.latency_sensitivity * state.get("latency_pressure", 0.0)
            + config.balance_sensitivity * (1.0 - state.get("balance", 1.0))
        )
        return float(np.clip(wanted, config.min_temperature, config.max_temperature))

    def _on_training_start(self) -> None:
        if not hasattr(self.model.policy, "set_temperature"):
            raise InputError(
                f"{type(self.model.policy).__name__} has no temperature; use 'MlpPolicy' of "
                "RouterPPO, or put llmroute_gym.sb3.TemperatureMixin before the policy's class"
            )
        forget_if_new(self.model, self.STATE)
        self.statistics.attach(self.model)

    def _on_rollout_start(self) -> None:
        self.statistics.start(self.model)
        policy: Any = self.model.policy
        policy.set_temperature(self.temperature)
        state = callback_state(self.model, self.STATE)
        self.logger.record("temperature/value", self.temperature)
        self.logger.record("temperature/qps_pressure", state.get("qps_pressure", 0.0))
        self.logger.record("temperature/latency_pressure", state.get("latency_pressure", 0.0))
        self.logger.record("temperature/balance", state.get("balance", 1.0))

    def _on_step(self) -> bool:
        self.statistics.collect(self.model, self.locals)
        return True

    def _on_rollout_end(self) -> None:
        config, seen = self.config, self.statistics
        if config.qps_sensitivity > 0:
            self._check(seen.tells_time, "qps", 'info["time_s"]')
            self._press("qps_pressure", _excess(seen.qps, config.target_qps))
        if config.latency_sensitivity > 0:
            self._check(seen.tells_latency, "latency", "the observation of LLMRoute-v0")
            over = _excess(seen.latency_s, config.target_latency)
            self._press("latency_pressure", None if over is None else max(0.0, over))
        if seen.balance is not None:
            callback_state(self.model, self.STATE)["balance"] = seen.balance

    def _check(self, told: bool, name: str, source: str) -> None:
        if not told:
            raise InputError(
                f"temperature.{name}_sensitivity is {getattr(self.config, f'{name}_sensitivity')}, "
                f"but the environment does not give {source}; set it to 0"
            )

    def _press(self, name: str, value: float | None) -> None:
        """Moves an average towards a value; where nothing was seen it stays."""
        if value is not None:
            state = callback_state(self.model, self.STATE)
            before = state.get(name, value)
            state[name] = before + PRESSURE_WEIGHT * (value - before)


def _excess(value: float | None, target: float | None) -> float | None:
    return None if value is None or target is None else (value - target) / target
