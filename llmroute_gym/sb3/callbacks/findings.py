"""What a sick training looks like, and the advice for it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from llmroute_gym.ground.arrays import FloatArray

WINDOW = 20
"""Updates that shares and early stops are judged over."""
HISTORY = 50
"""Updates that the running median of the value loss looks back on."""
SPIKE = 5.0
"""From this multiple of its running median on, a value loss spikes."""
PATIENCE = 3
"""Updates in a row that make a spike or a collapse a finding."""
ENOUGH = 5
"""Updates from which on there is a median to compare with."""

ADVICE = {
    "value_loss_spike": "reduce the critic's hidden size (model.critic_sizes)",
    "policy_skew": "check reward.load_balance_penalty",
    "kl_overrun": "relax kl.target_kl to 0.025",
    "entropy_collapse": "raise exploration.entropy_coef or kl.entropy_min_coef",
    "non_finite": "lower training.learning_rate; the last finite weights were kept",
    "argmax_differs": (
        "let the policy end up surer: lower exploration.entropy_coef and kl.entropy_min, or train "
        "longer (training.ppo_requests)"
    ),
    "worse_than_round_robin": (
        "do not route with it; start from demonstrations of a sound router (warm_start.policies), "
        "or train longer (training.ppo_requests)"
    ),
    "mlp_beyond_load": "choose model=replica_set, or route with it at the trained load only",
}
"""The findings, each with what to do about it."""

OF_UPDATES = ("value_loss_spike", "policy_skew", "kl_overrun", "entropy_collapse")
"""Those that each update is examined for."""


@dataclass
class Vitals:
    """The recent updates, newest last.

    Attributes:
        value_losses: up to `HISTORY`.
        median: of the value losses before the newest; None while there are too few to tell.
        spiking: updates in a row whose value loss was a spike.
        entropies: mean entropy in nats, up to `PATIENCE`.
        early_stops: up to `WINDOW`.
        shares: of the replicas, up to `WINDOW`.
    """

    value_losses: list[float] = field(default_factory=list)
    median: float | None = None
    spiking: int = 0
    entropies: list[float] = field(default_factory=list)
    early_stops: list[bool] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)

    @classmethod
    def read(cls, state: dict[str, Any]) -> Self:
        """Takes up what `write` left."""
        return cls(**state.get("vitals", {}))

    def write(self, state: dict[str, Any]) -> None:
        """Leaves everything in a dict that can be saved."""
        state["vitals"] = asdict(self)

    def add_rollout(self, shares: FloatArray) -> None:
        """Adds how a rollout's requests were shared out."""
        self.shares = [*self.shares, shares.tolist()][-WINDOW:]

    def add_update(self, *, value_loss: float, entropy: float, early_stop: bool) -> None:
        """Adds an update."""
        known = self.value_losses
        self.median = float(np.median(known)) if len(known) >= ENOUGH else None
        spike = self.median is not None and value_loss > SPIKE * self.median
        self.spiking = self.spiking + 1 if spike else 0
        self.value_losses = [*known, value_loss][-HISTORY:]
        self.entropies = [*self.entropies, entropy][-PATIENCE:]
        self.early_stops = [*self.early_stops, early_stop][-WINDOW:]


def examine(
    vitals: Vitals, speeds: Sequence[float] | None, entropy_min: float | None
) -> dict[str, str]:
    """Returns what is wrong: the names of the findings, each with a sentence.

    Args:
        vitals: the recent updates.
        speeds: of the replicas; None means equal ones.
        entropy_min: nats below which the entropy has collapsed; None does not look.
    """
    sentences = {
        "value_loss_spike": _value_loss_spike(vitals),
        "policy_skew": _policy_skew(vitals, speeds),
        "kl_overrun": _kl_overrun(vitals),
        "entropy_collapse": _entropy_collapse(vitals, entropy_min),
    }
    return {name: sentence for name, sentence in sentences.items() if sentence is not None}


def _value_loss_spike(vitals: Vitals) -> str | None:
    if vitals.spiking < PATIENCE:
        return None
    return (
        f"the value loss ({vitals.value_losses[-1]:.3g}) has been above {SPIKE:g} times its "
        f"running median ({vitals.median:.3g}) for {vitals.spiking} updates"
    )


def _policy_skew(vitals: Vitals, speeds: Sequence[float] | None) -> str | None:
    if len(vitals.shares) < WINDOW:
        return None
    shares = np.mean(vitals.shares, axis=0)
    fair = np.ones(len(shares)) if speeds is None else np.asarray(speeds, dtype=np.float64)
    fair = fair / fair.sum()
    off = np.flatnonzero((shares > 2 * fair) | (shares < fair / 2))
    if not len(off):
        return None
    worst = off[np.argmax(np.abs(np.log(np.maximum(shares[off], 1e-9) / fair[off])))]
    return (
        f"replica {worst} got {shares[worst]:.1%} of the requests over {WINDOW} updates, "
        f"its fair share by speed is {fair[worst]:.1%}"
    )


def _kl_overrun(vitals: Vitals) -> str | None:
    stops = sum(vitals.early_stops)
    if len(vitals.early_stops) < WINDOW or 2 * stops <= WINDOW:
        return None
    return f"target_kl stopped {stops} of the last {WINDOW} updates early"


def _entropy_collapse(vitals: Vitals, entropy_min: float | None) -> str | None:
    recent = vitals.entropies
    if entropy_min is None or len(recent) < PATIENCE or max(recent) >= entropy_min:
        return None
    return (
        f"the policy's mean entropy ({recent[-1]:.3g} nats) has been below {entropy_min:.3g} for "
        f"{PATIENCE} updates"
    )
