"""The engines reproduce recorded runs of Microsoft Vidur, request by request."""

from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.engines import EngineName
from tests.oracle import batch_time, case_names, is_shipped, load_case, read_columns
from tests.sim.monitor import watched_schedulers

TOLERANCE_S = 1e-6

TIMES = {
    "scheduled_at_s": "scheduled_at",
    "first_token_at_s": "prefill_completed_at",
    "finished_at_s": "completed_at",
}

every_case = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith("tiny_") else pytest.mark.oracle)
        for name in case_names()
    ],
)


@every_case
def test_replayed_requests_have_the_recorded_times(name: str, engine: EngineName) -> None:
    case = load_case(name)
    outcome = simulate(case.workload, case.cluster, case.assignment, engine=engine)
    for ours, theirs in TIMES.items():
        worst = np.abs(getattr(outcome, ours) - case.recorded[theirs]).max()
        assert worst <= TOLERANCE_S, f"{ours} is off by up to {worst:g} s"
    np.testing.assert_array_equal(outcome.preemptions, case.recorded["num_restarts"])
    np.testing.assert_array_equal(outcome.replica, case.assignment)


@every_case
def test_the_router_chooses_the_recorded_replicas(name: str, engine: EngineName) -> None:
    case = load_case(name)
    if case.router is None:
        pytest.skip(f"the draws of the {case.config['global_scheduler']} router are not recorded")
    outcome = simulate(case.workload, case.cluster, case.router, engine=engine)
    np.testing.assert_array_equal(outcome.replica, case.assignment)


def test_the_shipped_cases_are_of_both_schedulers_with_and_without_restarts() -> None:
    cases = [load_case(name) for name in case_names() if is_shipped(name)]
    assert {case.config["replica_scheduler"] for case in cases} == {"vllm", "sarathi"}
    assert {bool(case.recorded["num_restarts"].any()) for case in cases} == {True, False}


@pytest.mark.oracle
def test_there_are_cases_of_every_kind(data: Path) -> None:
    configs = [load_case(name).config for name in case_names()]
    assert {config["replica_scheduler"] for config in configs} == {"vllm", "sarathi"}
    assert {bool(config["param"]) for config in configs} == {True, False}
    assert any(load_case(name).recorded["num_restarts"].any() for name in case_names())


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["tiny_a100-7b_vllm_1rep", "tiny_a100-7b_sarathi256_1rep"])
def test_each_batch_is_the_recorded_batch(data: Path, name: str) -> None:
    case = load_case(name)
    recorded = read_columns(data / "oracle" / name / "batches.csv.gz")
    with watched_schedulers() as logs:
        simulate(case.workload, case.cluster, case.assignment, engine="reference")
    batches = logs[0].batches
    sums = [batch.sums for batch in batches]
    ours = {
        "prefill_tokens": [s.prefill_tokens for s in sums],
        "num_prefill_reqs": [s.prefills for s in sums],
        "sum_chunk_sq": [s.chunk_squares for s in sums],
        "sum_chunk_ctx": [s.chunk_context for s in sums],
        "decode_reqs": [s.decodes for s in sums],
        "decode_kv_tokens": [s.decode_context for s in sums],
        "blocks_in_use": [batch.blocks_used for batch in batches],
        "queue_len": [batch.waiting for batch in batches],
        "other_running": [batch.running for batch in batches],
    }
    for column, values in ours.items():
        np.testing.assert_array_equal(values, recorded[column], err_msg=column)
    model = batch_time(case.config)
    seconds = [model.seconds(s) for s in sums]
    np.testing.assert_allclose(seconds, recorded["exec_time"], rtol=1e-7)
