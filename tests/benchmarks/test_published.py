"""Published runs of clusters, replayed: when stages begin, and what is read off them."""

from pathlib import Path

import numpy as np
import published_runs
import pytest
from published import error, plateau
from published_runs import (
    APART_S,
    GPT_OSS,
    METRICS,
    QWEN,
    RATES,
    STAGES,
    Comparison,
    by_stage,
    replay,
    requests,
)

from llmroute_gym.sim.outcome import Outcome

STARTS = np.cumsum([0, *requests()])[:-1]


def test_a_stage_begins_when_all_of_the_one_before_is_finished() -> None:
    outcome = replay(QWEN, "round_robin", seed=0)
    assert len(outcome) == sum(rate * duration_s for rate, duration_s in STAGES)
    ends_s = np.maximum.reduceat(outcome.finished_at_s, STARTS)
    assert (outcome.arrived_at_s[STARTS[1:]] > ends_s[:-1] + APART_S).all()
    assert (outcome.arrived_at_s[STARTS[1:]] < ends_s[:-1] + APART_S + 5).all()


def test_stages_by_the_clock_begin_whatever_is_unfinished() -> None:
    outcome = replay(QWEN._replace(waits=False), "round_robin", seed=0)
    seconds = np.array([duration_s + APART_S for _, duration_s in STAGES])
    clock_s = np.cumsum([0.0, *seconds[:-1]])
    assert (np.abs(outcome.arrived_at_s[STARTS] - clock_s) < 5).all()


def test_prompts_and_blocks_are_those_of_the_setup() -> None:
    prompts = GPT_OSS.prompts(seed=0)
    assert set(prompts.prompt_tokens.tolist()) == {6500}
    assert set(prompts.output_tokens.tolist()) == {500}
    more = GPT_OSS._replace(blocks=1.5).cluster
    assert (len(more), more[0].num_blocks) == (16, round(1.5 * GPT_OSS.cluster[0].num_blocks))


def test_a_stage_is_read_from_its_first_request_to_its_last_end() -> None:
    n = sum(requests())
    arrived_at_s = np.arange(n, dtype=float)
    outcome = Outcome(
        arrived_at_s=arrived_at_s,
        scheduled_at_s=arrived_at_s + 1,
        first_token_at_s=arrived_at_s + 2,
        finished_at_s=arrived_at_s + 11,
        replica=np.zeros(n, dtype=np.int64),
        prompt_tokens=np.ones(n, dtype=np.int64),
        output_tokens=np.full(n, 7),
        preemptions=np.zeros(n, dtype=np.int64),
    )
    metrics = by_stage(outcome)
    counts = np.array(requests()[1:])
    np.testing.assert_allclose(metrics["output_tps"], 7 * counts / (counts - 1 + 11))
    for name in METRICS[1:]:
        np.testing.assert_allclose(metrics[name], 2.0)
    assert plateau(np.where(RATES >= 30, 5.0, 0.0)) == 5.0


def test_measurements_are_read_by_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_runs, "PUBLISHED", tmp_path)
    lines = ["rate_rps,rr_output_tps,other_output_tps,rr_ttft_p90_s"]
    lines += [f"{rate:g},{10 * rate:g},1,{'' if rate < 20 else 4}" for rate in RATES]
    (tmp_path / "one.csv").write_text("\n".join(lines), encoding="utf-8")
    measured = Comparison(QWEN, "round_robin", "one", "rr").measured()
    assert list(measured) == ["output_tps", "ttft_p90_s"]
    np.testing.assert_array_equal(measured["output_tps"], 10 * RATES)
    np.testing.assert_array_equal(measured["ttft_p90_s"], np.where(RATES < 20, np.nan, 4))
    (tmp_path / "two.csv").write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"two\.csv has other rates"):
        Comparison(QWEN, "round_robin", "two", "rr").measured()


def test_errors_are_relative_and_blank_where_nothing_was_measured() -> None:
    assert error(110.0, 100.0) == "+10%"
    assert error(1.0, float("nan")) == ""
