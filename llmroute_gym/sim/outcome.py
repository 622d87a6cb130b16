"""What became of every request."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import SLO
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.metrics import LATENCIES, PERCENTILES, SCALARS, latency_key
from llmroute_gym.sim.outcome_json import inference_perf_report, vllm_report


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
        ordered: (n_rows, n), n >= 1; infinity stands behind the numbers, and NaN, which is left
            out, last.
        qs: 0 to 100 each.

    Returns:
        (n_rows, n_qs); infinite where infinity takes part, NaN where nothing is left.
    """
    last = np.maximum((~np.isnan(ordered)).sum(axis=1, keepdims=True) - 1, 0)
    position = last * np.asarray(qs) / 100
    low = np.floor(position).astype(np.int64)
    below, above = (
        np.take_along_axis(ordered, index, axis=1)
        for index in (low, np.ceil(position).astype(np.int64))
    )
    return between(below, above, position - low)


def between(below: FloatArray, above: FloatArray, share: FloatArray) -> FloatArray:
    """Interpolates linearly; infinity and NaN of the upper value stay what they are."""
    finite = np.isfinite(above)
    rise = np.subtract(above, below, where=finite, out=np.zeros_like(above))
    return np.where(finite, below + rise * share, above)


_NOTHING: Any = None
"""The default of counts that are then zero."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """All requests of one run, each array of shape (n_requests,) in workload order.

    A rejected request has replica -1 and infinite `scheduled_at_s`, `first_token_at_s` and
    `finished_at_s`.

    Taken half-way through a run it is a copy of that instant: a request has NaN for each time that
    it has not reached, and replica -1 until it is placed. `summary` counts what is not finished
    as infinitely slow.

    Attributes:
        arrived_at_s: seconds.
        scheduled_at_s: start of the first batch, seconds.
        first_token_at_s: end of the batch that completed the prefill, seconds.
        finished_at_s: seconds.
        replica: index of the replica, -1 if rejected or not placed yet.
        prompt_tokens: tokens.
        output_tokens: tokens that come out, fewer than asked for where `max_model_len` ends it.
        preemptions: restarts.
        cached_tokens: tokens found in the prefix cache at the first admission; zeros if left out.
        recached_tokens: the same of the admissions after a restart, summed.
    """

    arrived_at_s: FloatArray
    scheduled_at_s: FloatArray
    first_token_at_s: FloatArray
    finished_at_s: FloatArray
    replica: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    preemptions: IntArray
    cached_tokens: IntArray = _NOTHING
    recached_tokens: IntArray = _NOTHING

    def __post_init__(self) -> None:
        for name in ("cached_tokens", "recached_tokens"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros_like(self.preemptions))

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
        """Time per output token after the first, seconds; NaN for one-token outputs."""
        with np.errstate(invalid="ignore"):
            decode_s = self.finished_at_s - self.first_token_at_s
        decode_s = np.where(self.rejected, np.inf, decode_s)
        return np.where(
            self.output_tokens > 1, decode_s / np.maximum(self.output_tokens - 1, 1), np.nan
        )

    @property
    def ntpot_s(self) -> FloatArray:
        """End-to-end latency per output token, seconds."""
        return self.e2e_s / self.output_tokens

    @property
    def rejected(self) -> BoolArray:
        """Which requests no replica took, because it could not hold them."""
        return (self.replica < 0) & np.isinf(self.finished_at_s)

    def summary(
        self,
        goodput_latency_s: float | None = None,
        *,
        slo: SLO | None = None,
        n_replicas: int | None = None,
        served_only: bool = False,
    ) -> dict[str, float]:
        """Returns one number per metric of `llmroute_gym.ground.metrics.METRICS`.

        Args:
            goodput_latency_s: short for `slo=SLO(e2e_s=...)`.
            slo: the objectives of `goodput_rps` and `goodput_share`, which are left out without.
            n_replicas: of the cluster, for `fairness_requests` and `fairness_tokens`, which are
                left out without.
            served_only: whether latencies are those of finished requests alone; else the others
                count as infinite.

        Returns:
            `{e2e,ttft,tpot,ntpot,queue}_{mean,std,p50,p90,p95,p99,p999,max}_s`, `throughput_rps`,
            `makespan_s`, `requests`, `rejected`, `preemptions` and further ones; NaN for a
            statistic of no request.

        Raises:
            InputError: an objective is out of range, or given twice.
        """
        if goodput_latency_s is not None:
            if slo is not None:
                raise InputError("goodput_latency_s and slo are both given; leave one of them out")
            slo = SLO(e2e_s=goodput_latency_s)
        numbers = summaries(stacked([self]), slo, n_replicas, served_only=served_only)
        return {
            name: int(value[0]) if value.dtype.kind == "i" else float(value[0])
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

    def to_vllm_json(self, path: str | Path, slo: SLO | None = None, **metadata: Any) -> None:
        """Writes what `vllm bench serve --save-result` does; the file is complete or absent.

        Inter-token latencies (`itl`) and the most output tokens of a second are left out: an
        outcome has no times of single tokens.

        Args:
            path: of the file.
            slo: the objectives of `request_goodput`, which is null without any.
            **metadata: further entries, such as `model_id` or `request_rate`.

        Raises:
            InputError: the file cannot be written, or an objective is out of range.
        """
        _write_json(path, vllm_report(self, slo, metadata))

    def to_inference_perf_json(self, path: str | Path) -> None:
        """Writes inference-perf's summary of a run, without inter-token latencies, see above.

        Raises:
            InputError: the file cannot be written.
        """
        _write_json(path, inference_perf_report(self))


def _write_json(path: str | Path, report: Mapping[str, Any]) -> None:
    with complete_or_absent(path) as part:
        part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def stacked(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns runs with equally many requests as one, arrays of shape (n_runs, n_requests)."""
    names = [field.name for field in fields(Outcome)]
    return Outcome(*(np.stack([getattr(one, name) for one in outcomes]) for name in names))


