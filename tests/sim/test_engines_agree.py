"""The compiled engine gives the reference engine's numbers, on random cases."""

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Interval, Outcome, Workload
from llmroute_gym.sim.engines import ENGINES
from tests.sim.strategies import Case, random_case, seeds, with_waiting

pytestmark = [
    pytest.mark.skipif("compiled" not in ENGINES, reason="there is no compiled engine"),
    pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table"),
]

APART = 1_000_000
"""Between the seeds of one test and those of the next."""

TIMES = ("arrived_at_s", "scheduled_at_s", "first_token_at_s", "finished_at_s")
COUNTS = (
    "replica",
    "preemptions",
    "cached_tokens",
    "recached_tokens",
    "prompt_tokens",
    "output_tokens",
)


def assert_same_outcome(compiled: Outcome, reference: Outcome, rtol: float) -> None:
    for name in COUNTS:
        ours, theirs = getattr(compiled, name), getattr(reference, name)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert ours.dtype == theirs.dtype, name
    for name in TIMES:
        ours, theirs = getattr(compiled, name), getattr(reference, name)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=0, err_msg=name)


def assert_same_interval(compiled: Interval, reference: Interval, rtol: float) -> None:
    for name, ours, theirs in zip(Interval._fields, compiled, reference, strict=True):
        assert ours == pytest.approx(theirs, rel=rtol, abs=1e-7), name


def assert_stepped_alike(case: Case) -> Outcome:
    """Steps both engines side by side, compares all that they show, returns the reference's."""
    reference, compiled = case.start("reference"), case.start("compiled")
    # Rows are float64, but only float32 reaches a policy.
    rtol = max(case.rtol * 10, 1e-6)
    for decision in range(len(case.assignment)):
        assert compiled.decision == reference.decision == decision
        assert compiled.request == reference.request
        request, replica = compiled.request, int(case.assignment[compiled.request])
        if case.workload.after is None:
            assert compiled.now_s == reference.now_s
        assert compiled.now_s == pytest.approx(reference.now_s, rel=case.rtol)
        np.testing.assert_array_equal(compiled.mask(), reference.mask())
        rows, expected = compiled.rows(), reference.rows()
        assert rows.dtype == expected.dtype
        np.testing.assert_allclose(rows, expected, rtol=rtol, atol=1e-7, err_msg=f"{request}")
        assert_same_interval(compiled.place(replica), reference.place(replica), rtol)
    assert compiled.done
    assert reference.done
    assert compiled.now_s == pytest.approx(reference.now_s, rel=case.rtol)
    np.testing.assert_allclose(compiled.rows(), reference.rows(), rtol=rtol, atol=1e-7)
    outcome = reference.outcome()
    assert_same_outcome(compiled.outcome(), outcome, case.rtol)
    return outcome


def assert_simulated_alike(case: Case, seed: int, placed: Outcome | None = None) -> None:
    """Compares whole runs, placed in advance and by a router.

    `placed` spares the reference engine a run: what became of the requests where they are placed.
    """
    for router, reference in ((case.assignment, placed), (case.router, None)):
        compiled = simulate(case.workload, case.cluster, router, seed=seed)
        if reference is None:
            reference = simulate(case.workload, case.cluster, router, engine="reference", seed=seed)
        assert_same_outcome(compiled, reference, case.rtol)


@seeds(320)
def test_steps_agree(seed: int) -> None:
    assert_stepped_alike(random_case(seed))


@seeds(320)
def test_runs_agree(seed: int) -> None:
    assert_simulated_alike(random_case(APART + seed), seed)


@seeds(320)
def test_runs_whose_arrivals_depend_on_ends_agree(seed: int) -> None:
    case = with_waiting(random_case(2 * APART + seed), seed)
    assert_stepped_alike(case)
    assert_simulated_alike(case, seed)


@seeds(40)
def test_ends_and_the_arrivals_they_bring_agree_to_the_bit(seed: int) -> None:
    case = with_waiting(random_case(3 * APART + seed, exact=True), seed)
    assert_stepped_alike(case)
    first, second = (
        simulate(case.workload, case.cluster, case.assignment, engine=engine)
        for engine in ("reference", "compiled")
    )
    for name in TIMES:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@seeds(40)
def test_events_at_one_instant_agree(seed: int) -> None:
    case = random_case(4 * APART + seed, exact=True)
    assert_stepped_alike(case)
    for name in TIMES:  # nothing rounds, so not a bit may differ
        reference, compiled = (
            simulate(case.workload, case.cluster, case.assignment, engine=engine)
            for engine in ("reference", "compiled")
        )
        np.testing.assert_array_equal(getattr(compiled, name), getattr(reference, name))


@pytest.mark.parametrize("n_requests", [1, 2, 300])
def test_workloads_of_any_size_agree(n_requests: int) -> None:
    for seed in range(3):
        assert_simulated_alike(random_case(5 * APART + seed, n_requests=n_requests), seed)


def test_wrong_input_gets_the_same_sentence() -> None:
    case = random_case(3)
    long = Workload(np.array([0.0, 1.0]), np.array([10, 100]), np.array([2, 2]))
    small = Cluster.from_profile("a100-llama-2-7b", replicas=2, num_blocks=4, watermark_blocks=0)
    messages = []
    for engine in ("reference", "compiled"):
        with pytest.raises(InputError) as oversize:
            simulate(long, small, "lor", engine=engine)
        run = case.start(engine)
        with pytest.raises(InputError) as outside:
            run.place(len(case.cluster))
        for replica in case.assignment.tolist():
            run.place(replica)
        with pytest.raises(InputError) as finished:
            run.place(0)
        messages.append([str(error.value) for error in (oversize, outside, finished)])
    assert messages[0] == messages[1]
