"""What a run accepts, and what it shows half-way; on each engine."""

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import (
    BatchSums,
    BatchTimeModel,
    Cluster,
    FormulaBatchTime,
    Replica,
    Run,
    Signal,
    Workload,
)
from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.engines import ENGINES, EngineName
from llmroute_gym.sim.replica import OversizeMode

MODEL = FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)
THREE = Workload(np.array([0.0, 1.0, 2.0]), np.array([10, 150, 10]), np.array([5, 5, 5]))


def small(oversize: OversizeMode, num_blocks: int = 5) -> Replica:
    """A replica that holds 80 tokens, the first and last request of `THREE`."""
    return Replica(MODEL, num_blocks=num_blocks, oversize=oversize)


TWO = Cluster((Replica(MODEL),) * 2)


def start(engine: EngineName, cluster: Cluster = TWO, **options: Any) -> Run:
    return ENGINES[engine](THREE, cluster, **options)


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"predicted_output_tokens": np.ones(2)}, "must be one number per request, 3; got 2"),
    ({"predicted_output_tokens": np.ones((3, 1))}, r"with 1 axes, got shape \(3, 1\)"),
    ({"predicted_output_tokens": 5.0}, r"with 1 axes, got shape \(\)"),
    ({"predicted_output_tokens": [1, math.nan, 1]}, "numbers >= 0, got nan at index 1"),
    ({"predicted_output_tokens": [1, 1, math.inf]}, "numbers >= 0, got inf at index 2"),
    ({"predicted_output_tokens": [-1, 1, 1]}, r"numbers >= 0, got -1\.0 at index 0"),
    ({"predicted_output_tokens": ["a", "b", "c"]}, r"an array of numbers, got \['a', 'b', 'c'\]"),
    *(
        ({"late_after_s": value}, "late_after_s must be a finite number > 0, got ")
        for value in (0.0, -1.0, math.nan, math.inf, None, "6", True)
    ),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG_OPTIONS, ids=range(len(WRONG_OPTIONS)))
def test_wrong_options_are_one_sentence(
    options: dict[str, Any], sentence: str, engine: EngineName
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        start(engine, **options)
    assert next(iter(options)) in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions_are_copied_and_shown(engine: EngineName) -> None:
    guesses = np.array([7.0, 8.0, 9.0])
    run = start(engine, predicted_output_tokens=guesses, late_after_s=1)
    guesses[:] = 0.0
    for guess in (7.0, 8.0, 9.0):
        assert (run.rows()[:, Signal.PREDICTED_OUTPUT_TOKENS] == guess).all()
        run.place(0)


@pytest.mark.parametrize(
    "replica",
    [None, True, np.True_, "0", 0.0, np.float64(1), 2, -1, np.int64(2), [0], np.array([0])],
)
def test_a_replica_is_an_index_into_the_cluster(replica: Any, engine: EngineName) -> None:
    run = start(engine)
    with pytest.raises(InputError, match=r"must be an integer from 0 to 1, got .* for request 0"):
        run.place(replica)
    assert run.decision == 0
    assert np.isnan(run.outcome().finished_at_s).all()


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint64, np.array])
def test_integers_of_numpy_name_replicas_too(kind: Any, engine: EngineName) -> None:
    run = start(engine)
    for replica in (1, 0, 1):
        run.place(kind(replica))
    assert run.outcome().replica.tolist() == [1, 0, 1]


def test_a_run_replays_only_from_its_beginning(engine: EngineName) -> None:
    begun = start(engine)
    begun.place(0)
    with pytest.raises(InputError, match=r"1 of 3 requests are placed already; start a new run"):
        begun.replay([0, 0, 0])
    replayed = start(engine)
    replayed.replay([0, 1, 0])
    finished_at_s = replayed.outcome().finished_at_s
    with pytest.raises(InputError, match=r"3 of 3 requests are placed already; start a new run"):
        replayed.replay([0, 1, 0])
    np.testing.assert_array_equal(replayed.outcome().finished_at_s, finished_at_s)
    with pytest.raises(InputError, match="all 3 requests are placed"):
        replayed.place(0)


@pytest.mark.parametrize("wrong", [[0, 0], [0, 0, 2], [0.0, 0.0, 0.0], [[0], [0, 1], 0]])
def test_a_wrong_assignment_leaves_the_run_as_it_was(wrong: Any, engine: EngineName) -> None:
    run = start(engine)
    with pytest.raises(InputError, match="assign"):
        run.replay(wrong)
    run.replay([1, 1, 0])
    assert run.outcome().replica.tolist() == [1, 1, 0]


