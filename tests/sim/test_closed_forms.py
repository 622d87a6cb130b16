"""The engines against queueing theory, and against sums done by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.engines import EngineName
from tests.sim.strategies import random_case, random_profile, random_table

N_REQUESTS = 42_000
WARM_UP = 2_000
BATCHES = 20
ARRIVAL_RATE = 0.7  # requests/s against a mean service of 1 s

both_schedulers = pytest.mark.parametrize("scheduler", ["chunked", "prefill_first"])


def one_at_a_time(batch_time: BatchTimeModel, scheduler: str) -> Cluster:
    """A single-server queue: batches of one request with its whole prompt."""
    replica = Replica(
        batch_time,
        scheduler=scheduler,
        max_batch=1,
        max_batched_tokens=100_000,
        chunk_size=100_000,
        num_blocks=100_000,
    )
    return Cluster((replica,))


def assert_mean_is(values: npt.NDArray[np.float64], expected: float) -> None:
    """Asserts that a 99.9% interval from batch means holds the expected mean, and is narrow."""
    means = values[WARM_UP:].reshape(BATCHES, -1).mean(axis=1)
    half_width = stats.t.ppf(0.9995, BATCHES - 1) * means.std(ddof=1) / math.sqrt(BATCHES)
    assert half_width < 0.2 * expected
    assert abs(means.mean() - expected) < half_width


@both_schedulers
def test_md1_mean_wait(scheduler: str, engine: EngineName) -> None:
    rng = np.random.default_rng(1)
    ones = np.ones(N_REQUESTS, dtype=np.int64)
    workload = Workload(np.cumsum(rng.exponential(1 / ARRIVAL_RATE, N_REQUESTS)), ones, ones)
    cluster = one_at_a_time(FormulaBatchTime(1.0, 0, 0, 0, 0), scheduler)
    outcome = simulate(workload, cluster, np.zeros_like(ones), engine=engine)
    assert_mean_is(outcome.queue_s, ARRIVAL_RATE / (2 * (1 - ARRIVAL_RATE)))
    np.testing.assert_allclose(outcome.e2e_s - outcome.queue_s, 1.0, rtol=1e-9)


@both_schedulers
def test_mm1_mean_wait(scheduler: str, engine: EngineName) -> None:
    # Geometric prompts of mean 1000 at 1 ms a token: exponential service up to a part in 1000.
    rng = np.random.default_rng(2)
    prompts = rng.geometric(1e-3, N_REQUESTS)
    arrivals = np.cumsum(rng.exponential(1 / ARRIVAL_RATE, N_REQUESTS))
    workload = Workload(arrivals, prompts, np.ones_like(prompts))
    cluster = one_at_a_time(FormulaBatchTime(0, 0, 0, 0, 0, c4=1e-3), scheduler)
    outcome = simulate(workload, cluster, np.zeros_like(prompts), engine=engine)
    assert_mean_is(outcome.queue_s, ARRIVAL_RATE / (1 - ARRIVAL_RATE))
    assert_mean_is(outcome.e2e_s, 1 / (1 - ARRIVAL_RATE))


@pytest.mark.parametrize("seed", range(5))
def test_littles_law(seed: int, engine: EngineName) -> None:
    case = random_case(seed, n_requests=60)
    outcome = simulate(case.workload, case.cluster, case.assignment, engine=engine)
    served = outcome.finished_at_s[~outcome.rejected]
    arrived = outcome.arrived_at_s[~outcome.rejected]
    moments = np.sort(np.concatenate([arrived, served]))
    in_system = np.array(
        [(arrived <= t).sum() - (served <= t).sum() for t in moments[:-1]], dtype=np.float64
    )
    span_s = moments[-1] - moments[0]
    mean_in_system = (in_system * np.diff(moments)).sum() / span_s
    rate = len(served) / span_s
    mean_latency_s = outcome.e2e_s[~outcome.rejected].mean()
    assert mean_in_system == pytest.approx(rate * mean_latency_s, rel=1e-9)


MODELS: dict[str, Callable[[], BatchTimeModel]] = {
    "formula": lambda: FormulaBatchTime(0.01, 1e-4, 60, 3e-7, 5e-9, 1e-5),
    "table": lambda: random_table(np.random.default_rng(3)),
    "profile": lambda: random_profile(np.random.default_rng(4)),
}

every_model = pytest.mark.parametrize("model", MODELS)


def alone(
    model: BatchTimeModel, engine: EngineName, prompt: int, output: int, **limits: Any
) -> Any:
    """Returns the outcome of one request that finds its cluster empty at 2.5 s."""
    replica = Replica(model, num_blocks=10_000, **limits)
    workload = Workload(np.array([2.5]), np.array([prompt]), np.array([output]))
    return simulate(workload, Cluster((replica,)), "round_robin", engine=engine)


@every_model
@pytest.mark.parametrize("output", [1, 2, 300])
def test_an_empty_cluster_takes_the_sum_of_its_batches(
    model: str, output: int, engine: EngineName
) -> None:
    batch_time = MODELS[model]()
    outcome = alone(batch_time, engine, 1000, output, scheduler="prefill_first")
    prefill_s = batch_time([1000], [0], [])
    decode_s = sum(batch_time([], [], [1001 + step]) for step in range(output - 1))
    assert outcome.scheduled_at_s[0] == 2.5
    assert outcome.ttft_s[0] == pytest.approx(prefill_s, rel=1e-9)
    assert outcome.e2e_s[0] == pytest.approx(prefill_s + decode_s, rel=1e-9)


@every_model
@pytest.mark.parametrize("chunk_size", [100, 300, 1000])
def test_an_empty_cluster_takes_the_sum_of_its_chunks(
    model: str, chunk_size: int, engine: EngineName
) -> None:
    batch_time = MODELS[model]()
    outcome = alone(batch_time, engine, 1000, 40, scheduler="chunked", chunk_size=chunk_size)
    prefill_s = sum(
        batch_time([min(chunk_size, 1000 - done)], [done], [])
        for done in range(0, 1000, chunk_size)
    )
    decode_s = sum(batch_time([], [], [1001 + step]) for step in range(39))
    assert outcome.ttft_s[0] == pytest.approx(prefill_s, rel=1e-9)
    assert outcome.e2e_s[0] == pytest.approx(prefill_s + decode_s, rel=1e-9)


@both_schedulers
def test_decodes_share_their_batches(scheduler: str, engine: EngineName) -> None:
    # 8 equal requests at once: one prefill batch, then 99 batches of 8 decodes.
    batch_time = FormulaBatchTime(0.01, 0, 0, 1e-6, 0, 1e-5)
    replica = Replica(batch_time, scheduler=scheduler, chunk_size=800, num_blocks=10_000)
    eight = np.ones(8, dtype=np.int64)
    workload = Workload(np.zeros(8), 100 * eight, 100 * eight)
    outcome = simulate(workload, Cluster((replica,)), "round_robin", engine=engine)
    prefill_s = 0.01 + 1e-5 * 800
    contexts = 8 * sum(101 + step for step in range(99))
    decode_s = 99 * (0.01 + 1e-5 * 8) + 1e-6 * contexts
    np.testing.assert_allclose(outcome.ttft_s, prefill_s, rtol=1e-9)
    np.testing.assert_allclose(outcome.e2e_s, prefill_s + decode_s, rtol=1e-9)


@pytest.mark.parametrize("block_size", [16, 7])
def test_steps_beyond_any_counter(block_size: int) -> None:
    # Batches of 2**-10 s whatever is in them: a request takes one for each of its output tokens.
    n_requests = 24
    output = np.random.default_rng(3).integers(1, MAX_TOKENS - 100, n_requests)
    arrived_at_s = 3e5 * np.arange(n_requests)
    workload = Workload(arrived_at_s, np.full(n_requests, 64), output)
    batch_time = FormulaBatchTime(2.0**-10, 0, 0, 0, 0)
    replica = Replica(batch_time, block_size=block_size, num_blocks=2**40)
    outcome = simulate(workload, Cluster((replica,)), "round_robin", engine="compiled")
    assert (outcome.finished_at_s[:-1] > outcome.arrived_at_s[1:]).sum() > n_requests // 2
    assert outcome.finished_at_s.max() * 2**10 > 2**32
    np.testing.assert_array_equal(outcome.e2e_s * 2**10, output)
