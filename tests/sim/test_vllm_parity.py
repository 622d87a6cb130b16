"""The engines reproduce recorded runs of vLLM's own scheduler, step by step and to the bit."""

from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Outcome
from llmroute_gym.sim.engines import EngineName
from tests.sim.monitor import watched_schedulers
from tests.vllm import VllmCase, case_names, load_case, read_steps

TIMES = ("scheduled_at_s", "first_token_at_s", "finished_at_s")
COUNTS = {
    "cached_tokens": "cached_tokens",
    "recached_tokens": "cached_tokens_readmitted",
    "preemptions": "preemptions",
}

every_case = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith("e_") else pytest.mark.oracle)
        for name in case_names()
    ],
)


def replayed(case: VllmCase, engine: EngineName) -> Outcome:
    alone = np.zeros(len(case.workload), dtype=np.int64)
    return simulate(case.workload, case.cluster, alone, engine=engine)


@every_case
def test_requests_have_the_recorded_times_and_counts(name: str, vllm_engine: EngineName) -> None:
    case = load_case(name)
    outcome = replayed(case, vllm_engine)
    for ours, theirs in COUNTS.items():
        np.testing.assert_array_equal(getattr(outcome, ours), case.recorded[theirs], err_msg=ours)
    rtol = 0.0 if vllm_engine == "reference" else 1e-9
    for time in TIMES:
        np.testing.assert_allclose(
            getattr(outcome, time), case.recorded[time], rtol=rtol, atol=0, err_msg=time
        )


@pytest.mark.parametrize("name", case_names(steps=True))
def test_each_step_is_the_recorded_step(name: str) -> None:
    case = load_case(name)
    recorded = read_steps(name)
    with watched_schedulers() as logs:
        replayed(case, "reference")
    batches = logs[0].batches
    assert len(batches) == len(recorded)
    assert logs[0].ended_at_s == [step.start_s + step.duration_s for step in recorded]
    for place, (batch, step) in enumerate(zip(batches, recorded, strict=True)):
        sums = batch.sums
        ours = step._replace(
            tokens=sums.tokens,
            decode_context=sums.decode_context,
            pairs=sums.chunk_context + 0.5 * sums.chunk_squares,
            duration_s=case.cluster[0].batch_time.seconds(sums),
            running=batch.running,
            waiting=batch.waiting,
            free_blocks=case.cluster[0].room_blocks - batch.blocks_used,
            scheduled=tuple(zip(batch.requests, batch.tokens, strict=True)),
            preempted=batch.restarted,
        )
        assert ours == step, f"step {place}"


@pytest.mark.oracle
def test_there_are_cases_of_every_kind(data: Path) -> None:
    replicas = [load_case(name).cluster[0] for name in case_names()]
    for setting in ("prefix_caching", "chunked_prefill", "admission"):
        assert len({getattr(one, setting) for one in replicas}) == 2
    assert any(one.watermark for one in replicas)
    assert any(one.long_prefill_tokens for one in replicas)
