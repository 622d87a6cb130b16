"""A rule serves a run in one kernel call as it does when it is asked decision by decision."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import LeastPending
from llmroute_gym.routers.blocks import lowest, lowest_at_random
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import Address, decision
from llmroute_gym.routers.kernels import serve_by_rule
from llmroute_gym.routers.rule import Rule
from llmroute_gym.routers.simulation import route_all, simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Outcome, Replica, Workload
from llmroute_gym.sim.compiled import CompiledRun, caches
from llmroute_gym.sim.compiled.caches import Caches
from llmroute_gym.sim.run import Run
from tests.sim.strategies import Case, random_case, seeds, with_waiting
from tests.sim.test_engines_agree import COUNTS, TIMES
from tests.sim.vllm_cases import random_vllm_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_WAITING, _RUNNING = int(Signal.WAITING), int(Signal.RUNNING)
_CACHED, _PROMPT = int(Signal.CACHED_PREFIX), int(Signal.PROMPT_TOKENS)
_PENDING, _FITS = int(Signal.PENDING_PROMPT_TOKENS), int(Signal.FITS)


@decision
def _weighed(rows: Array, mask: Mask, draws: Array, constants: Array, memory: Array) -> int:
    best, least = -1, 0.0
    for r in range(len(mask)):
        score = constants[0] * rows[r, _WAITING] + rows[r, _RUNNING] + rows[r, _PENDING] / 64.0
        score -= constants[1] * rows[r, _CACHED] * rows[r, _PROMPT] + rows[r, _FITS]
        if mask[r] and (best < 0 or score < least):
            best, least = r, score
    return best


@decision
def _drawn(rows: Array, mask: Mask, draws: Array, constants: Array, memory: Array) -> int:
    if draws[0] < 0.5:
        for r in range(len(mask)):
            mask[r] = mask[r] and (draws[0] < 0.25 or rows[r, _WAITING] < 2)
        if not mask.any():
            return -1
    return lowest_at_random(rows[:, _WAITING], mask, draws[1])


@decision
def _remembered(rows: Array, mask: Mask, draws: Array, constants: Array, memory: Array) -> int:
    chosen = lowest(memory, mask)
    memory[chosen] += rows[chosen, _PROMPT]
    return chosen


@dataclass
class Weighed(Rule):
    """By a score of what is the same in both engines to the bit."""

    name = "weighed"
    decide = _weighed
    waiting: float = constant(4.0, 0.0, 10.0)
    cached: float = constant(0.5, 0.0, 10.0)


@dataclass
class Drawn(Rule):
    """At random; now and then it narrows its mask to nothing and answers -1."""

    name = "drawn"
    decide = _drawn
    per_request = 2


@dataclass
class Remembered(Rule):
    """To where the fewest prompt tokens went so far."""

    name = "remembered"
    decide = _remembered

    def empty_memory(self, n_replicas: int, n_requests: int) -> Array:
        return np.zeros(n_replicas)


RULES: tuple[Callable[[], Rule], ...] = (Weighed, Drawn, Remembered)


def case_of(seed: int) -> Case:
    case = (random_vllm_case if seed % 2 else random_case)(30_000_000 + seed)
    told = replace(case.options["observation"], gateways=1 + seed % 5 % 3)
    case = case._replace(options={**case.options, "observation": told})
    return with_waiting(case, seed) if seed % 4 > 1 else case


def served(start: Callable[[], Run], serve: Any, rule: Rule) -> tuple[Run, str]:
    """Serves a run with a third of the replicas closed; returns it and its error."""
    run = start()
    for replica in range(1, len(run.cluster), 3):
        run.set_available(replica, False)
    try:
        serve(run, rule, np.random.default_rng(3))
    except InputError as error:
        return run, str(error)
    return run, ""


def assert_same_bits(one: Outcome, other: Outcome) -> None:
    for name in (*COUNTS, *TIMES):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@seeds(160)
def test_one_call_is_the_same_as_a_call_per_decision(seed: int) -> None:
    case, rule = case_of(seed), RULES[seed % 3]()

    def start() -> Run:
        return case.start("compiled")

    kernel, failed = served(start, serve_by_rule, rule)
    steps, expected = served(start, route_all, rule)
    assert failed == expected
    assert (kernel.decision, kernel.request) == (steps.decision, steps.request)
    assert (kernel.now_s, kernel.done) == (steps.now_s, steps.done)
    assert_same_bits(kernel.outcome(), steps.outcome())
    if not failed:
        assert kernel.done


@seeds(160)
def test_a_rule_chooses_the_same_on_both_engines(seed: int) -> None:
    case, rule = case_of(seed), (Weighed, Remembered)[seed % 2]()
    rule.observation = case.options["observation"]
    both = [
        simulate(case.workload, case.cluster, rule, engine=engine, seed=seed)
        for engine in ("reference", "compiled")
    ]
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(both[1], name), getattr(both[0], name), err_msg=name)


def test_a_rule_is_never_asked_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(_weighed), "__call__", None)
    assert serve_by_rule(case_of(0).start("compiled"), Weighed(), np.random.default_rng(0))


def test_a_subclass_that_routes_otherwise_is_asked() -> None:
    class Own(Weighed):
        def route(self, rows: Array, mask: Mask) -> int:
            return int(np.flatnonzero(mask)[-1])

    run = case_of(0).start("compiled")
    assert not serve_by_rule(run, Own(), np.random.default_rng(0))
    assert run.decision == 0


def test_parts_of_a_run_make_the_whole() -> None:
    case = random_vllm_case(5)
    whole, parts = case.start("compiled"), case.start("compiled")
    serve_by_rule(whole, Remembered(), np.random.default_rng(0))
    assert isinstance(parts, CompiledRun)
    draws, memory = np.zeros((1, len(case.workload), 0)), np.zeros((1, len(case.cluster)))
    for until in (0, 1, 4, 4, None):
        answer = parts.serve_by(Address(_remembered), draws, np.zeros(0), memory, until=until)
        assert answer is None
        assert parts.decision == (len(case.workload) if until is None else until)
    assert_same_bits(parts.outcome(), whole.outcome())


def test_gateways_take_turns_with_memories_of_their_own() -> None:
    model = FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)
    run = CompiledRun(
        Workload(np.arange(12.0), np.full(12, 9), np.full(12, 2)), Cluster((Replica(model),) * 3)
    )
    draws, memory = np.zeros((2, 12, 0)), np.zeros((2, 3))
    assert run.serve_by(Address(_remembered), draws, np.zeros(0), memory) is None
    assert run.outcome().replica.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(memory, np.full((2, 3), 18.0))


@decision
def _constant(rows: Array, mask: Mask, draws: Array, constants: Array, memory: Array) -> int:
    return int(constants[0])


@dataclass
class Constant(Rule):
    """Always the same index, allowed or not."""

    name = "constant"
    decide = _constant
    replica: float = constant(0.0, -10.0, 10.0)


@pytest.mark.parametrize("replica", [-1, 2, 7])
def test_a_wrong_answer_is_the_error_of_python(replica: int) -> None:
    model = FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)
    small = Replica(model, num_blocks=5)
    mixed = Cluster((Replica(model, num_blocks=100), Replica(model, num_blocks=100), small))
    workload = Workload(np.array([0.0, 1.0, 2.0]), np.array([10, 150, 10]), np.array([5, 5, 5]))
    run = CompiledRun(workload, mixed)
    rule = Constant(replica)
    text = rf"chose replica {replica} for request {int(replica == 2)}; it may choose \[0, 1"
    with pytest.raises(InputError, match=text):
        serve_by_rule(run, rule, np.random.default_rng(0))
    with pytest.raises(InputError, match=text):
        route_all(CompiledRun(workload, mixed), rule, np.random.default_rng(0))
    assert run.decision == run.request == int(replica == 2)


def test_what_a_rule_is_told_is_not_what_the_kernels_of_some_assume() -> None:
    rng = np.random.default_rng(0)
    workload = Workload(
        np.cumsum(rng.exponential(0.02, 200)), rng.integers(1, 900, 200), rng.integers(1, 40, 200)
    )
    cluster = Cluster((Replica(FormulaBatchTime(c0=0.01, c1=6e-5, n0=60, c2=3e-7, c3=5e-9)),) * 4)
    router = LeastPending()
    router.observation = replace(CompiledRun(workload, cluster).observation, signal_interval_s=1.0)
    compiled = simulate(workload, cluster, router)
    reference = simulate(workload, cluster, router, engine="reference")
    np.testing.assert_array_equal(compiled.replica, reference.replica)
    assert (compiled.replica != simulate(workload, cluster, "lor_pending").replica).any()


def test_a_memory_starts_again_where_room_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_vllm_case(140, n_requests=60)
    expected = case.start("compiled")
    serve_by_rule(expected, Remembered(), np.random.default_rng(0))
    given: list[int] = []
    add = Caches.add_room

    def noted(self: Caches, memory: Any, index: int) -> None:
        given.append(index)
        add(self, memory, index)

    monkeypatch.setattr(Caches, "add_room", noted)
    monkeypatch.setattr(caches, "FEWEST_NODES", 4)
    monkeypatch.setattr(caches, "MOST_NODES", 4)
    run, rule = case.start("compiled"), Remembered()
    serve_by_rule(run, rule, np.random.default_rng(0))
    assert given
    assert rule.memory.sum() == case.workload.prompt_tokens.sum()
    assert_same_bits(run.outcome(), expected.outcome())
