"""The configurations of the tuning log's stages, and the numbers that are taken of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from courses import END, CloneAccuracy, Course, first_within
from trainings import Evaluation, FloatArray, Served

from llmroute_gym.compare.statistics import Resampling, change, estimate
from llmroute_gym.config import TrainConfig
from llmroute_gym.sim.outcome import percentile

LOADS = (2.5, 3.5, 4.5)
"""Requests per second, the tuning log's."""
LIGHT_AND_HEAVY = (0, len(LOADS) - 1)
"""Indices of the load that most trainings see, and of the heaviest."""
RULES = BASELINE, *OTHERS = "round_robin", "lor", "lor_hybrid"
PERCENTS = P95, P99 = (95, 99)
NEAR = 0.02
"""A P95 that is higher than round robin's by no more than this share is near it."""
SETTLED = 20
"""Updates after which the observation statistics shall not have moved much."""

BASE = "+exp=latency_tuned"
NO_DEMOS = "warm_start=none"
UNSTABILISED = "stabilization=disabled"
MLP = "model=mlp"
ONE_TEACHER = (f"warm_start.policies=[{OTHERS[-1]}]",)
NO_REFERENCE = ("kl.kl_ref_coef_initial=0", "kl.kl_ref_coef_final=0")
RAMP, HEAVY = "curriculum=qps_ramp", f"training.qps={LOADS[-1]}"

CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    "demos": (),
    "demos-unstabilised": (UNSTABILISED,),
    "demos-no-reference": NO_REFERENCE,
    "demos-ramp": (RAMP,),
    "demos-heavy": (HEAVY,),
    "demos-hybrid": ONE_TEACHER,
    "none": (NO_DEMOS,),
    "none-no-reference": (NO_DEMOS, *NO_REFERENCE),
    "none-no-reference-unstabilised": (NO_DEMOS, *NO_REFERENCE, UNSTABILISED),
    "none-ramp": (NO_DEMOS, RAMP),
    "none-heavy": (NO_DEMOS, HEAVY),
    "demos-mlp": (MLP,),
    "none-mlp": (NO_DEMOS, MLP),
}
"""Name to what differs from `BASE`; a name is that of a row in all tables."""
LABELS = {
    "demos": "demonstrations, then PPO",
    "demos-unstabilised": "demonstrations, then PPO",
    "demos-no-reference": "demonstrations, then PPO without reference",
    "demos-hybrid": f"demonstrations of `{OTHERS[-1]}` only, then PPO",
    "none": "PPO alone",
    "none-no-reference": "PPO alone, without reference",
    "none-no-reference-unstabilised": "PPO alone, without reference",
}
CLONES: Mapping[str, tuple[str, str, int]] = {
    "clone-round_robin": ("round_robin", "replica_set", 700),
    "clone-lor": ("lor", "replica_set", 700),
    "clone-lor-mlp": ("lor", "mlp", 40_000),
}
"""Name to the router, the network and the number of demonstrations."""


@dataclass(frozen=True, eq=False)
class Measured:
    """All that was served.

    Attributes:
        evaluation: the common requests.
        resampling: of training seeds and runs, the same for all.
        rules: name to latencies.
        courses: name of a configuration to its trainings.
        clones: name of a clone to its latencies.
        accuracies: name of a clone to one per seed.
        settings: of the first training of each configuration.
    """

    evaluation: Evaluation
    resampling: Resampling
    rules: Mapping[str, Served]
    courses: Mapping[str, Sequence[Course]]
    clones: Mapping[str, Served]
    accuracies: Mapping[str, Sequence[CloneAccuracy]]
    settings: Mapping[str, TrainConfig]

    @property
    def seeds(self) -> int:
        """Trainings of each configuration."""
        return int(self.resampling.seeds.shape[1])

    def served(self, name: str, point: int = END) -> Served:
        """Returns the latencies of a rule, a clone, or of a configuration at one of its points."""
        found = self.rules.get(name) or self.clones.get(name)
        if found is not None:
            return found
        watched = self.courses[name]
        return Served(
            *(np.stack([getattr(one, of)[point] for one in watched]) for of in Served._fields)
        )


@cache
def tails(measured: Measured, name: str, load: int, point: int = END) -> FloatArray:
    """Returns P95 and P99 of the end-to-end latency, (1 + n_resamples, 2), seconds."""
    latency = measured.served(name, point).e2e[:, load : load + 1]
    return measured.resampling.percentiles(latency, PERCENTS)


def own_tail(
    measured: Measured, name: str, load: int, percent: int, point: int = END
) -> FloatArray:
    """Returns each training's own percentile, (n_seeds,), seconds."""
    latency = measured.served(name, point).e2e[:, load]
    return np.array([percentile(one.ravel(), percent) for one in latency])


def pooled_change(
    measured: Measured,
    name: str,
    load: int,
    percent: int,
    point: int = END,
    against: tuple[str, int] = (BASELINE, END),
) -> str:
    """Words how a percentile over all trainings differs from another's, with its interval."""
    column = PERCENTS.index(percent)
    here = tails(measured, name, load, point)[:, column]
    there = tails(measured, against[0], load, against[1])[:, column]
    found = estimate(change(here, there))
    return f"{100 * found.value:+.1f}% ({100 * found.low:+.1f}..{100 * found.high:+.1f})"


def own_changes(
    measured: Measured,
    name: str,
    load: int,
    percent: int,
    point: int = END,
    against: tuple[str, int] = (BASELINE, END),
) -> FloatArray:
    """Returns how each training's own percentile differs from another's, (n_seeds,), shares."""
    there = own_tail(measured, against[0], load, percent, against[1])
    return change(own_tail(measured, name, load, percent, point), there)


def shares(values: Sequence[float] | FloatArray) -> str:
    """Words one number per training."""
    return ", ".join(f"{100 * value:+.1f}" for value in values)


def needed(measured: Measured, name: str, load: int) -> list[int | None]:
    """Returns the decisions of PPO that each training needed to come and stay near round robin."""
    limit_s = (1 + NEAR) * own_tail(measured, BASELINE, load, P95)[0]
    return [
        first_within(one.decisions, one.p95_s[:, load], limit_s) for one in measured.courses[name]
    ]


def demonstrated(settings: TrainConfig) -> int:
    """Returns how many decisions of other routers a training learned from."""
    start = settings.warm_start
    return start.decisions * len(start.policies) if start.cloning else 0


def in_words(decisions: Sequence[int | None], more: int = 0) -> str:
    """Words numbers of decisions, one per training."""
    return ", ".join("never" if one is None else str(one + more) for one in decisions)
