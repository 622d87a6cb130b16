"""One call from a workload to an outcome."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmroute_gym import Cluster, InputError, Replica, Workload, simulate
from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers import Router, available, make
from llmroute_gym.sim import FormulaBatchTime, Signal
from llmroute_gym.sim.engines import EngineName

MODEL = FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)
THREE = Cluster((Replica(MODEL),) * 3)


def workload(n: int = 60) -> Workload:
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.05, n))
    return Workload(arrived_at_s, rng.integers(1, 300, n), rng.integers(1, 40, n))


class Fixed(Router):
    """Always the same index, allowed or not."""

    name = "fixed"

    def __init__(self, replica: Any) -> None:
        self.replica = replica

    def route(self, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> Any:
        return self.replica


class Recorder(Router):
    """Round robin that keeps what it is shown."""

    name = "recorder"

    def __init__(self) -> None:
        self.resets: list[tuple[int, int]] = []
        self.rows: list[npt.NDArray[np.float64]] = []

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        self.resets.append((n_replicas, n_requests))

    def route(self, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> int:
        assert mask.all()
        self.rows.append(rows)
        return (len(self.rows) - 1) % len(rows)


@pytest.mark.parametrize("name", available())
def test_a_name_is_the_router_of_that_name(name: str, engine: EngineName) -> None:
    by_name = simulate(workload(), THREE, name, engine=engine, seed=5)
    by_object = simulate(workload(), THREE, make(name), engine=engine, seed=5)
    np.testing.assert_array_equal(by_name.replica, by_object.replica)
    np.testing.assert_allclose(by_name.finished_at_s, by_object.finished_at_s, rtol=1e-9)


@pytest.mark.parametrize("name", available())
def test_replaying_a_routers_choices_gives_its_outcome(name: str, engine: EngineName) -> None:
    routed = simulate(workload(), THREE, name, engine=engine, seed=5)
    replayed = simulate(workload(), THREE, routed.replica, engine=engine)
    as_list = simulate(workload(), THREE, routed.replica.tolist(), engine=engine)
    for one in (replayed, as_list):
        np.testing.assert_array_equal(one.replica, routed.replica)
        np.testing.assert_allclose(one.finished_at_s, routed.finished_at_s, rtol=1e-9)


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_the_seed_decides_the_draws(name: str, engine: EngineName) -> None:
    runs = [simulate(workload(), THREE, name, engine=engine, seed=s).replica for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_round_robin_is_i_mod_n(engine: EngineName) -> None:
    outcome = simulate(workload(), THREE, "round_robin", engine=engine)
    np.testing.assert_array_equal(outcome.replica, np.arange(60) % 3)


def test_a_router_of_ones_own_sees_each_request_once(engine: EngineName) -> None:
    router = Recorder()
    outcome = simulate(workload(), THREE, router, engine=engine)
    assert router.resets == [(3, 60)]
    shown = [rows[0, Signal.PROMPT_TOKENS] for rows in router.rows]
    np.testing.assert_array_equal(shown, workload().prompt_tokens)
    np.testing.assert_array_equal(outcome.replica, np.arange(60) % 3)


WRONG: list[tuple[Any, str]] = [
    ("lro", r"unknown router 'lro'; available: .*; did you mean 'lor'"),
    (np.zeros(59, dtype=np.int64), r"shape \(60,\); got shape \(59,\)"),
    (np.zeros((60, 1), dtype=np.int64), r"shape \(60,\); got shape \(60, 1\)"),
    (np.zeros(60), "an assignment needs integers, got dtype float64"),
    (np.full(60, 3), "request 0 is assigned to replica 3; the cluster has replicas 0 to 2"),
    (np.r_[np.zeros(59, dtype=np.int64), -1], "request 59 is assigned to replica -1"),
    (np.zeros(60, dtype=np.bool_), "an assignment needs integers, got dtype bool"),
    *(
        (wrong, "router must be a name, a Router or one replica per request")
        for wrong in (None, 5, max, SimpleNamespace(route=max))
    ),
    (Fixed(3), r"chose replica 3 for request 0; it may choose \[0, 1, 2\]"),
    (Fixed(-1), r"chose replica -1 for request 0; it may choose \[0, 1, 2\]"),
    *(
        (Fixed(answer), r"chose replica .* for request 0; it may choose \[0, 1, 2\]")
        for answer in (None, "0", 0.0, np.float64(1), True, np.True_, [0], np.array([0]), object())
    ),
    ([[0], [0, 1]], r"one replica per request, shape \(60,\); got \[\[0\], \[0, 1\]\]"),
]


@pytest.mark.parametrize(("router", "sentence"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_router_is_one_sentence(router: Any, sentence: str, engine: EngineName) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        simulate(workload(), THREE, router, engine=engine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["compild", ["compiled"]])
def test_an_unknown_engine_is_one_sentence(name: Any) -> None:
    with pytest.raises(InputError, match=r"unknown engine .*compil.*; .* did you mean 'compiled'"):
        simulate(workload(), THREE, "lor", engine=name)


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, np.array([1, 2])])
@pytest.mark.parametrize("router", ["random", [0] * 60])
def test_a_seed_is_an_integer_from_zero(seed: Any, router: Any, engine: EngineName) -> None:
    with pytest.raises(InputError, match="seed must be an integer >= 0, got "):
        simulate(workload(), THREE, router, engine=engine, seed=seed)


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16])
def test_a_router_may_answer_with_integers_of_numpy(kind: Any, engine: EngineName) -> None:
    outcome = simulate(workload(), THREE, Fixed(kind(2)), engine=engine)
    assert (outcome.replica == 2).all()


def one_long_request() -> Workload:
    """Three requests, the second of which needs 10 blocks of 16 tokens."""
    return Workload(np.array([0.0, 1.0, 2.0]), np.array([10, 150, 10]), np.array([5, 5, 5]))


@pytest.mark.parametrize("router", ["lor", "round_robin", [0, 1, 0]])
def test_a_request_that_fits_nowhere_is_an_error_at_once(router: Any, engine: EngineName) -> None:
    small = Cluster((Replica(MODEL, num_blocks=5),) * 2)
    with pytest.raises(
        InputError, match=r"request 1 cannot run on replica \d: .*oversize='reject'"
    ):
        simulate(one_long_request(), small, router, engine=engine)


def test_a_prompt_beyond_the_prefill_batch_names_the_limit(engine: EngineName) -> None:
    replica = Replica(MODEL, scheduler="prefill_first", max_batched_tokens=100)
    with pytest.raises(InputError, match=r"150 prompt tokens exceed max_batched_tokens \(100\)"):
        simulate(one_long_request(), Cluster((replica,)), "lor", engine=engine)


@pytest.mark.parametrize("router", ["lor", [0, 1, 0]])
def test_a_rejected_request_is_in_the_outcome(router: Any, engine: EngineName) -> None:
    small = Cluster((Replica(MODEL, num_blocks=5, oversize="reject"),) * 2)
    outcome = simulate(one_long_request(), small, router, engine=engine)
    assert outcome.rejected.tolist() == [False, True, False]
    assert outcome.replica[1] == -1
    assert outcome.e2e_s[1] == outcome.ttft_s[1] == outcome.queue_s[1] == np.inf
    assert np.isfinite(outcome.e2e_s[[0, 2]]).all()
    assert outcome.summary()["rejected"] == 1
    assert outcome.summary()["e2e_p99_s"] == np.inf


@pytest.mark.parametrize("name", available())
def test_rules_keep_to_the_replicas_that_can_hold_a_request(name: str, engine: EngineName) -> None:
    mixed = Cluster((Replica(MODEL, num_blocks=5), Replica(MODEL, num_blocks=100)))
    outcome = simulate(one_long_request(), mixed, name, engine=engine, seed=0)
    assert outcome.replica[1] == 1
    assert not outcome.rejected.any()


def test_placing_a_request_where_it_does_not_fit_is_an_error(engine: EngineName) -> None:
    mixed = Cluster((Replica(MODEL, num_blocks=5), Replica(MODEL, num_blocks=100)))
    with pytest.raises(InputError, match="request 1 cannot run on replica 0"):
        simulate(one_long_request(), mixed, [0, 0, 0], engine=engine)
    with pytest.raises(InputError, match=r"chose replica 0 for request 1; it may choose \[1\]"):
        simulate(one_long_request(), mixed, Fixed(0), engine=engine)


def test_a_workload_is_not_changed_by_its_run(engine: EngineName) -> None:
    requests = workload()
    before = [a.copy() for a in (requests.arrived_at_s, requests.prompt_tokens)]
    first = simulate(requests, THREE, "lor", engine=engine)
    second = simulate(requests, THREE, "lor", engine=engine)
    np.testing.assert_array_equal(first.finished_at_s, second.finished_at_s)
    np.testing.assert_array_equal(requests.arrived_at_s, before[0])
    np.testing.assert_array_equal(requests.prompt_tokens, before[1])


def test_one_request_on_one_replica(engine: EngineName) -> None:
    alone = Workload(np.array([4.0]), np.array([100]), np.array([1]))
    outcome = simulate(alone, Cluster((Replica(MODEL),)), "lor", engine=engine)
    assert outcome.e2e_s[0] == pytest.approx(0.01 + 1e-4 * 100, rel=1e-9)
    assert outcome.summary()["requests"] == 1


class CountsItself(Router):
    """Cyclic, starting anywhere; a memory and a draw of its own."""

    name = "counts_itself"

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        self.next = int(rng.integers(n_replicas))
        self.n = n_replicas

    def route(self, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> int:
        self.next = (self.next + 1) % self.n
        return self.next


@pytest.mark.parametrize("gateways", [1, 2, 3])
def test_each_gateway_has_a_memory_and_draws_of_its_own(gateways: int, engine: EngineName) -> None:
    router, told = CountsItself(), ObservationConfig(gateways=gateways)
    outcome = simulate(workload(), THREE, router, engine=engine, seed=1, observation=told)
    rng = np.random.default_rng(1)
    rng.spawn(1)  # guesses of output lengths
    starts = [int(own.integers(3)) for own in (rng.spawn(gateways) if gateways > 1 else [rng])]
    expected = [(starts[i % gateways] + i // gateways + 1) % 3 for i in range(60)]
    assert outcome.replica.tolist() == expected
    again = simulate(workload(), THREE, router, engine=engine, seed=1, observation=told)
    np.testing.assert_array_equal(again.replica, outcome.replica)


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize(
    "told",
    [
        ObservationConfig(gateways=2),
        ObservationConfig(information="metrics", signal_interval_s=1.0),
        ObservationConfig(information="router", speed_hidden=True),
    ],
)
def test_engines_agree_whatever_a_rule_is_told(name: str, told: ObservationConfig) -> None:
    compiled, reference = (
        simulate(workload(), THREE, name, engine=engine, seed=5, observation=told)
        for engine in ("compiled", "reference")
    )
    np.testing.assert_array_equal(compiled.replica, reference.replica)


def test_what_is_told_replaces_what_a_router_asks_for(engine: EngineName) -> None:
    router = Recorder()
    router.observation = ObservationConfig(information="oracle")
    told = ObservationConfig(information="router")
    for observation, shown in ((None, True), (told, False)):
        router.rows.clear()
        simulate(workload(), THREE, router, engine=engine, observation=observation)
        assert np.array(router.rows)[..., Signal.REMAINING_TOKENS].any() == shown


@pytest.mark.parametrize("wrong", ["metrics", {"gateways": 2}])
def test_wrong_observations_are_one_sentence(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"observation must be an ObservationConfig, got .*write"):
        simulate(workload(), THREE, "lor", observation=wrong)
    with pytest.raises(InputError, match=r"observation\.gateways must be >= 1, got 0"):
        simulate(workload(), THREE, "lor", observation=ObservationConfig(gateways=0))
