"""The rows of a router in service are those of a run in which the same happens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.gateway import deciding
from llmroute_gym.gateway.deciding import Arrival, Decider
from llmroute_gym.gateway.service import grows, signals_read
from llmroute_gym.ground.signals import AGING, OF_PREFIXES, SIGNAL_NAMES, Signal
from llmroute_gym.routers import Router, available, make
from llmroute_gym.routers.exported import ExportedPolicy
from llmroute_gym.routers.rule import Rule
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.ledger import TOLD
from llmroute_gym.sim.reference import ReferenceRun
from llmroute_gym.sim.reference.request import Request
from tests.routers.test_policy_file import policy_file
from tests.sim.strategies import Case, seeds, with_waiting
from tests.sim.vllm_cases import random_vllm_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")

THREE = Cluster.from_profile("a100-llama-2-7b", replicas=3)


class Log(list[Any]):
    """A list of the engine's that notes what is put into it, with its time."""

    def __init__(self, events: list[tuple[float, int, Request]], kind: int) -> None:
        super().__init__()
        self._events, self._kind = events, kind

    def append(self, request: Request) -> None:
        at_s = request.finished_at_s if self._kind else request.first_token_at_s
        self._events.append((at_s, self._kind, request))
        super().append(request)


class Logged(ReferenceRun):
    """A run whose engine's events are noted as they happen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[tuple[float, int, Request]] = []
        logs = self._first_tokens, self._completions = Log(self.events, 0), Log(self.events, 1)
        for process in self._replicas:
            process._first_tokens, process._completions = logs

    def arrival(self, block_tokens: int) -> Arrival:
        """The request at hand as a gateway would know it."""
        request = self._requests[self.request]
        full = request.prompt_tokens // block_tokens
        session, head = self.identities[self.request].astype(int).tolist()
        return Arrival(
            request.prompt_tokens,
            tuple(request.names.leading(full, block_tokens)[:full]),
            session,
            float(self.predicted_output_tokens[self.request]),
            head,
        )

    def published(self) -> list[list[float]]:
        signals = [process.engine_signals(self.now_s) for process in self._replicas]
        return [[one[AGING.index(signal)] for signal in TOLD["metrics"]] for one in signals]


def in_order(
    events: list[tuple[float, int, Request]], turn: dict[int, int]
) -> list[tuple[float, int, Request]]:
    """Returns events as they are told: first tokens of an instant in the order of sending."""
    places = [one[1] or turn[one[2].index] for one in events]
    order = sorted(range(len(events)), key=lambda i: (*events[i][:2], places[i]))
    return [events[index] for index in order]


def rows_of_both(case: Case, told: ObservationConfig) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Plays a case; returns the rows of the run and of a decider at each decision."""
    run = Logged(case.workload, case.cluster, **{**case.options, "observation": told})
    speeds = [one.speed for one in case.cluster]
    router = make("round_robin")
    # It reads no prefixes, and yet they are to be looked up.
    router.reads = frozenset(Signal) if told.prefix_view == "tree" else frozenset()  # type: ignore[attr-defined]
    block_tokens = case.cluster[0].block_size
    decider = Decider(
        router,
        speeds,
        told,
        np.random.default_rng(0),
        now_s=run.now_s,
        block_tokens=block_tokens,
    )
    turn: dict[int, int] = {}
    both = []
    while not run.done:
        events, run.events[:] = list(run.events), []
        for at_s, kind, request in in_order(events, turn):
            if kind:
                decider.ended(request.index, at_s, served=True)
            else:
                decider.first_token(request.index, at_s)
        if told.information == "metrics":
            for replica, (waiting, running, kv, batch_s, hits) in enumerate(run.published()):
                decider.read(replica, waiting, running, kv, hits, run.now_s, batch_time_s=batch_s)
        arrival = run.arrival(block_tokens)
        both.append((run.rows(), decider.rows(arrival, run.available(), run.now_s)))
        replica = int(case.assignment[run.request])
        turn[run.request] = run.decision
        decider.placed(run.request, arrival, replica, run.now_s)
        run.place(replica)
    return both


@pytest.mark.parametrize("information", ["router", "metrics"])
@seeds(100)
def test_rows_are_those_of_a_run_in_which_the_same_happens(seed: int, information: str) -> None:
    case = random_vllm_case(31_000_000 + seed)
    kinds = {(one.block_size, one.prefix_caching) for one in case.cluster}
    if case.start("reference")._fits is not None or len(kinds) > 1:
        return  # a gateway knows no limits, and one size of blocks
    if seed % 3 == 0:
        case = with_waiting(case, seed)
    if seed % 2:
        session = np.random.default_rng(seed).integers(0, 9, len(case.workload))
        case = case._replace(workload=replace(case.workload, session=session))
    told = replace(
        case.options["observation"],
        information=information,
        signal_interval_s=0.0,
        prefix_view="tree" if case.cluster[0].prefix_caching else "events",
        speed_hidden=seed % 5 == 0,
    )
    for in_run, in_service in rows_of_both(case, told):
        different = np.flatnonzero((in_run != in_service).any(0)).tolist()
        assert not different, [SIGNAL_NAMES[column] for column in different]


