"""Runs as other tools report them, worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import SLO
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Outcome

INF = math.inf
# One of one token, one of 3 tokens, one rejected, one of 5 tokens.
RUN = Outcome(
    arrived_at_s=np.array([1.0, 2.0, 2.5, 3.0]),
    scheduled_at_s=np.array([1.0, 2.0, INF, 3.5]),
    first_token_at_s=np.array([1.5, 3.0, INF, 5.0]),
    finished_at_s=np.array([1.5, 4.0, INF, 11.0]),
    replica=np.array([0, 1, -1, 0]),
    prompt_tokens=np.array([10, 20, 1000, 30]),
    output_tokens=np.array([1, 3, 7, 5]),
    preemptions=np.zeros(4, dtype=np.int64),
)
LOST = Outcome(
    *(np.full(2, value) for value in (1.0, INF, INF, INF)),
    *(np.full(2, value) for value in (-1, 10, 5, 0)),
)


def written(write: Any, path: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
    write(path, *args, **kwargs)
    report: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return report


def test_vllm_by_hand(tmp_path: Path) -> None:
    slo = SLO(e2e_s=5.0)
    report = written(RUN.to_vllm_json, tmp_path / "new" / "run.json", slo, model_id="m")
    assert report == {
        "model_id": "m",
        "num_prompts": 4,
        "duration": 10.0,
        "completed": 3,
        "failed": 1,
        "total_input_tokens": 60,
        "total_output_tokens": 9,
        "request_throughput": 0.3,
        "request_goodput": 0.2,
        "output_throughput": 0.9,
        "total_token_throughput": 6.9,
        # Seconds 2 and 3 from the first arrival have parts of the second and of the last request.
        "max_concurrent_requests": 2,
        "mean_ttft_ms": pytest.approx(3500 / 3),
        "median_ttft_ms": 1000.0,
        "std_ttft_ms": pytest.approx(np.std([500, 1000, 2000])),
        "p99_ttft_ms": pytest.approx(1980),
        "mean_tpot_ms": 1000.0,
        "median_tpot_ms": 1000.0,
        "std_tpot_ms": 500.0,
        "p99_tpot_ms": pytest.approx(1490),
        "mean_e2el_ms": 3500.0,
        "median_e2el_ms": 2000.0,
        "std_e2el_ms": pytest.approx(np.std([500, 2000, 8000])),
        "p99_e2el_ms": pytest.approx(7880),
    }
    assert written(RUN.to_vllm_json, tmp_path / "run.json")["request_goodput"] is None


def test_inference_perf_by_hand(tmp_path: Path) -> None:
    report = written(RUN.to_inference_perf_json, tmp_path / "run.json")
    assert report["load_summary"]["count"] == 4
    assert report["load_summary"]["schedule_delay"]["max"] == 0.0
    successes, failures = report["successes"], report["failures"]
    assert successes["count"] == 3
    latency = successes["latency"]
    assert latency["request_latency"]["mean"] == 3.5
    assert latency["request_latency"]["p25"] == 1.25
    assert latency["normalized_time_per_output_token"]["max"] == 1.6
    assert latency["time_per_output_token"]["median"] == 1.0
    assert latency["time_to_first_token"]["min"] == 1.0  # not 0.5, which is of a single token
    assert successes["throughput"] == {
        "input_tokens_per_sec": 6.0,
        "output_tokens_per_sec": 0.9,
        "total_tokens_per_sec": 6.9,
        "requests_per_sec": 0.3,
    }
    assert successes["prompt_len"]["mean"] == 20.0
    assert successes["output_len"]["p99.9"] == pytest.approx(4.996)
    assert list(successes["output_len"]) == [
        *("mean", "min", "p0.1", "p1", "p5", "p10", "p25", "median"),
        *("p75", "p90", "p95", "p99", "p99.9", "max"),
    ]
    assert failures["count"] == 1
    assert failures["request_latency"] is None
    assert failures["prompt_len"]["mean"] == 1000.0


def test_nothing_served_is_valid_json_too(tmp_path: Path) -> None:
    report = written(LOST.to_vllm_json, tmp_path / "run.json")
    assert (report["completed"], report["failed"], report["p99_ttft_ms"]) == (0, 2, 0.0)
    successes = written(LOST.to_inference_perf_json, tmp_path / "run.json")["successes"]
    assert successes["count"] == 0
    assert successes["latency"]["request_latency"] is None


def test_a_report_is_complete_or_absent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (RUN.to_vllm_json, RUN.to_inference_perf_json):
        with pytest.raises(InputError, match=r"cannot write .*run\.json"):
            write(tmp_path / "file" / "run.json")
