"""Notices when a training goes wrong, and says what to do."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.sb3.callbacks.findings import ADVICE, OF_UPDATES, Vitals, examine
from llmroute_gym.sb3.callbacks.rollout_statistics import RolloutStatistics
from llmroute_gym.sb3.counters import (
    callback_state,
    forget_if_new,
    gradient_steps,
    gradient_steps_per_update,
)

log = logging.getLogger(__name__)

_STATE = "health_monitor"


def findings_of(model: BaseAlgorithm) -> list[dict[str, Any]]:
    """Returns all findings of a model's training, oldest first."""
    found: list[dict[str, Any]] = callback_state(model, _STATE).setdefault("findings", [])
    return found


def add_finding(model: BaseAlgorithm, name: str, sentence: str) -> None:
    """Adds a finding to those of a model's training, and says it.

    Args:
        model: that it is about.
        name: one of `ADVICE`.
        sentence: what was found.
    """
    finding = {
        "name": name,
        "timesteps": model.num_timesteps,
        "found": sentence,
        "advice": ADVICE[name],
    }
    findings_of(model).append(finding)
    log.warning("%s after %d decisions: %s; %s", name, model.num_timesteps, sentence, ADVICE[name])


def write_findings(model: BaseAlgorithm, path: Path) -> None:
    """Writes all findings of a model's training into a JSON file."""
    with complete_or_absent(path) as part:
        part.write_text(json.dumps(findings_of(model), indent=2) + "\n", encoding="utf-8")


class HealthMonitor(BaseCallback):
    """Examines each update; works with every PPO.

    A finding goes to the console, to the logger (`health/...`, 1 while it lasts) and to a JSON
    file, once for each time it appears. What is looked for and what is advised stands in
    `llmroute_gym.sb3.callbacks.findings`. `non_finite`, a reward, observation, loss or weight that
    is not finite, ends the training: the weights are set back to the last ones that were finite,
    and those are saved. It goes before `RouterMonitor`, which clears the logger at the end of the
    training.

    Args:
        findings_path: the JSON file; None writes none.
        checkpoint_path: where `non_finite` saves the last good model; None does not.
        entropy_min: nats below which the entropy has collapsed; None takes a tenth of ln N.
        speeds: of the replicas, for their fair shares; None takes them from LLMRoute-v0's
            observation, or equal ones.
        statistics: to share with other callbacks.
        compares_shares: whether the replicas' shares of the requests are looked at.
        verbose: as in all callbacks.
    """

    STATE = _STATE

    def __init__(
        self,
        findings_path: str | Path | None = None,
        checkpoint_path: str | Path | None = None,
        entropy_min: float | None = None,
        speeds: Sequence[float] | None = None,
        statistics: RolloutStatistics | None = None,
        compares_shares: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.findings_path = None if findings_path is None else Path(findings_path)
        self.checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self.entropy_min = entropy_min
        self.speeds = speeds
        self.statistics = statistics or RolloutStatistics()
        self.compares_shares = compares_shares
        self._last_good: dict[str, Any] = {}
        self._stop = False

    @property
    def findings(self) -> list[dict[str, Any]]:
        """All findings of the training, oldest first."""
        return findings_of(self.model)

    def _on_training_start(self) -> None:
        forget_if_new(self.model, self.STATE)
        self.statistics.attach(self.model)
        self._stop = False
        self._last_good = copy.deepcopy(self.model.get_parameters())
        state = callback_state(self.model, self.STATE)
        state.setdefault("gradient_steps", gradient_steps(self.model))
        state.setdefault("n_updates", self.model._n_updates)
        self._write()

    def _on_rollout_start(self) -> None:
        self._examine_update()
        self.statistics.start(self.model)

    def _on_step(self) -> bool:
        if not self._stop:
            self.statistics.collect(self.model, self.locals)
            for name in ("rewards", "new_obs"):
                values = self.locals[name]
                if isinstance(values, np.ndarray) and not np.isfinite(values).all():
                    self._end(f"{name} of the environment are not finite")
                    break
        return not self._stop

    def _on_rollout_end(self) -> None:
        state, seen = callback_state(self.model, self.STATE), self.statistics
        vitals = Vitals.read(state)
        if seen.shares is not None and self.compares_shares:
            vitals.add_rollout(seen.shares)
        vitals.write(state)
        state["speeds"] = None if seen.speeds is None else seen.speeds.tolist()

    def _on_training_end(self) -> None:
        self._examine_update()

    def _examine_update(self) -> None:
        values, state = self.logger.name_to_value, callback_state(self.model, self.STATE)
        if "train/value_loss" not in values or self._stop:
            return
        if state["n_updates"] == self.model._n_updates:
            return
        state["n_updates"] = self.model._n_updates
        if not self._finite(values):
            self._end("the loss, a gradient or a weight of the update is not finite")
            return
        self._last_good = copy.deepcopy(self.model.get_parameters())
        vitals = Vitals.read(state)
        vitals.add_update(
            value_loss=float(values["train/value_loss"]),
            entropy=-float(values["train/entropy_loss"]),
            early_stop=self._stopped_early(state),
        )
        vitals.write(state)
        speeds = state.get("speeds") if self.speeds is None else self.speeds
        found = examine(vitals, speeds, self._lowest_entropy())
        for name in OF_UPDATES:
            self._report(name, found.get(name))

    def _finite(self, values: Mapping[str, Any]) -> bool:
        numbers = [float(values[name]) for name in ("train/value_loss", "train/loss")]
        weights = all(bool(one.isfinite().all()) for one in self.model.policy.parameters())
        flagged = bool(getattr(self.model, "non_finite", False))
        return weights and bool(np.isfinite(numbers).all()) and not flagged

    def _lowest_entropy(self) -> float | None:
        space = self.model.action_space
        if self.entropy_min is None and isinstance(space, spaces.Discrete):
            return 0.1 * float(np.log(space.n))
        return self.entropy_min

    def _stopped_early(self, state: dict[str, Any]) -> bool:
        before, now = state["gradient_steps"], gradient_steps(self.model)
        state["gradient_steps"] = now
        if before is None or now is None:
            return False
        return bool(now - before < gradient_steps_per_update(self.model))

    def _report(self, name: str, sentence: str | None) -> None:
        self.logger.record(f"health/{name}", int(sentence is not None))
        active: list[str] = callback_state(self.model, self.STATE).setdefault("active", [])
        if sentence is None:
            if name in active:
                active.remove(name)
            return
        if name in active:
            return
        active.append(name)
        add_finding(self.model, name, sentence)
        self._write()

    def _end(self, sentence: str) -> None:
        """Ends the training with the last good weights."""
        self._stop = True
        self._report("non_finite", sentence)
        self.model.set_parameters(self._last_good)
        if self.checkpoint_path is not None:
            with complete_or_absent(self.checkpoint_path) as part:
                self.model.save(part)

    def _write(self) -> None:
        if self.findings_path is not None:
            write_findings(self.model, self.findings_path)
