"""What is logged about each update."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sb3.callbacks.rollout_statistics import RolloutStatistics, normalized_entropy
from llmroute_gym.sb3.counters import callback_state, forget_if_new
from llmroute_gym.sim.outcome import percentile

HISTORY = 50
"""Updates that the running median of the value loss looks back on."""
COEFFICIENTS = {
    "ent_coef": "coef/entropy",
    "kl_coef": "coef/kl",
    "kl_ref_coef": "coef/kl_ref",
    "entropy_min_coef": "coef/entropy_min",
}


class RouterMonitor(BaseCallback):
    """Logs the curves by which a training is judged; works with every PPO.

    Beside what PPO and RouterPPO log themselves (`train/value_loss`, `train/approx_kl`,
    `train/explained_variance`, `train/clip_fraction`, `train/kl_ref`, `train/early_stop`):

    | key | meaning |
    |---|---|
    | advantage/mean, advantage/std | of the rollout, before normalisation |
    | train/value_loss_ratio | value loss over its running median |
    | train/entropy | mean entropy in the update, nats |
    | temperature/value | of the policy in the rollout |
    | coef/entropy, kl, kl_ref, entropy_min | the coefficients in force |
    | replica/share_00 ... | share of the rollout's decisions |
    | replica/entropy | normalised entropy of the shares, 1 is even |
    | replica/swing | total variation to the shares of the rollout before |
    | reward/... | mean of each reward term |
    | load/qps, load/e2e_s | arrivals per second; latency that the cluster reported |
    | latency/p50_s, p95_s, p99_s | end to end, over the recent requests of all environments |

    The last are `inf` where rejected requests, which count as infinitely slow, take part. They need
    `recent_e2e_s()`, of each environment (see `RecentLatencies`) or pooled of the VecEnv itself;
    what an environment does not tell is left out. PPO logs an update one dump late; at the end of
    the training the last update is dumped. So it goes after the other callbacks that read or log an
    update, `HealthMonitor` among them.

    Args:
        statistics: to share with other callbacks.
        verbose: as in all callbacks.
    """

    STATE = "router_monitor"

    def __init__(self, statistics: RolloutStatistics | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.statistics = statistics or RolloutStatistics()

    def _on_training_start(self) -> None:
        forget_if_new(self.model, self.STATE)
        self.statistics.attach(self.model)

    def _on_rollout_start(self) -> None:
        self._log_update()
        self.statistics.start(self.model)

    def _on_step(self) -> bool:
        self.statistics.collect(self.model, self.locals)
        return True

    def _on_rollout_end(self) -> None:
        record, seen = self.logger.record, self.statistics
        advantages = self.locals["rollout_buffer"].advantages
        record("advantage/mean", float(advantages.mean()))
        record("advantage/std", float(advantages.std()))
        temperature = getattr(self.model.policy, "temperature", None)
        if temperature is not None:
            record("temperature/value", float(temperature))
        self._log_shares()
        for name, value in seen.reward_terms.items():
            record(name, value)
        for name, load in (("load/qps", seen.qps), ("load/e2e_s", seen.latency_s)):
            if load is not None:
                record(name, load)
        self._log_latencies(self._recent_latencies())

    def _on_training_end(self) -> None:
        self._log_update()
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _log_update(self) -> None:
        """Logs what the update since the last call left behind, if there was one."""
        values, state = self.logger.name_to_value, callback_state(self.model, self.STATE)
        if "train/value_loss" not in values or state.get("n_updates") == self.model._n_updates:
            return
        state["n_updates"] = self.model._n_updates
        history: list[float] = state.setdefault("value_losses", [])
        loss = float(values["train/value_loss"])
        if history and np.median(history) > 0:
            self.logger.record("train/value_loss_ratio", loss / float(np.median(history)))
        state["value_losses"] = [*history, loss][-HISTORY:]
        self.logger.record("train/entropy", -float(values["train/entropy_loss"]))
        for attribute, key in COEFFICIENTS.items():
            coefficient: Any = getattr(self.model, attribute, None)
            if coefficient is not None:
                self.logger.record(key, float(coefficient))

    def _log_shares(self) -> None:
        shares = self.statistics.shares
        if shares is None:
            return
        for replica, share in enumerate(shares):
            self.logger.record(f"replica/share_{replica:02d}", float(share))
        self.logger.record("replica/entropy", normalized_entropy(shares))
        state = callback_state(self.model, self.STATE)
        if "shares" in state:
            swing = 0.5 * float(np.abs(shares - np.asarray(state["shares"])).sum())
            self.logger.record("replica/swing", swing)
        state["shares"] = shares.tolist()

    def _recent_latencies(self) -> FloatArray:
        """Returns the latencies of all environments in seconds, none where they are not told."""
        env = self.training_env.unwrapped
        if hasattr(env, "recent_e2e_s"):
            return np.asarray(env.recent_e2e_s())
        if not env.has_attr("recent_e2e_s"):
            return np.empty(0)
        return np.concatenate([np.asarray(one) for one in env.env_method("recent_e2e_s")])

    def _log_latencies(self, pooled: FloatArray) -> None:
        if len(pooled):
            for percent in (50, 95, 99):
                self.logger.record(f"latency/p{percent}_s", percentile(pooled, percent))