def summaries(
    outcomes: Outcome,
    slo: SLO | None = None,
    n_replicas: int | None = None,
    *,
    served_only: bool = False,
    latencies: Sequence[str] = tuple(LATENCIES),
) -> dict[str, npt.NDArray[Any]]:
    """Returns the metrics of `Outcome.summary` for several runs at once, shape (n_runs,) each.

    Args:
        outcomes: of runs with equally many requests; its arrays have shape (n_runs, n_requests).
        slo: as for `Outcome.summary`, like the rest.
        n_replicas: see there.
        served_only: see there.
        latencies: those of `LATENCIES` that are wanted.
    """
    numbers: dict[str, npt.NDArray[Any]] = {}
    values = np.stack([latency_s(outcomes, name, served_only=served_only) for name in latencies])
    for statistic, found in _statistics(values).items():
        for name, value in zip(latencies, found, strict=True):
            numbers[latency_key(name, statistic)] = value
    known = totals(outcomes, slo, n_replicas)
    for metric in SCALARS:
        if metric.numerator in known:
            total = known[metric.numerator]
            parts = known[metric.denominator] if metric.denominator else None
            numbers[metric.key] = total if parts is None else quotient(total, parts)
    return numbers


def latency_s(outcomes: Outcome, name: str, *, served_only: bool = False) -> FloatArray:
    """Returns a latency as its statistics take it, in seconds, of the outcomes' shape.

    Args:
        outcomes: of one or several runs.
        name: one of `LATENCIES`.
        served_only: whether requests that are not finished are left out.

    Returns:
        NaN for what the latency is not defined of or is left out, else infinity for a request
        that is not finished.
    """
    seconds: FloatArray = getattr(outcomes, f"{name}_s")
    unfinished = ~np.isfinite(outcomes.finished_at_s)
    if unfinished.any():
        counted = outcomes.output_tokens >= LATENCIES[name].least_output_tokens
        lost = np.where(counted & (not served_only), np.inf, np.nan)
        seconds = np.where(unfinished, lost, seconds)
    return seconds


