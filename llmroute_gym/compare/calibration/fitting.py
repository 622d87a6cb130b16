"""The search for the batch times under which a log's requests take as long as they took."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.compare.search.proposals import Proposals, usual_population
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica

LEVELS = (50, 90, 99)
"""Percentiles that are compared."""
RANGES = {
    "c0": (1e-4, 0.5),
    "c1": (1e-8, 1e-2),
    "n0": (1.0, 2048.0),
    "c2": (1e-11, 1e-4),
    "c3": (1e-14, 1e-5),
    "besides_s": (1e-6, 1.0),
}
"""Where each number is searched, evenly in its logarithm; the last one is `Fitted.besides_s`."""
SPREAD = 0.05
"""Of the first generation, as a share of each range."""
LARGEST = math.log(20)
"""A request counts as no more wrong than by this factor."""


class Fitted(NamedTuple):
    """Batch times, and what a request takes in addition.

    Attributes:
        batch_time: of one replica.
        besides_s: seconds of a request that no batch takes, such as its way through HTTP.
    """

    batch_time: FormulaBatchTime
    besides_s: float


class Times(NamedTuple):
    """What was simulated, each of shape (n_requests,), seconds."""

    ttft_s: FloatArray
    e2e_s: FloatArray


def simulated(recorded: Recorded, replica: Replica, fitted: Fitted) -> Times:
    """Returns the times of the log's requests on the backends that they were sent to.

    Args:
        recorded: the log.
        replica: the limits of every backend.
        fitted: its batch times.
    """
    one = replace(replica, batch_time=fitted.batch_time)
    cluster = Cluster((one,) * len(recorded.backends))
    outcome = simulate(recorded.workload, cluster, recorded.backend)
    return Times(outcome.ttft_s + fitted.besides_s, outcome.e2e_s + fitted.besides_s)


def quantile_errors(simulated_s: FloatArray, recorded_s: FloatArray) -> FloatArray:
    """Returns simulated against recorded percentiles at `LEVELS`, as ln(simulated / recorded)."""
    pair = (np.percentile(one, LEVELS) for one in (simulated_s, recorded_s))
    errors: FloatArray = np.subtract(*map(np.log, pair))
    return errors


def loss(recorded: Recorded, times: Times, part: BoolArray) -> float:
    """Returns how wrong times are: request by request, and in their percentiles.

    Args:
        recorded: the log.
        times: simulated.
        part: (n_requests,) the requests that count.
    """
    total = 0.0
    for simulated_s, recorded_s in ((times.ttft_s, recorded.ttft_s), (times.e2e_s, recorded.e2e_s)):
        known = part & (recorded_s > 0)
        if known.any():
            errors = np.abs(np.log(simulated_s[known] / recorded_s[known]))
            total += float(np.minimum(errors, LARGEST).mean())
            total += (
                float(np.abs(quantile_errors(simulated_s[known], recorded_s[known])).mean()) / 2
            )
    return total


def first_guess(recorded: Recorded) -> Fitted:
    """Returns what the log's quickest requests suggest, which those that waited do not tell."""
    prompts, outputs = recorded.computed_tokens, recorded.workload.output_tokens
    streamed = np.isfinite(recorded.ttft_s) & np.isfinite(recorded.e2e_s) & (outputs > 1)
    if streamed.any():
        decode_s = (recorded.e2e_s - recorded.ttft_s)[streamed] / (outputs[streamed] - 1)
        prefill_s = recorded.ttft_s[streamed] / prompts[streamed]
    else:
        whole = np.isfinite(recorded.e2e_s)
        decode_s = recorded.e2e_s[whole] / outputs[whole]
        prefill_s = decode_s / prompts[whole]
    step_s, token_s = max(np.quantile(decode_s, 0.05), 1e-4), max(np.quantile(prefill_s, 0.1), 1e-8)
    context = float(recorded.workload.prompt_tokens.mean())
    attention = {"c2": 0.02 * float(step_s) / context, "c3": 0.1 * float(token_s) / context}
    formula = FormulaBatchTime(c0=float(step_s), c1=float(token_s), n0=64.0, **attention)
    return Fitted(formula, 0.1 * float(step_s))


def fit(
    recorded: Recorded,
    replica: Replica,
    part: BoolArray,
    candidates: int,
    seed: int,
    on_generation: Callable[[int, float], object] = lambda measured, best: None,
) -> Fitted:
    """Searches the batch times.

    Args:
        recorded: the log.
        replica: the limits of every backend.
        part: (n_requests,) the requests whose times count; all of them are simulated.
        candidates: how many are simulated.
        seed: of the search.
        on_generation: called with how many have been simulated and the lowest loss.
    """
    best, lowest = first_guess(recorded), math.inf
    size = usual_population(len(RANGES))
    proposals = Proposals(_point(best), SPREAD, size, seed)
    measured = 0
    while measured < candidates and not proposals.converged:
        points = proposals.ask(size)
        if not measured:
            points[0] = _point(best)
        found = [_fitted(point) for point in points]
        losses = [loss(recorded, simulated(recorded, replica, one), part) for one in found]
        proposals.tell(points, losses)
        measured += size
        if min(losses) < lowest:
            lowest = min(losses)
            best = found[losses.index(lowest)]
        on_generation(measured, lowest)
    return best


def _point(fitted: Fitted) -> FloatArray:
    """Returns where its numbers lie in their ranges, each 0 to 1."""
    places = []
    for key, (low, high) in RANGES.items():
        value = getattr(fitted if key == "besides_s" else fitted.batch_time, key)
        places.append(math.log(value / low) / math.log(high / low))
    return np.clip(places, 0.0, 1.0)


def _fitted(point: FloatArray) -> Fitted:
    ranges = zip(point.tolist(), RANGES.items(), strict=True)
    values = {key: low * (high / low) ** place for place, (key, (low, high)) in ranges}
    besides_s = values.pop("besides_s")
    return Fitted(FormulaBatchTime(**values), besides_s)
