"""What candidates are measured on, and what is read off it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmroute_gym.compare.search.bench import Bench
from llmroute_gym.compare.search.measuring import Measuring, statistics_of
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.scoring import PENALTY, score
from llmroute_gym.compare.search.space import tuned_ranges
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import EvaluationConfig, SearchConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.sim import Outcome
from tests.config.test_config import composed

Make = Callable[..., SearchConfig]


def same(one: Outcome, other: Outcome) -> bool:
    return all(
        np.array_equal(values, other.columns()[name], equal_nan=values.dtype.kind == "f")
        for name, values in one.columns().items()
    )


def test_a_bench_gives_what_serving_gives_whoever_came_before(settings: Make) -> None:
    pool = pools_of(settings(speeds=[[2, 1, 0.5]], loads=[0.9]))[0]
    workload, cluster = pool.draw(300, np.random.default_rng(0))
    config = EvaluationConfig(seed=5)
    bench = Bench(workload, cluster, 5, pool.observation, {}, keeps=True)
    for name in (
        *("speed_lor", "estimated_latency", "in_spells", "lor", "power_of_two", "in_spells"),
        *("estimated_latency:predicted_output_sigma=0.5", "estimated_latency"),
    ):
        (alone,) = serve(make(name), [workload], cluster, config, pool.observation)
        assert same(bench.serve(make(name)), alone), name


def _outcome(finished_at_s: FloatArray) -> Outcome:
    n = len(finished_at_s)
    return Outcome(
        arrived_at_s=np.zeros(n),
        scheduled_at_s=finished_at_s / 4,
        first_token_at_s=finished_at_s / 2,
        finished_at_s=finished_at_s,
        replica=np.zeros(n, dtype=np.int64),
        prompt_tokens=np.ones(n, dtype=np.int64),
        output_tokens=np.full(n, 5),
        preemptions=np.zeros(n, dtype=np.int64),
    )


@pytest.mark.parametrize("unfinished", [0, 3])
def test_one_row_is_the_first_of_the_bootstrap(unfinished: int) -> None:
    rng = np.random.default_rng(0)
    runs = [rng.exponential(size=n) for n in (200, 150)]
    runs[0][:unfinished] = np.inf
    metrics = ["e2e_p975_s", "ttft_p99_s", "e2e_mean_s", "e2e_std_s", "e2e_p50_s", "queue_max_s"]
    outcomes = [_outcome(one) for one in runs]
    once = statistics_of(metrics, outcomes, None)
    resampled = statistics_of(metrics, outcomes, np.array([[1, 1], [2, 0]]))
    np.testing.assert_allclose(once[0], resampled[0], rtol=1e-12)
    assert once[0, 4] == np.percentile(np.concatenate(runs), 50)
    assert np.isinf(once[0, 2]) == (unfinished > 0)


def test_pools_are_named_scenarios(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmroute_gym.compare.suites.scenarios.capacity_of", lambda *_: 10.0)
    named: list[Any] = [
        "mixed_speeds",
        {"name": "equal_70", "as": "drawn", "load": 0.5, "speed_spread": 3.0, "requests": 40},
        {"name": "straggler", "load": 0.6},
        "stale_5s",
    ]
    mixed, drawn, straggler, stale = pools_of(settings(scenarios=named, loads=[]))
    assert mixed.source.qps == 7
    assert drawn.title == "drawn, 5 requests/s to 4 x a100-internlm-20b"
    assert stale.scenario.view == {"signal_interval_s": 5.0}
    workload, cluster = drawn.draw(100, np.random.default_rng(1))
    other = drawn.draw(100, np.random.default_rng(2))[1]
    speeds = [replica.speed for replica in cluster]
    assert len(workload) == 40
    assert sum(speeds) == pytest.approx(4)
    assert max(speeds) / min(speeds) > 1.2
    assert speeds != [replica.speed for replica in other]
    slow = straggler.draw(100, np.random.default_rng(1))[1]
    assert sum(bool(replica.slowdowns) for replica in slow) == 1
    with pytest.raises(InputError, match=r"search.loads=\[0.8\] would not be read with search.sc"):
        pools_of(settings(scenarios=named))


def test_the_frontier_is_searched_on_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmroute_gym.compare.suites.scenarios.capacity_of", lambda *_: 10.0)
    found = pools_of(composed("search", "+search=frontier", "search.budget=100").validate())
    assert len({pool.scenario.name for pool in found}) == len(found) >= 18
    assert {len(pool.cluster) for pool in found} == {3, 4, 8, 16, 32}
    assert all(replica.speed == 1 for pool in found for replica in pool.cluster)
    assert not any(pool.scenario.trace or pool.scenario.workload.path for pool in found)
    assert {pool.scenario.view.get("gateways", 1) for pool in found} >= {1, 2, 4}
    assert {round(pool.source.qps / 10, 2) for pool in found} >= {0.4, 0.7, 0.85, 0.96}


def test_what_is_searched_for_mixed_speeds_leaves_the_rest_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmroute_gym.compare.suites.scenarios.capacity_of", lambda *_: 10.0)
    config = composed("search", "+search=frontier_mixed").validate()
    found = pools_of(config)
    assert len({pool.scenario.name for pool in found}) == len(found) >= 18
    assert {len(pool.cluster) for pool in found} == {2, 4, 8, 16}
    told = [pool for pool in found if "predicted_output_sigma" not in pool.scenario.view]
    drawn = [pool.draw(10, np.random.default_rng(0))[1] for pool in told]
    assert all(len({replica.speed for replica in cluster}) > 1 for cluster in drawn)
    everywhere = composed("search", "+search=frontier").search.constants
    assert not set(config.search.constants) & set(everywhere)
    tuned = set(tuned_ranges(EstimatedLatency()))
    assert set(config.search.constants) | set(everywhere) <= tuned
    for name in config.search.constants:
        assert name.endswith(("_if_mixed", "_by_output")) or name.startswith(("speed", "pred"))


def test_the_frontier_of_prefixes_is_searched_without_the_trace_of_the_suite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmroute_gym.compare.suites.scenarios.capacity_of", lambda *_: 10.0)
    found = pools_of(composed("search", "+search=frontier_prefix").validate())
    assert len({pool.scenario.name for pool in found}) == len(found) >= 15
    assert {pool.scenario.workload.source for pool in found} >= {"shared_prefix", "multi_turn"}
    assert not any(pool.scenario.trace or pool.scenario.workload.path for pool in found)
    assert {pool.scenario.view.get("gateways", 1) for pool in found} >= {1, 2, 4}
    assert any(pool.scenario.view.get("signal_interval_s", 0) >= 5 for pool in found)


def test_the_limit_is_meant_for_every_scenario_and_bred_by_their_mean(settings: Make) -> None:
    one = settings(speeds=[[1, 1], [2, 1]], ttft_p99_at_most=1.1)
    measuring = Measuring(pools_of(one), one.search)
    start = np.zeros((1, 2, 2))
    candidate = np.array([[[-0.2, np.log(1.1) - 0.3], [-0.1, np.log(1.1) + 0.04]]])
    found = score(measuring, candidate, start, start)
    assert found.objective == pytest.approx(-0.15)
    assert found.excess == pytest.approx(0.02)
    assert found.told == pytest.approx(-0.15 + PENALTY * 0.02)
    assert found.ttft_p99 == pytest.approx(1.1 * np.exp(0.04))
    assert not found.allowed(1.1)
