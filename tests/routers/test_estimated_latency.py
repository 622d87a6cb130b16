"""The estimated latency against rules that it contains, and against unannounced slowness."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.config import ClusterConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers import make
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.build import build_cluster, build_source
from tests.routers.hand import ask, fresh, rows


def requests(qps: float, n: int = 600) -> Workload:
    return build_source(WorkloadConfig(), qps).sample(n, np.random.default_rng(3))


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [0.5, 2.0, 1.0]])
def test_as_it_starts_it_is_speed_lor(speeds: list[float]) -> None:
    cluster = build_cluster(ClusterConfig(replicas=3, speeds=speeds))
    workload = requests(4.0)
    own = simulate(workload, cluster, "estimated_latency", seed=0)
    assert own.replica.tolist() == simulate(workload, cluster, "speed_lor", seed=0).replica.tolist()


def test_constants_are_numbered_as_the_decision_reads_them() -> None:
    names = list(constants_of(EstimatedLatency))
    assert names[11:14] == ["remembered_s", "speed_by_prompt", "speed_by_output"]
    assert names[14:17] == ["in_flight", "in_flight_by_prompt", "in_flight_by_output"]
    assert names[35:39] == ["slowness", "slowness_by_prompt", "slowness_by_output", "work"]
    assert names[52:] == [
        "uncached_by_output",
        "recent_if_cold",
        "uncached_by_load",
        "of_all",
        "attention",
        "progress",
        "work_floor",
        "recent_s",
        "like_own",
        "in_flight_if_shared",
        "kv_if_shared",
        "oldest_if_shared",
        "context_if_shared",
        "work_if_shared",
        "recent_if_shared",
        "longest_prompt",
        "in_flight_if_mixed",
        "kv_if_mixed",
        "pending_if_mixed",
        "oldest_if_mixed",
        "ttft_if_mixed",
        "context_if_mixed",
        "queue_if_mixed",
        "slowness_if_mixed",
        "work_if_mixed",
        "batch_time_if_mixed",
        "recent_if_mixed",
        "poll_s",
    ]


def test_slowness_is_seen_that_nobody_announces() -> None:
    equal = build_cluster(ClusterConfig(replicas=4))
    slow = replace(equal[1], slowdowns=((0.0, 3.0),))
    cluster, workload = Cluster((equal[0], slow, *tuple(equal)[2:])), requests(2.5)
    shares, means = [], []
    for rule in (make("estimated_latency"), make("estimated_latency:slowness=1")):
        outcome = simulate(workload, cluster, rule, seed=0)
        shares.append((outcome.replica == 1).mean())
        means.append(outcome.e2e_s.mean())
    assert shares[1] < 0.7 * shares[0]
    assert means[1] < means[0]
    equal_shares = np.bincount(
        simulate(workload, equal, make("estimated_latency:slowness=1"), seed=0).replica
    )
    assert equal_shares.min() > 0.15 * len(workload)


def test_little_s_law_by_hand() -> None:
    rule = make("estimated_latency:slowness=1,remembered_s=10")
    rule.reset(2, 10, np.random.default_rng(0))
    rows = np.ones((2, N_SIGNALS))
    for now_s, in_flight in ((5.0, (0, 0)), (15.0, (1, 0)), (25.0, (0, 1))):
        rows[:, Signal.NOW_S], rows[:, Signal.IN_FLIGHT] = now_s, in_flight
        chosen = rule.route(rows, np.ones(2, dtype=np.bool_))
        rows[chosen, Signal.IN_FLIGHT] += 1
    first, second = np.reshape(rule.memory[19:-2], (2, 7))[:, :3]
    # The first had one request from 5 to 15 s, and until some time before 25 s.
    assert first[1:] == pytest.approx([10 * np.exp(-1) + 5, 1])
    # The second got the request of 15 s, which is there still, and had none before.
    assert second[1:] == pytest.approx([10, 0])
    assert chosen == 0


def test_long_outputs_may_weigh_speed_more_and_the_queue_less() -> None:
    rule = EstimatedLatency(speed_by_output=1.0, in_flight_by_output=-0.5, in_flight=0.5)
    # A fast replica with more requests than its speed makes up for, beside a slow one.
    busy = {"prompt_tokens": 1000, "speed": [2.0, 1.0], "in_flight": [7, 2]}
    for predicted, choice in ((0, 1), (20, 1), (100, 1), (1000, 0)):
        table = rows(2, predicted_output_tokens=predicted, **busy)
        assert ask(fresh(rule, 2), table) == choice, predicted


def test_an_estimate_below_nothing_is_nothing_and_leaves_the_rest_to_decide() -> None:
    # 1 s of output, and 4 * 3 * 8 s * (1 - 1.5) of prefill: below 0 on all, so the load decides.
    rule = EstimatedLatency(cached=1.5, prefill=4.0, own_prefill=3.0, in_flight=1.0)
    table = rows(3, prompt_tokens=8000, cached_prefix=1.0, in_flight=[5, 1, 0])
    assert ask(fresh(rule, 3), table) == 2
    cold = rows(3, prompt_tokens=8000, cached_prefix=[0.0, 0.0, 1.0], in_flight=[0, 0, 1])
    assert ask(fresh(rule, 3), cold) == 2


def test_work_is_what_waits_and_what_is_missing_of_this_prompt() -> None:
    rule = fresh(EstimatedLatency(work=1.0, work_floor=10.0, pace_per_request=0.001), 2)
    table = rows(2, prompt_tokens=4000, cached_prefix=[0.75, 0.0], uncached_tokens=[2900, 0])
    assert ask(rule, table) == 0  # 3,900 tokens against 4,000
    table[0, Signal.UNCACHED_TOKENS] = 3100
    assert ask(rule, table) == 1


def test_attention_prices_a_long_context() -> None:
    # 1,500 tokens of two requests, or 1,200 that follow 20,000 cached ones.
    few, long = [1500.0, 1200.0], [1500.0 * 750.0, 1200.0 * 20600.0]
    table = rows(2, prompt_tokens=100, uncached_tokens=few, uncached_pairs=long)
    assert ask(fresh(EstimatedLatency(prefill=1.0), 2), table) == 1
    assert ask(fresh(EstimatedLatency(prefill=1.0, attention=0.5), 2), table) == 0


def test_progress_is_taken_off_what_waits() -> None:
    table = rows(2, prompt_tokens=100, uncached_tokens=[9000, 5000], oldest_waiting_s=[0.5, 0.0])
    assert ask(fresh(EstimatedLatency(prefill=1.0), 2), table) == 1
    assert ask(fresh(EstimatedLatency(prefill=1.0, progress=10.0), 2), table) == 0


def test_requests_of_other_gateways_count_as_engines_report_them() -> None:
    rule = EstimatedLatency(of_all=1.0)
    rule.join(ObservationConfig(information="metrics", signal_interval_s=1.0, gateways=2), 1)
    fresh(rule, 2)
    # Its polls are at 0.5 s, 1.5 s, ...: of 9 and 6 requests 2 and 0 are its own.
    table = rows(2, running=[9, 6], in_flight=[2, 0], now_s=0.6)
    assert ask(rule, table) == 1
    # Until the next poll its own come on top: 9 against 6 + 4, then a new report of 9 and 9.
    table[:, Signal.IN_FLIGHT], table[:, Signal.NOW_S] = [2, 4], 1.4
    assert ask(rule, table) == 0
    table[:, Signal.IN_FLIGHT], table[:, Signal.NOW_S] = [3, 3], 1.6
    table[:, Signal.RUNNING] = [9, 8]
    assert ask(rule, table) == 1
    assert ask(fresh(EstimatedLatency(), 2), table) == 0


def test_requests_of_others_are_taken_to_be_like_its_own() -> None:
    # 2 requests with 3,000 tokens to prefill, and 4 of others that may have 6,000 on the second.
    table = rows(2, running=[2, 4], in_flight=[2, 0], uncached_tokens=[3000, 0])
    few = EstimatedLatency(pending=1.0, pace_per_request=0.001, of_all=1.0)
    assert ask(fresh(few, 2), table) == 1
    assert ask(fresh(replace(few, like_own=1.0), 2), table) == 0


def test_weights_may_depend_on_how_many_requests_are_of_others() -> None:
    rule = EstimatedLatency(of_all=1.0, pace_per_request=0.001, kv_if_shared=1.0)
    table = rows(2, running=[3, 3], in_flight=[3, 3], kv_usage=[0.3, 0.2])
    assert ask(fresh(rule, 2), table) == 0
    table[:, Signal.IN_FLIGHT] = 1
    assert ask(fresh(rule, 2), table) == 1


def test_weights_may_depend_on_how_much_speeds_differ() -> None:
    rule = EstimatedLatency(pace_per_request=0.001, speed_power=0.0, kv_if_mixed=1.0)
    table = rows(3, kv_usage=[0.3, 0.2, 0.9])
    table[2, Signal.SPEED] = 4.0
    assert ask(fresh(rule, 3), table, without=[2]) == 0
    table[1, Signal.SPEED] = 0.5
    assert ask(fresh(rule, 3), table, without=[2]) == 1
    assert ask(fresh(rule, 3), table, without=[0, 1]) == 2


def test_what_was_sent_lately_counts_for_the_cold() -> None:
    rule = fresh(EstimatedLatency(recent_if_cold=1.0, recent_s=10.0), 2)
    cold = rows(2, prompt_tokens=50_000, now_s=1.0)
    assert [ask(rule, cold) for _ in range(3)] == [0, 1, 0]
    warm = rows(2, prompt_tokens=50_000, now_s=1.0, cached_prefix=1.0)
    assert ask(rule, warm) == 0  # as if nothing had been sent: ties by lowest index
    cold[:, Signal.NOW_S] = 300.0
    cold[1, Signal.SPEED] = 0.999
    assert ask(rule, cold) == 0  # all has faded


def test_affinity_by_load() -> None:
    rule = EstimatedLatency(uncached_by_load=1.0)
    table = rows(2, prompt_tokens=1000, cached_prefix=[0.0, 0.5], in_flight=[1, 2])
    assert ask(fresh(rule, 2), table) == 0
    table[:, Signal.IN_FLIGHT] = [40, 50]
    assert ask(fresh(rule, 2), table) == 1


@pytest.mark.parametrize(
    ("weight", "column"), [("rounds", "rounds_since_chosen"), ("batch_time", "batch_time_s")]
)
def test_rounds_and_batch_times_are_compared(weight: str, column: str) -> None:
    table = rows(2, **{column: [0.3, 0.1]})
    assert ask(fresh(EstimatedLatency(), 2), table) == 0
    assert ask(fresh(EstimatedLatency(**{weight: 0.5}), 2), table) == 1
