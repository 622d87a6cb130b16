"""What a rollout saw: load, latency, and how the requests were shared out."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from llmroute_gym.envs.observation import Columns
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.sb3.counters import callback_state, forget_if_new


class RolloutStatistics:
    """Counts over the steps of a rollout; not a callback, callbacks share one.

    All numbers are those of the rollout at hand or just ended. What the environment does not tell
    is None:

    - `qps` needs `info["time_s"]`, the simulated time of the next decision;
    - `latency_s` and `speeds` need the columns `e2e_s` and `speed` of LLMRoute-v0's observation,
      normalised or not;
    - `reward_terms` are the means of all `info["reward/..."]`.
    """

    STATE = "rollout_statistics"

    def __init__(self) -> None:
        self._started: int | None = None
        self._collected: int | None = None
        self._columns: Columns | None = None
        self._clear(0)

    def attach(self, model: BaseAlgorithm) -> None:
        """Begins a training; call it in `_on_training_start`."""
        forget_if_new(model, self.STATE)
        self._started = self._collected = None
        self._columns = _columns_of(model.get_env())

    def start(self, model: BaseAlgorithm) -> None:
        """Begins a rollout; call it in `_on_rollout_start`."""
        if self._started == model.num_timesteps:
            return
        self._started = model.num_timesteps
        space = model.action_space
        self._clear(int(space.n) if isinstance(space, spaces.Discrete) else 0)

    def collect(self, model: BaseAlgorithm, local: dict[str, Any]) -> None:
        """Counts one step of all environments; call it in `_on_step` with the callback's locals.

        Callbacks that share the object may all call it: a step is counted once.
        """
        if self._collected == model.num_timesteps:
            return
        self._collected = model.num_timesteps
        if self.n_actions:
            chosen = np.asarray(local["actions"]).reshape(-1)
            self.action_counts += np.bincount(chosen, minlength=self.n_actions)
        self._count_infos(model, local["infos"], local["dones"])
        self._count_rows(_raw_observations(model, local["new_obs"]))

    @property
    def qps(self) -> float | None:
        """Arrivals per simulated second, over all environments; None before there are any."""
        return self._arrivals / self._seconds if self._seconds > 0 else None

    @property
    def latency_s(self) -> float | None:
        """Mean over decisions of the end-to-end latency that the cluster reported, seconds."""
        return self._latency_sum / self._latency_count if self._latency_count else None

    @property
    def shares(self) -> FloatArray | None:
        """Share of the decisions per replica, (n_replicas,)."""
        total = self.action_counts.sum()
        return self.action_counts / total if total else None

    @property
    def balance(self) -> float | None:
        """Entropy of the shares over ln N: 1 when all replicas got the same number."""
        return None if self.shares is None else normalized_entropy(self.shares)

    @property
    def reward_terms(self) -> dict[str, float]:
        """Mean of each reward term over the decisions, by the key in `info`."""
        return {name: total / self._steps for name, total in self._terms.items() if self._steps}

    def _clear(self, n_actions: int) -> None:
        self.n_actions = n_actions
        self.action_counts = np.zeros(n_actions, dtype=np.int64)
        self.tells_time = self.tells_latency = False
        self.speeds: FloatArray | None = None
        self._arrivals, self._seconds = 0, 0.0
        self._latency_sum, self._latency_count = 0.0, 0
        self._terms: dict[str, float] = {}
        self._steps = 0

    def _count_infos(self, model: BaseAlgorithm, infos: Any, dones: Any) -> None:
        state = callback_state(model, self.STATE)
        last: list[float | None] = state.setdefault("time_s", [None] * len(infos))
        self._steps += len(infos)
        terms = [key for key in infos[0] if key.startswith("reward/")]
        for index, info in enumerate(infos):
            for key in terms:
                self._terms[key] = self._terms.get(key, 0.0) + float(info[key])
            now = info.get("time_s")
            if now is None:
                continue
            self.tells_time = True
            before = last[index]
            # After the last decision of an episode comes the drain, which is no time of arrivals.
            last[index] = None if dones[index] else float(now)
            # A clock that went back is another episode's, as after set_env().
            if before is not None and not dones[index] and float(now) >= before:
                self._arrivals += 1
                self._seconds += float(now) - before

    def _count_rows(self, rows: npt.NDArray[np.floating]) -> None:
        if self._columns is None or rows.ndim != 3 or rows.shape[1] != self.n_actions:
            return
        if rows.shape[2] < len(self._columns):  # a rule's score may stand behind them
            return
        latency_at = self._columns.position(Signal.E2E_S)
        if latency_at is not None:
            self.tells_latency = True
            latency = rows[:, 0, latency_at].astype(np.float64) / Signal.E2E_S.scale
            known = latency > 0
            self._latency_sum += float(latency[known].sum())
            self._latency_count += int(known.sum())
        speed_at = self._columns.position(Signal.SPEED)
        if speed_at is not None:
            self.speeds = rows[0, :, speed_at].astype(np.float64) / Signal.SPEED.scale


def normalized_entropy(shares: FloatArray) -> float:
    """Returns the entropy of shares over that of equal ones, from 0 to 1; 1 for a single one."""
    if len(shares) < 2:
        return 1.0
    positive = shares[shares > 0]
    # The negative zero of a single positive share is added away.
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares))) + 0.0


def _columns_of(env: VecEnv | None) -> Columns | None:
    """Returns what the observations of LLMRoute-v0 show, None of any other environment."""
    if env is None or not env.has_attr("observation_config"):
        return None
    return Columns(env.get_attr("observation_config")[0].columns)


def _raw_observations(model: BaseAlgorithm, observations: Any) -> npt.NDArray[np.floating]:
    wrapper = model.get_vec_normalize_env()
    raw = observations if wrapper is None else wrapper.old_obs
    return np.asarray(raw) if isinstance(raw, np.ndarray) else np.empty((0,))