def _statistics(values: FloatArray) -> dict[str, FloatArray]:
    """Returns `STATISTICS` over the last axis, NaN left out: each of the shape of the others."""
    n = values.shape[-1]
    mean, std = np.empty(values.shape[:-1]), np.empty(values.shape[:-1])
    with np.errstate(invalid="ignore"):
        for kind, one in enumerate(values):
            total: Any = one.sum(axis=-1)
            count: Any = n
            if np.isnan(total).any():
                missing = np.isnan(one)
                count = n - missing.sum(axis=-1)
                total = np.where(missing, 0.0, one).sum(axis=-1)
            mean[kind] = total / count
            apart = one - mean[kind][:, None]
            if count is not n:
                apart[missing] = 0.0
            np.multiply(apart, apart, out=apart)
            std[kind] = np.where(np.isinf(total), np.inf, np.sqrt(apart.sum(axis=-1) / count))
    ordered = np.sort(values, axis=-1).reshape(-1, n)
    found = percentiles_of_sorted(ordered, tuple(PERCENTILES.values()))
    found = found.reshape(*values.shape[:-1], len(PERCENTILES))
    return {
        "mean": mean,
        "std": std,
        **dict(zip(PERCENTILES, np.moveaxis(found, -1, 0), strict=True)),
    }


def totals(
    outcomes: Outcome, slo: SLO | None = None, n_replicas: int | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Returns what scalar metrics are made of, of each run, shape (n_runs,) each.

    Args:
        outcomes: its arrays have shape (n_runs, n_requests).
        slo: the objectives of `good`, which is left out without any.
        n_replicas: of the cluster; without it there is no fairness.

    Raises:
        InputError: an objective is out of range.
    """
    served = np.isfinite(outcomes.finished_at_s)
    n_runs, n_requests = served.shape
    tokens = outcomes.prompt_tokens + outcomes.output_tokens
    began = outcomes.arrived_at_s[:, 0]
    ends = np.where(served, outcomes.finished_at_s, -np.inf).max(axis=1)
    most = (9 * n_requests + 9) // 10 - 1
    finished = np.where(served, outcomes.finished_at_s, np.inf)
    found: dict[str, npt.NDArray[Any]] = {
        "runs": np.ones(n_runs, dtype=np.int64),
        "requests": np.full(n_runs, n_requests),
        "rejected": outcomes.rejected.sum(axis=1),
        "served": served.sum(axis=1),
        "output_tokens": (outcomes.output_tokens * served).sum(axis=1),
        "tokens": (tokens * served).sum(axis=1),
        "makespan_s": np.where(served.any(axis=1), ends - began, 0.0),
        "time_to_90_s": np.partition(finished, most, axis=1)[:, most] - began,
        "preemptions": outcomes.preemptions.sum(axis=1),
        "cached_tokens": (outcomes.cached_tokens * served).sum(axis=1),
        "prompt_tokens": (outcomes.prompt_tokens * served).sum(axis=1),
    }
    if slo is not None and slo.validate().objectives():
        good = served
        for name, limit in slo.objectives().items():
            # A one-token output has no time per further token, which so is never too long.
            good = good & ~(getattr(outcomes, name) > limit)
        found["good"] = good.sum(axis=1)
    if n_replicas is not None:
        found["fairness_requests"] = _fairness(per_replica(outcomes, n_replicas, served))
        found["fairness_tokens"] = _fairness(per_replica(outcomes, n_replicas, tokens * served))
    return found


def per_replica(outcomes: Outcome, n_replicas: int, amounts: npt.NDArray[Any]) -> FloatArray:
    """Returns sums over the requests of each replica, shape (n_runs, n_replicas).

    Args:
        outcomes: its arrays have shape (n_runs, n_requests).
        n_replicas: of the cluster.
        amounts: (n_runs, n_requests) what is summed.
    """
    n_runs = len(outcomes.replica)
    # Requests without a replica, at -1, are counted in a column of their own.
    cells = outcomes.replica + 1 + np.arange(n_runs)[:, None] * (n_replicas + 1)
    sums = np.bincount(cells.ravel(), weights=amounts.ravel(), minlength=n_runs * (n_replicas + 1))
    by_replica: FloatArray = sums.reshape(n_runs, n_replicas + 1)[:, 1:].astype(np.float64)
    return by_replica


def _fairness(amounts: FloatArray) -> FloatArray:
    """Returns Jain's index of each row; nothing at all is even."""
    squares = amounts.shape[1] * (amounts**2).sum(axis=1)
    return quotient(amounts.sum(axis=1) ** 2, squares, without=1.0)


def quotient(
    amounts: npt.NDArray[Any], parts: npt.NDArray[Any], without: float = 0.0
) -> FloatArray:
    """Returns amounts / parts, and another number where there are no parts."""
    known: FloatArray = np.divide(
        amounts, parts, where=parts > 0, out=np.full(len(amounts), without)
    )
    return known