def served(router: Router, n_decisions: int = 300, **options: Any) -> Decider:
    """Serves random requests with a router, a few at a time."""
    rng = np.random.default_rng(1)
    information = options.pop("information", "metrics")
    told = ObservationConfig(information=information, signal_interval_s=1.0)
    decider = Decider(router, [1.0, 2.0, 1.0], told, np.random.default_rng(2), **options)
    for key in range(n_decisions):
        now_s = key / 10
        blocks = tuple(range(int(rng.integers(6))))
        arrival = Arrival(100, blocks, int(rng.integers(-1, 5)), 0.0, int(rng.integers(-1, 5)))
        allowed = rng.random(3) < 0.7
        allowed[rng.integers(3)] = True
        decider.read(key % 3, *rng.integers(0, 5, 2), *rng.random(2), at_s=now_s)
        replica = decider.decide(arrival, allowed, now_s)
        assert allowed[replica]
        decider.placed(key, arrival, replica, now_s)
        decider.first_token(key, now_s + 0.05)
        if key >= 5:
            decider.ended(key - 5, now_s + 0.05, served=True)
    assert decider.in_flight.sum() == 5
    return decider


@pytest.mark.parametrize("name", available())
def test_every_rule_is_served_or_says_why_not(name: str) -> None:
    router = make(name)
    if name == "oracle":
        with pytest.raises(InputError, match="'oracle' needs to know what only a simulator knows"):
            served(router)
    elif name == "llmd_predicted":
        with pytest.raises(InputError, match="learns while it serves from times per output token"):
            served(router)
    elif name == "latency_predictor":
        with pytest.raises(InputError, match="has to know what the replicas are like"):
            served(router)
        served(router, cluster=THREE)
    else:
        served(router)


@pytest.mark.parametrize("name", ["preble", "power_of_two", "sticky_least_loaded", "round_robin"])
def test_a_rule_is_served_for_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "LIFE", 64)
    router = make(name)
    served(router, 300)
    assert isinstance(router, Rule)
    assert len(router.memory) == len(router.empty_memory(3, 64))


def test_a_router_that_looks_nothing_up_keeps_no_blocks() -> None:
    assert not served(make("lor")).looks_prefixes_up
    assert not served(make("smg_veto:rule=smg_least_load")).looks_prefixes_up
    assert served(make("smg_veto:rule=llmd_default")).looks_prefixes_up
    for name, reads in (("lor", False), ("conditional_hash", True), ("preble", True)):
        assert served(make(name)).reads_prompts == reads
    assert not served(make("conditional_hash")).looks_prefixes_up


def test_a_policy_is_told_of_prefixes_only_if_they_differed_in_its_training() -> None:
    for column, told in (("cached_prefix", True), ("waiting", False)):
        columns = ObservationConfig(information="metrics", columns=[column, "speed"])
        policy = ExportedPolicy(policy_file(observation=columns))
        assert served(policy).looks_prefixes_up == told
    arrays = {**policy_file().arrays, "varied": np.array([False, True])}
    columns = ObservationConfig(information="router", columns=["cached_prefix", "speed"])
    policy = ExportedPolicy(policy_file(observation=columns, arrays=arrays))
    assert not served(policy).looks_prefixes_up


def test_a_policy_of_another_number_of_replicas_is_refused_at_the_start() -> None:
    arrays = {
        **{"score.weights": np.zeros((4, 8)), "score.bias": np.zeros(4)},
        **{name: np.ones(2) for name in ("shift", "factor", "varied")},
    }
    policy = ExportedPolicy(policy_file(kind="mlp", arrays=arrays))
    with pytest.raises(InputError, match="trained with 4 replicas and its network takes no other"):
        served(policy)


def test_a_rule_of_metrics_is_refused_without_them() -> None:
    with pytest.raises(InputError, match=r"engines' metrics, .* set scrape\.interval_s=1"):
        served(make("smg_least_load"), information="router")


