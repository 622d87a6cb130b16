"""The workloads and random cases of the engines' benchmarks."""

import json
from pathlib import Path

import agreement
import numpy as np
import pytest
from measuring import Target, verdict
from vllm_speeds import repeated

from llmroute_gym import simulate
from llmroute_gym.sim import Cluster


def test_a_repetition_finds_nothing_of_the_one_before(tmp_path: Path) -> None:
    requests = (
        (0.0, 33, [[4, 64]]),
        (50.0, 9, [[4, 64], [-1, 32]]),  # goes on from the first one's output
        (90.0, 9, [[4, 64], [7, 64]]),
    )
    rows = [
        {
            "arrived_at_s": arrived_at_s,
            "input_length": sum(tokens for _, tokens in segments),
            "output_length": output,
            "segments": segments,
        }
        for arrived_at_s, output, segments in requests
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    workload = repeated(path, 3)
    np.testing.assert_allclose(np.diff(workload.arrived_at_s), [50, 40, 45] * 2 + [50, 40])
    outcome = simulate(workload, Cluster.from_profile("h100-llama-3.1-8b", 1), "round_robin")
    assert outcome.cached_tokens.tolist() == [0, 80, 64] * 3


def test_a_speed_is_judged_by_bar_and_reach() -> None:
    assert verdict(4e6, Target(2, 4)) == ["2", "4", "reach"]
    assert verdict(3e6, Target(2, None)) == ["2", "", "bar"]
    assert verdict(1e6, Target(2, 4))[-1] == "**missed**"
    assert verdict(1e6, None) == ["", "", ""]


@pytest.mark.parametrize("family", agreement.FAMILIES)
def test_cases_of_all_families_are_examined(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = agreement.examine(family, 3)
    assert (finding.family, finding.seed, finding.difference) == (family, 3, None)
    assert finding.requests >= 5

    def differ(*_: object) -> None:
        raise AssertionError("preemptions differ")

    monkeypatch.setattr(agreement, "assert_simulated_alike", differ)
    found = agreement.examine(family, 3).difference
    assert found is not None
    assert "preemptions differ" in found


def test_some_cases_of_vllm_wait_for_ends() -> None:
    waits = [agreement.vllm_case(seed).workload.after is not None for seed in range(6)]
    assert waits == [True, False, False] * 2
