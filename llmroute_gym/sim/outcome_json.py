"""What tools that measure servers would have reported of a run, by their names and definitions."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import SLO
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray

_PERCENTILES = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
"""Of inference-perf."""


class Requests(Protocol):
    """The requests of one run, arrays of shape (n_requests,), see `Outcome`."""

    @property
    def arrived_at_s(self) -> FloatArray:
        """Seconds."""

    @property
    def finished_at_s(self) -> FloatArray:
        """Seconds, infinite if rejected."""

    @property
    def prompt_tokens(self) -> IntArray:
        """Tokens."""

    @property
    def output_tokens(self) -> IntArray:
        """Tokens."""

    @property
    def ttft_s(self) -> FloatArray:
        """Time to first token, seconds."""

    @property
    def tpot_s(self) -> FloatArray:
        """Time per output token after the first, seconds."""

    @property
    def ntpot_s(self) -> FloatArray:
        """End-to-end latency per output token, seconds."""

    @property
    def e2e_s(self) -> FloatArray:
        """End-to-end latency, seconds."""


def vllm_report(outcome: Requests, slo: SLO | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result of `vllm bench serve` (vllm/benchmarks/serve.py).

    Args:
        outcome: of the run.
        slo: the objectives of `request_goodput`, which is None without any.
        metadata: further entries, which come first.

    Raises:
        InputError: an objective is out of range.
    """
    served = np.isfinite(outcome.finished_at_s)
    completed, seconds = int(served.sum()), _duration_s(outcome, served)
    inputs = int(outcome.prompt_tokens[served].sum())
    outputs = int(outcome.output_tokens[served].sum())
    objectives = {} if slo is None else slo.validate().objectives()
    good = served.copy()
    for name, limit in objectives.items():
        good[served] &= ~(getattr(outcome, name)[served] > limit)
    result: dict[str, Any] = {
        "num_prompts": len(served),
        "duration": seconds,
        "completed": completed,
        "failed": len(served) - completed,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(completed, seconds),
        "request_goodput": _rate(int(good.sum()), seconds) if objectives else None,
        "output_throughput": _rate(outputs, seconds),
        "total_token_throughput": _rate(inputs + outputs, seconds),
        "max_concurrent_requests": _most_at_once(outcome, served),
    }
    for key, name in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("e2el", "e2e_s")):
        values = 1000 * getattr(outcome, name)[served]
        values = values[~np.isnan(values)]
        values = values if values.size else np.zeros(1)
        result[f"mean_{key}_ms"] = float(values.mean())
        result[f"median_{key}_ms"] = float(np.median(values))
        result[f"std_{key}_ms"] = float(values.std())
        result[f"p99_{key}_ms"] = float(np.percentile(values, 99))
    return {**metadata, **result}


def inference_perf_report(outcome: Requests) -> dict[str, Any]:
    """Returns inference-perf's `summary_lifecycle_metrics.json`.

    As in its `demos/kubecon-na-2025`. There, only an output of several tokens has a time to first
    token. A request that failed has no latency here.

    Args:
        outcome: of the run.
    """
    served = np.isfinite(outcome.finished_at_s)
    completed, seconds = int(served.sum()), _duration_s(outcome, served)
    inputs, outputs = outcome.prompt_tokens[served], outcome.output_tokens[served]
    streamed = served & (outcome.output_tokens > 1)
    return {
        "load_summary": {
            "count": len(served),
            "schedule_delay": _summary(np.zeros(len(served))),
        },
        "successes": {
            "count": completed,
            "latency": {
                "request_latency": _summary(outcome.e2e_s[served]),
                "normalized_time_per_output_token": _summary(outcome.ntpot_s[served]),
                "time_per_output_token": _summary(outcome.tpot_s[streamed]),
                "time_to_first_token": _summary(outcome.ttft_s[streamed]),
            },
            "throughput": {
                "input_tokens_per_sec": _rate(int(inputs.sum()), seconds),
                "output_tokens_per_sec": _rate(int(outputs.sum()), seconds),
                "total_tokens_per_sec": _rate(int(inputs.sum() + outputs.sum()), seconds),
                "requests_per_sec": _rate(completed, seconds),
            },
            "prompt_len": _summary(inputs),
            "output_len": _summary(outputs),
        },
        "failures": {
            "count": len(served) - completed,
            "request_latency": None,
            "prompt_len": _summary(outcome.prompt_tokens[~served]),
        },
    }


def _duration_s(outcome: Requests, served: BoolArray) -> float:
    """Returns the seconds from the first arrival to the last end."""
    if not served.any():
        return 0.0
    return float(outcome.finished_at_s[served].max() - outcome.arrived_at_s[0])


def _rate(amount: int, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _most_at_once(outcome: Requests, served: BoolArray) -> int:
    """Returns the most requests that any second, counted from the first arrival, has a part of."""
    if not served.any():
        return 0
    arrived_at_s = outcome.arrived_at_s[served]
    began = (arrived_at_s - arrived_at_s.min()).astype(np.int64)
    ended = (outcome.finished_at_s[served] - arrived_at_s.min()).astype(np.int64)
    # Those that began up to a second, without those that ended before it; most where one begins.
    there = np.searchsorted(np.sort(began), began, side="right")
    gone = np.searchsorted(np.sort(ended), began, side="left")
    return int((there - gone).max())


def _summary(values: npt.NDArray[Any]) -> dict[str, float] | None:
    """Returns statistics as inference-perf names them, None of nothing."""
    if not values.size:
        return None
    found = {"mean": values.mean(), "min": values.min()}
    for q in _PERCENTILES:
        found["median" if q == 50 else f"p{q:g}"] = np.percentile(values, q)
    return {key: float(value) for key, value in {**found, "max": values.max()}.items()}
