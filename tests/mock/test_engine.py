"""An engine in virtual time: the simulator's times, and books that balance."""

import re
from functools import partial

import numpy as np
import pytest

from llmroute_gym.mock.engine import Engine, Work
from llmroute_gym.mock.generations import Generation, Terms
from llmroute_gym.mock.prompts import Prompt
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from tests.mock.clock import FakeClock

TENTH_S = FormulaBatchTime(c0=0.1, c1=0.0, n0=0.0, c2=0.0, c3=0.0)


def generation(prompt: int, output: int, first: int = 0) -> Generation:
    ids = Prompt.of_ids(range(first, first + prompt))
    return Generation(ids, output, False, False, True, False, False)


def engine_of(replica: Replica, clock: FakeClock) -> Engine:
    return Engine(Terms("m", replica, 4, None, 0), clock)


def published(engine: Engine) -> dict[str, float]:
    """Name of each metric to its value, buckets and labels left out."""
    lines = [line for line in engine.metrics().splitlines() if line[0] != "#"]
    pairs = [re.fullmatch(r"(\S+?)(\{.*\})? (\S+)", line) for line in lines if "le=" not in line]
    ends = [match for match in pairs if match and "finished_reason" in match[0]]
    found = {match[1]: float(match[3]) for match in pairs if match and match not in ends}
    how = {re.findall(r'finished_reason="(\w+)"', match[0])[0]: float(match[3]) for match in ends}
    return found | how


@pytest.mark.parametrize("scheduler", ["chunked", "prefill_first", "vllm_v1"])
def test_four_engines_have_the_times_of_the_simulated_cluster(scheduler: str) -> None:
    rng = np.random.default_rng(3)
    n = 400
    workload = Workload(
        np.cumsum(rng.exponential(0.02, n)), rng.integers(1, 900, n), rng.integers(1, 300, n)
    )
    cluster = Cluster.from_profile(
        "a100-internlm-20b", 4, scheduler=scheduler, num_blocks=150, watermark_blocks=0
    )
    routes = rng.integers(0, 4, n)
    outcome = simulate(workload, cluster, routes, engine="reference")
    assert outcome.preemptions.sum() > 0

    clock = FakeClock()
    engines = [engine_of(replica, clock) for replica in cluster]
    times_s: list[list[float]] = [[] for _ in range(n)]

    def on_tokens(request: int, told: int, tokens: int) -> None:
        assert tokens == told + 1
        times_s[request].append(clock.now_s())

    def submit(request: int) -> None:
        sizes = int(workload.prompt_tokens[request]), int(workload.output_tokens[request])
        wanted = generation(*sizes, first=1000 * request)
        engines[routes[request]].submit(wanted, partial(on_tokens, request))

    for request, arrived_at_s in enumerate(workload.arrived_at_s.tolist()):
        clock.call_at(arrived_at_s, partial(submit, request))
    clock.run()
    assert [len(one) for one in times_s] == workload.output_tokens.tolist()
    np.testing.assert_array_equal([one[0] for one in times_s], outcome.first_token_at_s)
    np.testing.assert_array_equal([one[-1] for one in times_s], outcome.finished_at_s)
    shown = [published(engine) for engine in engines]
    assert sum(one["vllm:num_preemptions_total"] for one in shown) == outcome.preemptions.sum()


def test_what_it_publishes_adds_up() -> None:
    clock = FakeClock()
    replica = Replica(TENTH_S, scheduler="vllm_v1", max_batch=2, num_blocks=11)
    engine = engine_of(replica, clock)
    gone: list[Work] = []

    def leave(told: int, tokens: int) -> None:
        if tokens == 3:  # in the midst of a batch's end
            engine.abort(gone[0])

    for first in (0, 0, 500):
        engine.submit(generation(40, 5, first), lambda told, tokens: None)
    clock.run(until_s=0.15)
    shown = published(engine)
    assert (shown["vllm:num_requests_running"], shown["vllm:num_requests_waiting"]) == (2, 1)
    assert shown["vllm:kv_cache_usage_perc"] == pytest.approx(0.4)  # two blocks are shared
    assert len(engine) == 3
    clock.run()
    gone.append(engine.submit(generation(40, 5, 900), leave))
    clock.run()
    engine.abort(gone[0])  # once more does nothing
    shown = published(engine)
    assert len(engine) == 0
    assert shown["vllm:num_requests_running"] == shown["vllm:num_requests_waiting"] == 0
    assert shown["vllm:kv_cache_usage_perc"] == 0
    assert (shown["length"], shown["stop"], shown["abort"]) == (3, 0, 1)
    assert shown["vllm:prompt_tokens_total"] == shown["vllm:prefix_cache_queries_total"] == 160
    assert shown["vllm:prefix_cache_hits_total"] == 32
    assert shown["vllm:generation_tokens_total"] == 3 * 5 + 3
    assert shown["vllm:time_to_first_token_seconds_count"] == 4
    assert shown["vllm:inter_token_latency_seconds_count"] == 3 * 4 + 2
    assert shown["vllm:inter_token_latency_seconds_sum"] == pytest.approx(14 * 0.1)
    assert shown["vllm:e2e_request_latency_seconds_count"] == 3
    assert shown["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(0.5 + 0.5 + 1.0)
    assert shown["vllm:request_queue_time_seconds_sum"] == pytest.approx(0.5)
    assert shown["mock:step_lateness_seconds_sum"] == 0


def test_a_slow_engine_takes_longer_from_its_next_step_on() -> None:
    clock = FakeClock()
    engine = engine_of(Replica(TENTH_S), clock)
    times_s: list[float] = []
    engine.submit(generation(4, 4), lambda told, tokens: times_s.append(clock.now_s()))
    clock.run(until_s=0.15)
    engine.slow_down(3)
    clock.run(until_s=0.45)
    engine.slow_down(1)
    clock.run()
    assert times_s == pytest.approx([0.1, 0.2, 0.5, 0.6])
