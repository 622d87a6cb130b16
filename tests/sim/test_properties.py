"""What holds for every workload on every cluster."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Interval, Outcome, Workload
from llmroute_gym.sim.engines import EngineName
from tests.sim.monitor import watched_schedulers
from tests.sim.strategies import Case, cases, n_cases

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

many = settings(
    max_examples=n_cases(100),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TIMES = ("scheduled_at_s", "first_token_at_s", "finished_at_s")


def replayed(case: Case, engine: EngineName) -> Outcome:
    return simulate(case.workload, case.cluster, case.assignment, engine=engine)


def stepped(case: Case, engine: EngineName) -> tuple[list[Interval], Outcome]:
    """Places each request by hand; returns the intervals and the outcome."""
    run = case.start(engine)
    intervals = [run.place(replica) for replica in case.assignment.tolist()]
    assert run.done
    return intervals, run.outcome()


def assert_close(value: float, expected: float) -> None:
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)


def assert_same_times(one: Outcome, other: Outcome, rtol: float = 1e-9) -> None:
    for name in TIMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=1e-12)
    np.testing.assert_array_equal(one.preemptions, other.preemptions)


@many
@given(case=cases())
def test_every_request_is_in_the_outcome_with_times_in_order(
    case: Case, engine: EngineName
) -> None:
    outcome = replayed(case, engine)
    served = ~outcome.rejected
    np.testing.assert_array_equal(outcome.arrived_at_s, case.workload.arrived_at_s)
    np.testing.assert_array_equal(outcome.prompt_tokens, case.workload.prompt_tokens)
    np.testing.assert_array_equal(outcome.output_tokens, case.workload.output_tokens)
    np.testing.assert_array_equal(outcome.replica[served], case.assignment[served])
    assert np.isfinite(outcome.finished_at_s[served]).all()
    assert (outcome.arrived_at_s <= outcome.scheduled_at_s).all()
    assert (outcome.scheduled_at_s < outcome.first_token_at_s)[served].all()
    assert (outcome.first_token_at_s <= outcome.finished_at_s).all()
    # Vidur's restart lets a half-done prompt answer early, even if one token is all it has.
    one_token = (outcome.output_tokens == 1) & (outcome.preemptions == 0)
    assert (outcome.first_token_at_s == outcome.finished_at_s)[served & one_token].all()
    several = outcome.output_tokens > 1
    assert (outcome.first_token_at_s < outcome.finished_at_s)[served & several].all()
    for request in np.flatnonzero(outcome.rejected):
        replica = case.cluster[case.assignment[request]]
        tokens = case.workload.prompt_tokens[request], case.workload.output_tokens[request]
        assert replica.oversize == "reject"
        assert replica.why_oversize(int(tokens[0]), int(tokens[1]))
        assert all(getattr(outcome, name)[request] == math.inf for name in TIMES)


@many
@given(case=cases())
def test_admission_is_first_in_first_out(case: Case, engine: EngineName) -> None:
    outcome = replayed(case, engine)
    for replica in range(len(case.cluster)):
        assert (np.diff(outcome.scheduled_at_s[outcome.replica == replica]) >= 0).all()


@many
@given(case=cases())
def test_memory_and_tokens_are_conserved(case: Case) -> None:
    with watched_schedulers() as logs:  # checks blocks and limits at each batch
        outcome = replayed(case, "reference")
    total = case.workload.prompt_tokens + case.workload.output_tokens
    for index, log in enumerate(logs):
        mine = np.flatnonzero(outcome.replica == index)
        assert log.final_blocks == 0
        # The last output token needs no KV; all others are processed once since the last restart.
        assert log.tokens_kept == {int(i): int(total[i]) - 1 for i in mine}
        for request in mine.tolist():
            assert log.restarts.count(request) == outcome.preemptions[request]
            assert log.admissions.count(request) == outcome.preemptions[request] + 1
        first_admissions = list(dict.fromkeys(log.admissions))
        assert first_admissions == sorted(first_admissions)


@many
@given(case=cases())
def test_busy_times_add_up(case: Case) -> None:
    with watched_schedulers() as logs:
        outcome = replayed(case, "reference")
    for index, (log, replica) in enumerate(zip(logs, case.cluster, strict=True)):
        mine = outcome.replica == index
        if replica.slowdowns or not mine.any():
            continue
        busy_s = sum(replica.batch_time.seconds(batch.sums) for batch in log.batches)
        # Idle only when nobody is there: the union of the requests' stays is the busy time.
        stays = sorted(zip(outcome.arrived_at_s[mine], outcome.finished_at_s[mine], strict=True))
        union_s, reach_s = 0.0, -math.inf
        for start_s, end_s in stays:
            union_s += max(end_s - max(start_s, reach_s), 0.0)
            reach_s = max(reach_s, end_s)
        assert busy_s / replica.speed == pytest.approx(union_s, rel=1e-9)


@many
@given(case=cases())
def test_intervals_sum_to_latency(case: Case, engine: EngineName) -> None:
    intervals, outcome = stepped(case, engine)
    e2e_s = outcome.e2e_s[~outcome.rejected]
    late_s = np.maximum(e2e_s - case.options["late_after_s"], 0.0)
    assert_close(sum(i.request_seconds for i in intervals), e2e_s.sum())
    assert_close(sum(i.late_request_seconds for i in intervals), late_s.sum())
    end_s = max(outcome.finished_at_s[~outcome.rejected], default=0.0)
    end_s = max(end_s, float(outcome.arrived_at_s[-1]))
    span_s = end_s - outcome.arrived_at_s[0]
    assert_close(sum(i.duration_s for i in intervals), span_s)
    gaps = np.diff(outcome.arrived_at_s)
    np.testing.assert_allclose([i.duration_s for i in intervals[:-1]], gaps, atol=1e-12)


@pytest.mark.slow
@many
@given(case=cases())
def test_stepping_and_replaying_agree(case: Case, engine: EngineName) -> None:
    assert_same_times(stepped(case, engine)[1], replayed(case, engine))


@pytest.mark.slow
@many
@given(case=cases())
def test_equal_inputs_give_equal_bits(case: Case, engine: EngineName) -> None:
    one = simulate(case.workload, case.cluster, case.router, engine=engine, seed=3)
    other = simulate(case.workload, case.cluster, case.router, engine=engine, seed=3)
    for name, column in one.columns().items():
        np.testing.assert_array_equal(column, other.columns()[name])


@pytest.mark.slow
@many
@given(case=cases())
def test_what_is_observed_does_not_change_what_happens(case: Case, engine: EngineName) -> None:
    run = case.start(engine, observation=ObservationConfig(signal_interval_s=0.25))
    for replica in case.assignment.tolist():
        run.rows()
        run.place(replica)
    assert_same_times(run.outcome(), replayed(case, engine))


@pytest.mark.slow
@many
@given(case=cases())
def test_a_replica_does_not_feel_the_others(case: Case, engine: EngineName) -> None:
    together = replayed(case, engine)
    for index, replica in enumerate(case.cluster):
        mine = case.assignment == index
        if not mine.any():
            continue
        workload = Workload(
            case.workload.arrived_at_s[mine],
            case.workload.prompt_tokens[mine],
            case.workload.output_tokens[mine],
        )
        nowhere_else = np.zeros(int(mine.sum()), dtype=np.int64)
        alone = simulate(workload, Cluster((replica,)), nowhere_else, engine=engine)
        for name in TIMES:
            np.testing.assert_allclose(
                getattr(alone, name), getattr(together, name)[mine], rtol=1e-9
            )


@pytest.mark.slow
@many
@given(case=cases())
def test_time_has_no_unit(case: Case, engine: EngineName) -> None:
    # Twice the arrival times, half the speed: all times double, to the last bit.
    half_speed = Cluster(
        tuple(
            replace(one, speed=one.speed / 2, slowdowns=tuple((2 * t, f) for t, f in one.slowdowns))
            for one in case.cluster
        )
    )
    doubled = case.workload.with_arrivals(2 * case.workload.arrived_at_s)
    slow = simulate(doubled, half_speed, case.assignment, engine=engine)
    fast = replayed(case, engine)
    for name in TIMES:
        np.testing.assert_array_equal(getattr(slow, name), 2 * getattr(fast, name))


@pytest.mark.slow
@many
@given(case=cases(exact=True))
def test_time_has_no_origin(case: Case, engine: EngineName) -> None:
    # Only where all times are multiples of a power of two: elsewhere the shift itself rounds.
    later = Cluster(
        tuple(
            replace(one, slowdowns=tuple((t + 512.0, f) for t, f in one.slowdowns))
            for one in case.cluster
        )
    )
    shifted = case.workload.with_arrivals(case.workload.arrived_at_s + 512.0)
    outcome = simulate(shifted, later, case.assignment, engine=engine)
    now = replayed(case, engine)
    for name in TIMES:
        np.testing.assert_array_equal(getattr(outcome, name), getattr(now, name) + 512.0)
