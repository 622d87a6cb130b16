"""The benchmark of the rules: what it computes of latencies, and which bar is whose."""

from pathlib import Path

import numpy as np
from router_runs import (
    Latencies,
    equal_replicas,
    herd_rule,
    means,
    p99s,
    serve,
    source_at,
)
from router_speeds import PLAIN, SLOWER, Speed, looks_at_prefixes, speed_table, target_of
from routers import PICTURE, QUICK, draw, herd_section

from llmroute_gym.routers import make


def latencies(e2e_s: list[list[float]]) -> Latencies:
    array = np.array(e2e_s)
    return Latencies(array, array / 2)


def test_means_are_of_all_runs_and_compared_with_the_rule_after() -> None:
    slow = latencies([[2.0, 4.0], [6.0, 8.0]])
    fast, slower = means({"fast": latencies([[1.0, 2.0], [3.0, 4.0]]), "slow": slow})
    assert (fast.value.value, slower.value.value) == (2.5, 5.0)
    # Runs are paired: half as long in each of them, so in every resampling.
    assert (fast.ratio.low, fast.ratio.value, fast.ratio.high) == (0.5, 0.5, 0.5)
    assert slower.ratio.value == 1.0
    assert fast.value.low < fast.value.value < fast.value.high


def test_percentiles_are_over_all_requests_and_compared_with_the_baseline() -> None:
    runs = [[float(i) for i in range(100)], [float(100 + i) for i in range(100)]]
    found = p99s(
        {"one": latencies(runs), "half": latencies([[x / 2 for x in r] for r in runs])}, "one"
    )
    assert found["one"].value.value == np.percentile(np.arange(200) / 2, 99)
    assert found["half"].ratio.value == 0.5
    assert found["one"].ratio.value == 1.0


def test_every_rule_serves_the_same_requests() -> None:
    cluster = equal_replicas(2)
    source = source_at(cluster)
    found = serve(cluster, source, ["lor", "round_robin", herd_rule(0.5)], runs=2, requests=50)
    assert {one.e2e_s.shape for one in found.values()} == {(2, 50)}
    again = serve(cluster, source, ["lor"], runs=2, requests=50)
    np.testing.assert_array_equal(found["lor"].e2e_s, again["lor"].e2e_s)
    assert (found["lor"].ttft_s <= found["lor"].e2e_s).all()


def test_bars_are_lower_for_rules_with_trees_and_none_for_upper_bounds() -> None:
    assert target_of(make("lor")) == PLAIN
    assert target_of(make("vllm_router_cache_aware")) == SLOWER
    assert target_of(make("oracle")) is None
    assert looks_at_prefixes("llmd_token")
    assert not looks_at_prefixes("lor")


def test_a_speed_below_its_bar_is_marked() -> None:
    rows = speed_table(
        [Speed("quick", 2e6, None, PLAIN, 0.5), Speed("slow", 1e5, 1e4, SLOWER, None)]
    ).splitlines()
    assert rows[2] == "| `quick` | **2** | 1 | yes |  | 0.50 |"
    assert rows[3] == "| `slow` | **0.1** | 0.2 | **no** | 0.01 |  |"


def test_the_herd_is_drawn_and_told(tmp_path: Path) -> None:
    polls = (0.1, 5.0)
    names = ["random", "lor", *map(herd_rule, polls)]
    found = p99s(
        {
            name: latencies([[x * n for x in range(1, 20)] for n in (k, k)])
            for k, name in zip((3, 1, 2, 5), names, strict=True)
        },
        "random",
    )
    text = herd_section(found, QUICK)
    assert "poll of 0.1 s 0.67 (bar: better, met), of 5 s 1.67 (bar: worse, met)" in text
    draw(found, polls, tmp_path / PICTURE.name)
    assert (tmp_path / PICTURE.name).stat().st_size > 10_000
