"""The rows that a router sees, recomputed from what became of the requests."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import AGING, N_SIGNALS, RATE_TIME_S
from llmroute_gym.sim import Cluster, FormulaBatchTime, Outcome, Replica, Signal, Workload
from llmroute_gym.sim.engines import ENGINES, EngineName
from tests.sim.strategies import Case, cases, random_case
from tests.sim.test_properties import many

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)


def decisions(
    case: Case, engine: EngineName, **overrides: Any
) -> tuple[FloatArray, FloatArray, Outcome]:
    """Returns the time and the rows of each decision, and the outcome.

    Shapes (n_requests,) and (n_requests, n_replicas, N_SIGNALS).
    """
    run = case.start(engine, **overrides)
    times, rows = [], []
    for replica in case.assignment.tolist():
        times.append(run.now_s)
        rows.append(run.rows())
        run.place(replica)
    return np.array(times), np.array(rows), run.outcome()


def faded(at_s: FloatArray, now_s: float) -> FloatArray:
    return np.exp((at_s - now_s) / RATE_TIME_S)


def weighted_mean(values: FloatArray, weights: FloatArray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() > 1e-12 else 0.0


def told_to_a_router(
    case: Case, outcome: Outcome, request: int, replica: int, now_s: float
) -> dict[Signal, float]:
    """What a router counts by itself, from the outcome: nothing at `now_s` is seen yet."""
    placed = (np.arange(len(outcome)) < request) & (outcome.replica == replica)
    silent = placed & (outcome.first_token_at_s >= now_s)
    answered = placed & (outcome.first_token_at_s < now_s)
    streaming = answered & (outcome.finished_at_s >= now_s)
    return {
        Signal.WAITING: silent.sum(),
        Signal.RUNNING: streaming.sum(),
        Signal.KV_USAGE: 0.0,
        Signal.PENDING_PROMPT_TOKENS: outcome.prompt_tokens[silent].sum(),
        Signal.CONTEXT_TOKENS: outcome.prompt_tokens[streaming].sum(),
        Signal.OLDEST_WAITING_S: now_s - outcome.arrived_at_s[silent].min(initial=now_s),
        Signal.BATCH_TIME_S: 0.0,
        Signal.TTFT_S: weighted_mean(
            outcome.ttft_s[answered], faded(outcome.first_token_at_s[answered], now_s)
        ),
    }


def told_of_the_cluster(
    case: Case, outcome: Outcome, request: int, now_s: float
) -> dict[Signal, float]:
    """The columns that are the same in all rows."""
    earlier = outcome.arrived_at_s[:request]
    done = outcome.finished_at_s < now_s
    weights = faded(outcome.finished_at_s[done], now_s)
    per_replica = RATE_TIME_S * len(case.cluster)
    predicted = case.options["predicted_output_tokens"]
    return {
        Signal.PROMPT_TOKENS: outcome.prompt_tokens[request],
        Signal.PREDICTED_OUTPUT_TOKENS: 0.0 if predicted is None else predicted[request],
        Signal.CACHED_PREFIX: 0.0,
        Signal.ARRIVAL_RATE: faded(earlier, now_s).sum() / per_replica,
        Signal.COMPLETION_RATE: weights.sum() / per_replica,
        Signal.E2E_S: weighted_mean(outcome.e2e_s[done], weights),
        Signal.SINCE_LAST_ARRIVAL_S: now_s - earlier[-1] if request else 0.0,
    }


def assert_columns(row: FloatArray, expected: dict[Signal, float]) -> None:
    for signal, value in expected.items():
        assert row[signal] == pytest.approx(value, rel=1e-6, abs=1e-9), signal.name


@many
@given(case=cases(max_requests=25))
def test_router_information_follows_from_the_outcome(case: Case, engine: EngineName) -> None:
    observation = ObservationConfig(information="router")
    times, rows, outcome = decisions(case, engine, observation=observation)
    np.testing.assert_array_equal(times, case.workload.arrived_at_s)
    for request, now_s in enumerate(times.tolist()):
        cluster_wide = told_of_the_cluster(case, outcome, request, now_s)
        for replica, row in enumerate(rows[request]):
            assert_columns(row, told_to_a_router(case, outcome, request, replica, now_s))
            assert_columns(row, cluster_wide)
            assert row[Signal.SPEED] == case.cluster[replica].speed
            assert row[Signal.REMAINING_TOKENS] == 0.0


@many
@given(case=cases(max_requests=25))
def test_engine_information_agrees_with_what_a_router_counts(
    case: Case, engine: EngineName
) -> None:
    fresh = ObservationConfig(information="oracle")
    _, rows, outcome = decisions(case, engine, observation=fresh)
    _, counted, _ = decisions(case, engine, observation=ObservationConfig(information="router"))
    waiting, running = rows[..., Signal.WAITING], rows[..., Signal.RUNNING]
    in_flight = counted[..., Signal.WAITING] + counted[..., Signal.RUNNING]
    np.testing.assert_array_equal(waiting + running, in_flight)
    np.testing.assert_allclose(rows[..., Signal.TTFT_S], counted[..., Signal.TTFT_S], rtol=1e-9)
    assert ((rows[..., Signal.KV_USAGE] == 0) == (running == 0)).all()
    assert (rows[..., Signal.KV_USAGE] <= 1).all()
    assert ((rows[..., Signal.OLDEST_WAITING_S] > 0) <= (waiting > 0)).all()
    assert ((rows[..., Signal.CONTEXT_TOKENS] > 0) <= (running > 0)).all()
    for index, replica in enumerate(case.cluster):
        blocks = rows[:, index, Signal.KV_USAGE] * replica.num_blocks
        np.testing.assert_allclose(blocks, np.round(blocks), atol=1e-9)
    # What is left is what is waiting or in flight, less what is done.
    busy = in_flight > 0
    assert ((rows[..., Signal.REMAINING_TOKENS] > 0) == busy).all()
    assert (rows[..., Signal.REMAINING_TOKENS] >= rows[..., Signal.PENDING_PROMPT_TOKENS]).all()
    total = outcome.prompt_tokens + outcome.output_tokens
    for request in range(len(outcome)):
        for index in range(len(case.cluster)):
            mine = (np.arange(len(outcome)) < request) & (outcome.replica == index)
            unfinished = mine & (outcome.finished_at_s >= outcome.arrived_at_s[request])
            held = rows[request, index, Signal.CONTEXT_TOKENS]
            left = rows[request, index, Signal.REMAINING_TOKENS]
            assert held + left == total[unfinished].sum()


@many
@given(case=cases(max_requests=25))
def test_intervals_tell_completion_rate_and_imbalance(case: Case, engine: EngineName) -> None:
    run = case.start(engine, observation=ObservationConfig(information="oracle"))
    speeds = np.array([replica.speed for replica in case.cluster])
    total = case.workload.prompt_tokens + case.workload.output_tokens
    rates, ends = [], []
    for request, replica in enumerate(case.assignment.tolist()):
        work = run.rows()[:, Signal.REMAINING_TOKENS]
        one = case.cluster[replica]
        sizes = int(case.workload.prompt_tokens[request]), int(case.workload.output_tokens[request])
        if one.why_oversize(*sizes) is None:
            work[replica] += total[request]
        load = work / speeds
        interval = run.place(replica)
        expected = load.std() / load.mean() if load.any() else 0.0
        assert interval.imbalance == pytest.approx(expected, rel=1e-6, abs=1e-9)
        rates.append(interval.completion_rate_rps)
        ends.append(run.now_s)
    finished_at_s = run.outcome().finished_at_s
    for i, (rate, end_s) in enumerate(zip(rates, ends, strict=True)):
        last = i == len(rates) - 1
        seen = finished_at_s <= end_s if last else finished_at_s < end_s
        expected = faded(finished_at_s[seen], end_s).sum() / RATE_TIME_S
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_engine_columns_of_a_run_worked_by_hand(engine: EngineName) -> None:
    # 1 s a batch, chunks of 8, blocks of 4. 0: A's 12 prompt tokens, first 8; 1: A's last 4 and
    # 4 of B's 10; 2: A decodes, B's last 6; 3: both decode. C looks in at 1.5 and D at 3.5.
    replica = Replica(ONE_SECOND, scheduler="chunked", chunk_size=8, block_size=4, num_blocks=10)
    arrived = np.array([0.0, 0.5, 1.5, 3.5])
    workload = Workload(arrived, np.array([12, 10, 20, 1]), np.array([5, 5, 2, 1]))
    run = ENGINES[engine](workload, Cluster((replica, replica)))
    run.place(0)
    assert run.now_s == 0.5
    # A runs; nothing of its batch is visible yet, but its blocks are taken.
    expected: dict[Signal, float] = {
        Signal.WAITING: 0,
        Signal.RUNNING: 1,
        Signal.KV_USAGE: 0.3,
        Signal.PENDING_PROMPT_TOKENS: 12,
        Signal.CONTEXT_TOKENS: 0,
        Signal.OLDEST_WAITING_S: 0,
        Signal.BATCH_TIME_S: 0,
        Signal.TTFT_S: 0,
        Signal.SPEED: 1,
        Signal.AVAILABLE: 1,
        Signal.PROMPT_TOKENS: 10,
        Signal.SINCE_LAST_ARRIVAL_S: 0.5,
    }
    assert run.rows().shape == (2, N_SIGNALS)
    assert_columns(run.rows()[0], expected)
    assert not run.rows()[1, list(AGING)].any()
    run.place(0)
    assert run.now_s == 1.5
    expected = {
        Signal.WAITING: 0,
        Signal.RUNNING: 2,
        Signal.KV_USAGE: 0.6,
        Signal.PENDING_PROMPT_TOKENS: 4 + 10,
        Signal.CONTEXT_TOKENS: 8,
        Signal.BATCH_TIME_S: 1,
        Signal.TTFT_S: 0,
        Signal.PROMPT_TOKENS: 20,
    }
    assert_columns(run.rows()[0], expected)
    run.place(0)
    assert run.now_s == 3.5
    # C waits: its 5 blocks do not fit beside A's 4 and B's 3. A's first token took 2 s, B's 2.5.
    ttft = [math.exp((2 - 3) / RATE_TIME_S), 1.0]
    expected = {
        Signal.WAITING: 1,
        Signal.RUNNING: 2,
        Signal.KV_USAGE: 0.7,
        Signal.PENDING_PROMPT_TOKENS: 20,
        Signal.CONTEXT_TOKENS: 14 + 11,
        Signal.OLDEST_WAITING_S: 2,
        Signal.BATCH_TIME_S: 1,
        Signal.TTFT_S: (2 * ttft[0] + 2.5 * ttft[1]) / sum(ttft),
        Signal.PROMPT_TOKENS: 1,
        Signal.SINCE_LAST_ARRIVAL_S: 2,
    }
    assert_columns(run.rows()[0], expected)


def test_batch_time_is_an_exponential_average(engine: EngineName) -> None:
    # Batches of 1, 3 and 3 s: the average starts at 1 and moves by a tenth towards 3, twice.
    replica = Replica(ONE_SECOND, slowdowns=((0.5, 3.0),))
    workload = Workload(np.array([0.0, 1.5, 4.5, 7.5]), np.full(4, 4), np.array([9, 1, 1, 1]))
    run = ENGINES[engine](workload, Cluster((replica,)))
    seen = []
    for _ in range(4):
        seen.append(run.rows()[0, Signal.BATCH_TIME_S])
        run.place(0)
    assert seen == pytest.approx([0.0, 1.0, 1.2, 1.38])


@pytest.mark.parametrize("interval_s", [0.25, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_engine_columns_age_with_the_signal_interval(
    seed: int, interval_s: float, engine: EngineName
) -> None:
    # Probes at each multiple of the interval go to a replica of their own; the fresh rows that
    # they see there are what the stale rows must show until the next multiple.
    case = random_case(seed, n_requests=40, exact=True)
    last_s = float(case.workload.arrived_at_s[-1])
    probes = np.arange(0.0, last_s + interval_s, interval_s)
    ones = np.ones(len(probes), dtype=np.int64)
    columns: list[npt.NDArray[Any]] = []
    for probe, request in (
        (probes, case.workload.arrived_at_s),
        (ones, case.workload.prompt_tokens),
        (ones, case.workload.output_tokens),
        (0 * ones + len(case.cluster), case.assignment),
    ):
        columns.append(np.concatenate([probe, request]))
    arrived_at_s = columns[0]
    order = np.argsort(arrived_at_s, kind="stable")
    probed = case._replace(
        workload=Workload(arrived_at_s, columns[1], columns[2]),
        cluster=Cluster((*case.cluster, Replica(ONE_SECOND, speed=1e6))),
        assignment=columns[3][order],
        options={},
    )
    _, fresh, outcome = decisions(probed, engine)
    observation = ObservationConfig(signal_interval_s=interval_s)
    times, stale, same = decisions(probed, engine, observation=observation)
    np.testing.assert_array_equal(same.finished_at_s, outcome.finished_at_s)
    read_s = np.floor(times / interval_s) * interval_s
    read = np.searchsorted(times, read_s)  # the probe is the first decision of its instant
    np.testing.assert_array_equal(times[read], read_s)
    engine_side = np.s_[:, :-1, : len(AGING)]
    np.testing.assert_allclose(stale[engine_side], fresh[read][engine_side], rtol=1e-9)
    router_side = np.s_[..., len(AGING) :]
    np.testing.assert_allclose(stale[router_side], fresh[router_side], rtol=1e-9)


@pytest.mark.parametrize("information", ["router", "oracle"])
def test_a_routers_own_counts_do_not_age(information: str, engine: EngineName) -> None:
    case = random_case(5, n_requests=40)
    aged = ObservationConfig(information=information, signal_interval_s=1.0)
    fresh = ObservationConfig(information=information)
    _, rows, _ = decisions(case, engine, observation=aged)
    _, expected, _ = decisions(case, engine, observation=fresh)
    own = np.s_[:] if information == "router" else np.s_[len(AGING) :]
    np.testing.assert_allclose(rows[..., own], expected[..., own], rtol=1e-9)


def test_remaining_tokens_are_told_to_the_oracle_only(engine: EngineName) -> None:
    case = random_case(1, n_requests=30)
    for information in ("engine", "router", "oracle"):
        observation = ObservationConfig(information=information)
        _, rows, _ = decisions(case, engine, observation=observation)
        assert rows[..., Signal.REMAINING_TOKENS].any() == (information == "oracle")