def test_an_assignment_with_an_oversize_request_leaves_the_run_as_it_was(
    engine: EngineName,
) -> None:
    mixed = Cluster((small("raise"), Replica(MODEL)))
    run = start(engine, mixed)
    with pytest.raises(InputError, match="request 1 cannot run on replica 0"):
        run.replay([0, 0, 0])
    run.replay([0, 1, 0])
    expected = simulate(THREE, mixed, [0, 1, 0], engine=engine)
    np.testing.assert_array_equal(run.outcome().finished_at_s, expected.finished_at_s)


def masks(run: Run) -> list[list[bool]]:
    """Returns the mask of each decision, shape (n_requests, n_replicas)."""
    seen = []
    while not run.done:
        mask = run.mask()
        np.testing.assert_array_equal(run.rows()[:, Signal.AVAILABLE], True)
        np.testing.assert_array_equal(run.rows()[:, Signal.FITS], run.fits())
        seen.append(mask.tolist())
        run.place(int(np.argmax(mask)))
    return seen


@pytest.mark.parametrize(
    ("cluster", "second"),
    [
        (Cluster((small("reject"),) * 2), [True, True]),
        (Cluster((small("raise"), small("reject"))), [False, True]),
        (Cluster((small("raise"), Replica(MODEL))), [False, True]),
        (Cluster((Replica(MODEL), small("reject"))), [True, False]),
        (Cluster((small("raise"), small("reject"), Replica(MODEL))), [False, False, True]),
    ],
    ids=["both reject", "one rejects", "one holds", "hold before reject", "all three"],
)
def test_a_mask_allows_those_that_hold_a_request_or_else_those_that_reject_it(
    cluster: Cluster, second: list[bool], engine: EngineName
) -> None:
    every = [True] * len(cluster)
    assert masks(start(engine, cluster)) == [every, second, every]


def test_a_request_that_fits_nowhere_is_rejected_in_a_mixed_cluster(engine: EngineName) -> None:
    mixed = Cluster((small("raise"), small("reject")))
    assert simulate(THREE, mixed, "lor", engine=engine).rejected.tolist() == [False, True, False]
    run = start(engine, mixed)
    run.place(0)
    with pytest.raises(InputError, match="request 1 cannot run on replica 0"):
        run.place(0)
    run.place(1)
    assert run.decision == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": "chunked"},
        {"scheduler": "prefill_first"},
        {"scheduler": "vllm_v1"},
        {"scheduler": "vllm_v1", "max_model_len": 50},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_request_that_fits_nowhere_costs_nothing(
    settings: dict[str, Any], engine: EngineName
) -> None:
    tokens = np.array([10, MAX_TOKENS, 10])
    workload = Workload(THREE.arrived_at_s, tokens, THREE.output_tokens)
    cluster = Cluster((Replica(MODEL, num_blocks=5, oversize="reject", **settings),) * 2)
    usual = simulate(THREE, cluster, "lor", engine=engine)
    tracemalloc.start()
    outcome = simulate(workload, cluster, "lor", engine=engine)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.rejected.tolist() == [False, True, False]
    assert most_bytes < 50e6
    np.testing.assert_array_equal(outcome.finished_at_s, usual.finished_at_s)


@pytest.mark.parametrize("cluster", [TWO, Cluster((small("reject"), Replica(MODEL)))])
def test_masks_are_read_only(cluster: Cluster, engine: EngineName) -> None:
    run = start(engine, cluster)
    while not run.done:
        with pytest.raises(ValueError, match="read-only"):
            run.mask()[0] = False
        run.place(1)
    with pytest.raises(ValueError, match="read-only"):
        run.mask()[0] = False


def test_an_outcome_is_a_copy_of_its_instant(engine: EngineName) -> None:
    run = start(engine)
    before = run.outcome()
    run.place(1)
    after_one = run.outcome()
    run.place(0)
    run.place(0)
    assert before.replica.tolist() == [-1, -1, -1]
    assert after_one.replica.tolist() == [1, -1, -1]
    for outcome, unplaced in ((before, 3), (after_one, 2)):
        for times in (outcome.scheduled_at_s, outcome.first_token_at_s, outcome.finished_at_s):
            assert np.isnan(times[3 - unplaced :]).all()
            assert np.isfinite(times[: 3 - unplaced]).all()


