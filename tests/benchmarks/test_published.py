"""Published runs of clusters, replayed: when stages begin, and what is read off them."""

from pathlib import Path

import numpy as np
import published_runs
import pytest
from published import error, gaps, interval, plateau, ratio_table, times
from published_cases import ratios, smg_metrics
from published_runs import (
    ALONE,
    APART_S,
    GAP,
    GPT_OSS,
    METRICS,
    QWEN,
    RATES,
    SCORERS,
    STAGES,
    Comparison,
    Result,
    built,
    by_stage,
    paired,
    replay,
    requests,
    rule_text,
)

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.routers import RoundRobin
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime

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
    times_s = [one.cluster[0].batch_time for one in (GPT_OSS, GPT_OSS._replace(attention=0.5))]
    assert all(isinstance(one, PiecewiseBatchTime) for one in times_s)
    whole, half = (one.decode_s for one in times_s)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(half, whole / 2)
    assert [one.cluster[0].shared_reads for one in (QWEN, QWEN._replace(shared_reads=0.5))] == [
        0.44,
        0.5,
    ]


def test_a_few_stages_are_the_first_of_a_longer_replay() -> None:
    stages = ((15, 4), (40, 3))
    outcome = replay(QWEN, "llmd_token", 0, stages)
    assert len(outcome) == 180
    first = replay(QWEN, "llmd_token", 0, stages[:1])
    np.testing.assert_allclose(outcome.arrived_at_s[:60], first.arrived_at_s)
    assert by_stage(outcome, stages)["output_tps"].shape == (1,)


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


def result(router: str, file: str = "one", what_if: str = "", scale: float = 1.0) -> Result:
    """Returns a result whose every metric is the scale, of two seeds, and measured twice that."""
    comparison = Comparison(
        QWEN, router, file, "rr" if router == "round_robin" else "llmd", what_if
    )
    runs = {metric: np.full((2, len(RATES)), scale) for metric in METRICS}
    measured = {metric: np.full(len(RATES), 2 * scale**2) for metric in ("output_tps", METRICS[3])}
    return Result(comparison, measured if file else {}, runs)


def test_a_rule_is_so_many_times_better_than_round_robin() -> None:
    base, rule = result("round_robin"), result("llmd_token", scale=4.0)
    ours, theirs = times(rule, base, "output_tps")
    np.testing.assert_array_equal(ours, 4.0)
    np.testing.assert_array_equal(theirs, 16.0)
    ours, theirs = times(rule, base, "ttft_p90_s")
    np.testing.assert_array_equal(ours, 0.25)
    np.testing.assert_array_equal(theirs, 0.0625)
    assert np.isnan(times(rule, base, "ttft_p50_s")[1]).all()
    assert interval(rule, base, 3) == Estimate(4.0, 4.0, 4.0)
    assert ratio_table(rule, base).splitlines()[2] == "| 3 | **4** | 16 | **0.25** | 0.0625 |"


def test_rules_are_compared_with_round_robin_in_the_same_file() -> None:
    base, other = result("round_robin"), result("round_robin", "two", "otherwise")
    rule, changed = result("llmd_token"), result("llmd_token", "two", "otherwise")
    what_if = result("llmd_token", what_if="less memory")
    nobody = result("smg_cache_aware", "")
    found = paired([base, other, rule, changed, what_if, nobody])
    assert [
        (one is a, two is b)
        for (one, two), (a, b) in zip(
            found, [(rule, base), (changed, other), (what_if, base)], strict=True
        )
    ] == [(True, True)] * 3


def test_times_between_tokens_are_those_of_all_requests_after_the_warm_up() -> None:
    gap_s = np.zeros((2, len(RATES)))
    gap_s[:, 0], gap_s[:, -1] = 2.0, 1.0
    found = [
        result(router, SCORERS, what_if)._replace(runs={GAP: gap_s * scale})
        for router, what_if, scale in (
            ("round_robin", "", 1.0),
            ("llmd_baseline", "", 2.0),
            ("llmd_baseline", ALONE, 0.5),
        )
    ]
    counts = np.array(requests()[1:])
    assert found[0].gap_s == pytest.approx((2 * counts[0] + counts[-1]) / counts.sum())
    once_ms = found[0].gap_s * 1e3
    assert gaps(found).splitlines()[2:] == [
        f"| `round_robin` | 44.0 | **{once_ms:.1f}** |  |  |",
        f"| `llmd_baseline` | 47.0 | **{2 * once_ms:.1f}** | **{once_ms / 2:.1f}** |  |",
    ]


def test_a_router_at_several_gateways() -> None:
    router = built({"name": "smg_cache_aware", "view": "events", "gateways": 2})
    assert router.observation is not None
    assert (router.observation.gateways, router.observation.prefix_view) == (2, "events")
    alone = built({"name": "round_robin", "gateways": 3})
    assert isinstance(alone, RoundRobin)
    assert alone.observation is not None
    assert alone.observation.gateways == 3
    assert (
        rule_text({"name": "llmd_token", "tokens_per_s": 39065}) == "llmd_token:tokens_per_s=39065"
    )
    assert rule_text({"name": "smg_cache_aware", "gateways": 2}) == "smg_cache_aware, 2 gateways"


def test_policies_of_smg_are_compared_at_as_many_gateways() -> None:
    found = {
        (1, "round_robin"): {"throughput_rps": 2.0},
        (1, "cache_aware_events"): {"throughput_rps": 5.0},
        (2, "round_robin"): {"throughput_rps": 4.0},
        (2, "cache_aware_events"): {"throughput_rps": 5.0},
    }
    assert ratios(found) == {
        (1, "cache_aware_events"): {"throughput_rps": 2.5},
        (2, "cache_aware_events"): {"throughput_rps": 1.25},
    }


def test_what_is_read_off_a_run_through_smg() -> None:
    arrived_at_s = np.arange(4, dtype=float)
    outcome = Outcome(
        arrived_at_s=arrived_at_s,
        scheduled_at_s=arrived_at_s,
        first_token_at_s=arrived_at_s + np.array([0.1, 0.1, 0.1, 0.5]),
        finished_at_s=arrived_at_s + 5,
        replica=np.zeros(4, dtype=np.int64),
        prompt_tokens=np.full(4, 100),
        output_tokens=np.ones(4, dtype=np.int64),
        preemptions=np.zeros(4, dtype=np.int64),
        cached_tokens=np.array([0, 0, 80, 0]),
    )
    metrics = smg_metrics(outcome)
    assert metrics["throughput_rps"] == 4 / 8
    assert metrics["cached_token_share"] == 0.2
    assert metrics["ttft_mean_ms"] == pytest.approx(200)
    assert metrics["ttft_p50_ms"] == pytest.approx(100)
    assert metrics["e2e_p99_ms"] == pytest.approx(5000)
