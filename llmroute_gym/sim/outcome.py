"""What became of every request."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.files import complete_or_absent

PERCENTILES = (50, 90, 95, 99)
COUNTS = ("requests", "rejected", "preemptions")
"""Metrics of a summary that are whole numbers."""


def percentile(values: FloatArray, q: float) -> float:
    """Returns the q-th percentile (linear interpolation) that counts infinite values honestly.

    Args:
        values: (n,), infinity for a request that never got there.
        q: 0 to 100.
    """
    return (
        float(percentiles_of_sorted(np.sort(values)[None], (q,))[0, 0]) if len(values) else math.nan
    )


def percentiles_of_sorted(ordered: FloatArray, qs: Sequence[float]) -> FloatArray:
    """Returns percentiles (linear interpolation) of rows of ascending values.

    Args:
        ordered: (n_rows, n), n >= 1; infinity stands last.
        qs: 0 to 100 each.

    Returns:
        (n_rows, n_qs); infinite where infinity takes part.
    """
    position = (ordered.shape[1] - 1) * np.asarray(qs) / 100
    low = np.floor(position).astype(np.int64)
    below, above = ordered[:, low], ordered[:, np.ceil(position).astype(np.int64)]
    finite = np.isfinite(above)
    rise = np.subtract(above, below, where=finite, out=np.zeros_like(above))
    return np.where(finite, below + rise * (position - low), np.inf)


@dataclass(frozen=True, eq=False)
class Outcome:
    """All requests of one run, each array of shape (n_requests,) in workload order.

    A rejected request has replica -1 and infinite `scheduled_at_s`, `first_token_at_s` and
    `finished_at_s`.

    Taken half-way through a run it is a copy of that instant: a request that has not been placed
    yet looks like a rejected one (replica -1, infinite times), and one that has been placed has
    NaN for each time that it has not reached. So `summary` is meant for a run that is done.

    Attributes:
        arrived_at_s: seconds.
        scheduled_at_s: start of the first batch, seconds.
        first_token_at_s: end of the batch that completed the prefill, seconds.
        finished_at_s: seconds.
        replica: index of the replica, -1 if rejected or not placed yet.
        prompt_tokens: tokens.
        output_tokens: tokens.
        preemptions: restarts.
    """

    arrived_at_s: FloatArray
    scheduled_at_s: FloatArray
    first_token_at_s: FloatArray
    finished_at_s: FloatArray
    replica: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    preemptions: IntArray

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.arrived_at_s)

    @property
    def ttft_s(self) -> FloatArray:
        """Time to first token, seconds."""
        return self.first_token_at_s - self.arrived_at_s

    @property
    def e2e_s(self) -> FloatArray:
        """End-to-end latency, seconds."""
        return self.finished_at_s - self.arrived_at_s

    @property
    def queue_s(self) -> FloatArray:
        """Time from arrival to the first batch, seconds."""
        return self.scheduled_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> FloatArray:
        """Time per output token after the first, seconds; 0 for one-token outputs."""
        with np.errstate(invalid="ignore"):
            decode_s = self.finished_at_s - self.first_token_at_s
        decode_s = np.where(np.isnan(decode_s), np.inf, decode_s)
        steps = np.maximum(self.output_tokens - 1, 1)
        return np.where(self.output_tokens > 1, decode_s / steps, np.minimum(decode_s, 0.0))

    @property
    def rejected(self) -> npt.NDArray[np.bool_]:
        """Which requests no replica took: none could hold them, or they are not placed yet."""
        return self.replica < 0

    def summary(self, goodput_latency_s: float | None = None) -> dict[str, float]:
        """Returns one number per metric over all requests.

        Args:
            goodput_latency_s: with it, `goodput_rps` counts the requests that finish within it.

        Returns:
            `{ttft,tpot,e2e,queue}_{mean,p50,p90,p95,p99,max}_s`, `throughput_rps`,
            `makespan_s`, `requests`, `rejected`, `preemptions`, and `goodput_rps` if asked.
        """
        numbers = summaries(stacked([self]), goodput_latency_s)
        return {
            name: int(value[0]) if name in COUNTS else float(value[0])
            for name, value in numbers.items()
        }

    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """Returns the arrays by name, with `request` (0 to n - 1) first."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"request": np.arange(len(self)), **named}

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per request; the file is complete or absent.

        Raises:
            InputError: the file cannot be written.
        """
        columns = self.columns()
        with (
            complete_or_absent(path) as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(c.tolist() for c in columns.values()), strict=True))

    def to_parquet(self, path: str | Path) -> None:
        """Writes a Parquet file with one row per request; complete or absent.

        Raises:
            InputError: the file cannot be written.
        """
        import pyarrow
        from pyarrow import parquet

        with complete_or_absent(path) as part:
            parquet.write_table(pyarrow.table(dict(self.columns())), part)


def stacked(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns runs with equally many requests as one, arrays of shape (n_runs, n_requests)."""
    names = [field.name for field in fields(Outcome)]
    return Outcome(*(np.stack([getattr(one, name) for one in outcomes]) for name in names))


def summaries(
    outcomes: Outcome, goodput_latency_s: float | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Returns the metrics of `Outcome.summary` for several runs at once, shape (n_runs,) each.

    Args:
        outcomes: of runs with equally many requests; its arrays have shape (n_runs, n_requests).
        goodput_latency_s: as for `Outcome.summary`.
    """
    rejected = outcomes.rejected
    n_runs, n_requests = rejected.shape
    served = n_requests - rejected.sum(axis=1)
    numbers: dict[str, npt.NDArray[Any]] = {
        "requests": np.full(n_runs, n_requests),
        "rejected": n_requests - served,
    }
    names = ("ttft", "tpot", "e2e", "queue")
    values = np.stack([getattr(outcomes, f"{name}_s") for name in names])
    means, ordered = values.mean(axis=2), np.sort(values, axis=2)
    percentiles = percentiles_of_sorted(ordered.reshape(-1, n_requests), PERCENTILES)
    percentiles = percentiles.reshape(len(names), n_runs, len(PERCENTILES))
    for kind, name in enumerate(names):
        numbers[f"{name}_mean_s"] = means[kind]
        for column, q in enumerate(PERCENTILES):
            numbers[f"{name}_p{q}_s"] = percentiles[kind, :, column]
        numbers[f"{name}_max_s"] = ordered[kind, :, -1]
    ends = np.where(rejected, -np.inf, outcomes.finished_at_s).max(axis=1)
    makespan = np.where(served > 0, ends - outcomes.arrived_at_s[:, 0], 0.0)
    numbers["makespan_s"] = makespan
    numbers["throughput_rps"] = _rate(served, makespan)
    if goodput_latency_s is not None:
        in_time = (outcomes.e2e_s <= goodput_latency_s).sum(axis=1)
        numbers["goodput_rps"] = _rate(in_time, makespan)
    numbers["preemptions"] = outcomes.preemptions.sum(axis=1)
    return numbers


def _rate(requests: IntArray, seconds: FloatArray) -> FloatArray:
    return np.divide(requests, seconds, where=seconds > 0, out=np.zeros(len(seconds)))