def test_what_is_not_placed_yet_is_not_rejected(engine: EngineName) -> None:
    mixed = Cluster((small("reject"), small("reject")))
    run = start(engine, mixed)
    for placed, rejected in enumerate(([], [0], [0, 1], [0, 1, 0])):
        outcome = run.outcome()
        assert outcome.rejected.tolist() == [*map(bool, rejected), *[False] * (3 - placed)]
        for times in (outcome.scheduled_at_s, outcome.first_token_at_s, outcome.finished_at_s):
            assert np.isposinf(times).tolist() == outcome.rejected.tolist()
            assert np.isnan(times[placed:]).all()
        assert (outcome.replica[placed:] == -1).all()
        assert outcome.summary()["rejected"] == sum(rejected)
        if not run.done:
            run.place(0)
    replayed = start(engine, mixed)
    replayed.replay([0, 0, 0])
    assert replayed.outcome().rejected.tolist() == [False, True, False]


def test_a_time_that_a_request_has_not_reached_is_nan(engine: EngineName) -> None:
    # A batch takes 1.5 s: request 0 ends its prefill there, request 1 waits for that.
    slow = Cluster((Replica(FormulaBatchTime(1.5, 0, 0, 0, 0)),))
    run = start(engine, slow)
    run.place(0)
    run.place(0)
    outcome = run.outcome()
    assert run.now_s == 2.0
    np.testing.assert_array_equal(outcome.replica, [0, 0, -1])
    np.testing.assert_array_equal(outcome.scheduled_at_s, [0.0, 1.5, np.nan])
    np.testing.assert_array_equal(outcome.first_token_at_s, [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(outcome.finished_at_s, [np.nan, np.nan, np.nan])


class Constant(BatchTimeModel):
    """A model of one's own, which always answers the same."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def seconds(self, batch: BatchSums) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf, 0.0, 0, -1.0, None, "1", 1j])
def test_a_batch_time_model_must_answer_with_a_time(answer: Any) -> None:
    cluster = Cluster((Replica(Constant(answer)),))
    with pytest.raises(InputError) as error:
        simulate(THREE, cluster, "lor", engine="reference")
    assert str(error.value) == (
        f"Constant.seconds(batch) must be a finite number > 0, got {answer!r}"
    )


@pytest.mark.parametrize("answer", [1, 1.0, np.float32(1), np.int64(1)])
def test_any_number_is_a_time(answer: Any) -> None:
    outcome = simulate(THREE, Cluster((Replica(Constant(answer)),)), "lor", engine="reference")
    # 5 batches, the first at 0: the prefill and 4 decodes.
    assert outcome.finished_at_s[0] == 5.0


class NotAModel:
    """Has `seconds` and no base class."""

    def seconds(self, batch: BatchSums) -> float:
        return 0.5


def test_an_object_with_seconds_is_a_model() -> None:
    replica = Replica(NotAModel())  # type: ignore[arg-type]
    assert simulate(THREE, Cluster((replica,)), [0, 0, 0], engine="reference").e2e_s[0] == 2.5


WRONG_PARTS: list[tuple[Any, Any, str]] = [
    (THREE, [Replica(MODEL)], "cluster must be a Cluster, got .*; build one with Cluster"),
    (THREE, "a100-internlm-20b", "cluster must be a Cluster, got 'a100-internlm-20b'; .*profile"),
    (THREE, None, "cluster must be a Cluster, got None"),
    ("azure_conv", TWO, "workload must be a Workload, got 'azure_conv'; build one with"),
    (np.ones((3, 3)), TWO, "workload must be a Workload, got array"),
]


@pytest.mark.parametrize(("workload", "cluster", "sentence"), WRONG_PARTS, ids=range(5))
def test_a_run_needs_a_workload_and_a_cluster(
    workload: Any, cluster: Any, sentence: str, engine: EngineName
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        simulate(workload, cluster, "lor", engine=engine)
    assert "\n" not in str(error.value)


def test_half_way_and_done_agree_on_what_was_reached(engine: EngineName) -> None:
    rng = np.random.default_rng(3)
    n = 40
    workload = Workload(
        np.cumsum(rng.exponential(0.05, n)), rng.integers(1, 300, n), rng.integers(1, 40, n)
    )
    run = ENGINES[engine](workload, TWO)
    seen: list[npt.NDArray[np.float64]] = []
    for request in range(n):
        run.place(request % 2)
        seen.append(run.outcome().finished_at_s)
    done = run.outcome().finished_at_s
    for finished_at_s in seen:
        known = np.isfinite(finished_at_s)
        np.testing.assert_allclose(finished_at_s[known], done[known], rtol=1e-9)