@pytest.mark.parametrize("information", ["engine", "oracle"])
def test_a_policy_of_what_engines_do_not_publish_is_refused(information: str) -> None:
    router = make("lor")
    router.observation = ObservationConfig(information=information)
    mend = "or set policy.approximate=true" if information == "engine" else ""
    with pytest.raises(InputError, match=f"observation=router.*{mend}"):
        served(router)
    if information == "engine":
        decider = served(router, approximate=True)
        assert decider.told.information == "metrics"


def test_a_policy_of_predicted_lengths_is_refused_where_nobody_predicts() -> None:
    router = make("estimated_latency:predicted_output_sigma=0.5")
    with pytest.raises(InputError, match=r"observation\.predicted_output_sigma=0\.5, which nobody"):
        served(router)
    assert served(router, approximate=True).told.predicted_output_sigma is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"speeds": []}, "speeds must be"),
        ({"speeds": [1.0, 0.0]}, "speeds must be numbers above 0"),
        (
            {"observation": ObservationConfig()},
            "a gateway tells router or metrics, got information=engine",
        ),
        ({"block_tokens": 0}, "block_tokens"),
        (
            {"cluster": Cluster.from_profile("a100-llama-2-7b", replicas=3)},
            "one replica per backend, 2, got 3",
        ),
    ],
)
def test_wrong_arguments_end_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    right = {"speeds": [1.0, 2.0], "observation": ObservationConfig(information="router")}
    with pytest.raises(InputError, match=sentence):
        Decider(make("lor"), rng=np.random.default_rng(0), **{**right, **changes})


def test_an_answer_that_may_not_be_chosen_is_an_error() -> None:
    class Wrong(Router):
        name = "wrong"

        def route(self, rows: np.ndarray, mask: np.ndarray) -> int:
            return 1

    told = ObservationConfig(information="router")
    decider = Decider(Wrong(), [1.0, 1.0], told, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"'wrong' chose 1; it may choose \[0\]"):
        decider.decide(Arrival(5), np.array([True, False]), 0.0)
    with pytest.raises(FloatingPointError):
        decider.decide(Arrival(5, predicted_output_tokens=np.nan), np.array([True, True]), 0.0)


def test_a_request_that_goes_elsewhere_has_arrived_once() -> None:
    told = ObservationConfig(information="router")
    decider = Decider(make("lor"), [1.0, 1.0], told, np.random.default_rng(0))
    both = np.array([True, True])
    decider.placed(1, Arrival(100), 0, 10.0)
    decider.withdrawn(1, 12.0)
    assert decider.in_flight.tolist() == [0, 0]
    decider.placed(1, Arrival(100), 1, 12.0)
    row = decider.rows(Arrival(7), both, 15.0)[1]
    assert row[Signal.SINCE_LAST_ARRIVAL_S] == 5.0
    assert row[Signal.OLDEST_WAITING_S] == 3.0
    decider.first_token(1, 15.0)
    decider.ended(1, 20.0, served=True)
    row = decider.rows(Arrival(7), both, 20.0)[1]
    assert row[Signal.TTFT_S] == pytest.approx(3.0)
    assert row[Signal.E2E_S] == pytest.approx(10.0)
    for key in (1, 2):
        decider.ended(key, 21.0, served=True)
    assert decider.in_flight.tolist() == [0, 0]


def test_blocks_of_a_prompt_may_have_a_size_of_their_own() -> None:
    told = ObservationConfig(information="router", prefix_view="tree")
    decider = Decider(make("vllm_router_cache_aware"), [1.0, 1.0], told, np.random.default_rng(0))
    first = Arrival(101, (1, 2, 3, 4), block_tokens=25.25)
    decider.placed(0, first, 1, 0.0)
    both = np.array([True, True])
    seen = decider.rows(Arrival(101, (1, 2, 3, 4), block_tokens=25.25), both, 1.0)
    assert seen[:, Signal.CACHED_PREFIX].tolist() == [0.0, 75 / 101]
    seen = decider.rows(Arrival(404, (1, 2, 9, 4), block_tokens=100.5), both, 1.0)
    assert seen[:, Signal.CACHED_PREFIX].tolist() == [0.0, 201 / 404]
    assert seen[:, Signal.VIEW_TOKENS].tolist() == [0, 64]


def test_the_page_names_the_rules_that_differ_in_service() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for name in available():
        router = make(name)
        told = router.observation
        growing = grows(router, 3, 1000) if name != "latency_predictor" else False
        looks_up = not signals_read(router).isdisjoint(OF_PREFIXES)
        events = told is not None and told.prefix_view == "events" and looks_up
        taught = len(router.lessons(10**6)) > 0
        if growing or events or taught or router.upper_bound:
            assert f"`{name}`" in page, name
    assert f"{deciding.LIFE:,}" in page
