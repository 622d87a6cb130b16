"""The upper bound: what it foresees is what happens."""

from itertools import product

import numpy as np
import pytest

from llmroute_gym import Cluster, InputError, Replica, Workload, simulate
from llmroute_gym.config import CollectDemosConfig
from llmroute_gym.demos.collection import collect
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers import Oracle, make
from llmroute_gym.routers.gateways import Gateways
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.engines import ENGINES, EngineName
from tests.sim.strategies import with_waiting
from tests.sim.vllm_cases import random_vllm_case

SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
"""Every batch takes a second."""
MODEL = FormulaBatchTime(c0=0.01, c1=6e-5, n0=60, c2=3e-7, c3=5e-9)
MIXED = Cluster(tuple(Replica(MODEL, num_blocks=4000, speed=speed) for speed in (2, 1, 0.5)))


def workload(n: int = 80, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    arrived_at_s = np.cumsum(rng.exponential(0.04, n))
    return Workload(arrived_at_s, rng.integers(1, 900, n), rng.integers(1, 200, n))


def test_it_takes_the_replica_to_whose_latencies_it_adds_least(engine: EngineName) -> None:
    """One request at a time: the second one waits 9 s where a long one runs, 1 s where a short one.

    Request 0 (10 tokens) and 1 (2 tokens) go to 0 and 1. At 0.5 s request 2, of 3 tokens, would
    add 9.5 + 3 s on replica 0 and 1.5 + 3 s on replica 1.
    """
    two = Cluster((Replica(SECOND, max_batch=1),) * 2)
    requests = Workload([0.0, 0.0, 0.5], [1, 1, 1], [10, 2, 3])
    outcome = simulate(requests, two, "oracle", engine=engine)
    assert outcome.replica.tolist() == [0, 1, 1]
    assert outcome.e2e_s.tolist() == [10.0, 2.0, 4.5]


def test_it_knows_the_output_lengths_that_no_rule_knows() -> None:
    """As many requests on both, of equal prompts, and the long output is on replica 0 or 1."""
    two = Cluster((Replica(SECOND, max_batch=1),) * 2)
    for outputs, chosen in (([9, 2, 1], 1), ([2, 9, 1], 0)):
        requests = Workload([0.0, 0.0, 0.5], [1, 1, 1], outputs)
        assert simulate(requests, two, "oracle").replica[2] == chosen
        assert simulate(requests, two, "lor").replica[2] == 0


def test_it_counts_the_delay_of_those_that_are_there() -> None:
    """Where batches take longer by what joins them, an idle slow replica may add less."""
    wide = FormulaBatchTime(0.1, 0, 0, 0, 0, 1.0)
    two = Cluster((Replica(wide), Replica(wide, speed=0.6)))
    requests = Workload([0.0, 3.0], [1, 1], [40, 4])
    outcome = simulate(requests, two, "oracle")
    together = simulate(requests, two, [0, 0])
    assert together.e2e_s[1] < outcome.e2e_s[1] * 1.3
    assert outcome.replica.tolist() == [0, 1]
    assert outcome.e2e_s.sum() < together.e2e_s.sum()


def test_equal_replicas_go_to_the_lowest_index() -> None:
    requests = Workload([0.0, 100.0, 200.0], [5, 5, 5], [3, 3, 3])
    assert simulate(requests, Cluster((Replica(MODEL),) * 3), "oracle").replica.tolist() == [0] * 3


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_the_rules_on_mixed_speeds(seed: int) -> None:
    requests = workload(200, seed)
    bound = simulate(requests, MIXED, "oracle").e2e_s.mean()
    for rule in ("lor", "speed_lor", "jsq", "power_of_two", "least_tokens"):
        assert bound < simulate(requests, MIXED, rule, seed=0).e2e_s.mean()


class Foreseen(Oracle):
    """Keeps the latencies, summed over replicas, that it foresees at each decision."""

    def __init__(self) -> None:
        super().__init__()
        self.totals_s: list[float] = []
        self.lost_s: list[float] = []

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        before = [ahead._end.total_s if ahead._end else np.nan for ahead in self._replicas]
        chosen = super().route(rows, mask)
        after = [ahead._end.total_s if ahead._end else np.nan for ahead in self._replicas]
        # What it drops of an idle replica's past is over and done.
        self.lost_s.append(sum(before) + (after[chosen] - before[chosen]) - sum(after))
        self.totals_s.append(sum(after) + sum(self.lost_s))
        return chosen


def test_what_it_foresees_is_what_happens_if_nothing_follows(engine: EngineName) -> None:
    requests = workload(40)
    for n in (1, 7, 40):
        oracle = Foreseen()
        outcome = simulate(requests.slice(0, n), MIXED, oracle, engine=engine)
        assert oracle.totals_s[-1] == pytest.approx(outcome.e2e_s.sum(), rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_it_foresees_prefix_caches(seed: int) -> None:
    """Of the replicas for the last request, the one it chooses has the least sum of latencies."""
    case = random_vllm_case(seed, n_requests=25)
    outcome = simulate(case.workload, case.cluster, "oracle")
    if outcome.rejected.any() or case.workload.after is not None:
        pytest.skip("the sum is not finite, or not one of this order")
    last = len(case.workload) - 1
    sums = {}
    for replica in range(len(case.cluster)):
        assignment = outcome.replica.copy()
        assignment[last] = replica
        try:
            sums[replica] = simulate(case.workload, case.cluster, assignment).e2e_s.sum()
        except InputError:
            continue  # it does not fit there
    assert sums[int(outcome.replica[last])] <= min(sums.values()) * (1 + 1e-8)


def test_a_greedy_bound_is_near_the_best_of_all_assignments() -> None:
    requests = workload(6)
    best = min(
        simulate(requests, MIXED, list(one)).e2e_s.sum() for one in product(range(3), repeat=6)
    )
    assert best <= simulate(requests, MIXED, "oracle").e2e_s.sum() < 1.1 * best


def test_it_sees_what_others_placed(engine: EngineName) -> None:
    run = ENGINES[engine](workload(30), Cluster((Replica(MODEL),) * 2))
    oracle = make("oracle")
    Gateways(run, oracle, np.random.default_rng(0))
    for _ in range(10):
        run.place(0)
    assert oracle.route(run.rows(), run.mask()) == 1


def test_it_serves_requests_that_wait_for_others(engine: EngineName) -> None:
    n = 12
    after = np.arange(n) - 3
    after[:3] = -1
    rng = np.random.default_rng(0)
    chats = Workload(
        np.arange(n) * 0.01,
        rng.integers(1, 900, n),
        rng.integers(1, 99, n),
        after=after,
        gap_s=np.full(n, 0.5),
    )
    outcome = simulate(chats, MIXED, "oracle", engine=engine)
    assert np.isfinite(outcome.e2e_s).all()
    assert outcome.e2e_s.mean() <= simulate(chats, MIXED, "lor").e2e_s.mean()


def test_a_request_that_fits_nowhere_is_rejected() -> None:
    small = Cluster((Replica(MODEL, num_blocks=5, oversize="reject"),) * 2)
    outcome = simulate(Workload([0.0, 0.1, 0.2], [10, 900, 10], [5, 5, 5]), small, "oracle")
    assert outcome.rejected.tolist() == [False, True, False]


def test_it_is_marked_as_a_bound_and_needs_a_run() -> None:
    assert Oracle.upper_bound
    assert not make("lor").upper_bound
    oracle = make("oracle")
    oracle.reset(2, 5, np.random.default_rng(0))
    with pytest.raises(InputError, match="router 'oracle' knows no run to look ahead in; use it"):
        oracle.route(np.zeros((2, 40)), np.ones(2, dtype=np.bool_))


def test_it_gives_demonstrations_also_where_placements_are_disturbed() -> None:
    settings = CollectDemosConfig(
        policies=["oracle"],
        decisions=30,
        decisions_per_episode=10,
        requests_per_episode=40,
        burst=8,
        workers=1,
    )
    assert set(collect(settings.validate()).router) == {"oracle"}


def test_a_prompt_may_repeat_an_output_of_a_request_that_comes_later() -> None:
    case = with_waiting(random_vllm_case(12927), 12927)
    assert case.workload.after is not None
    replicas = [
        simulate(case.workload, case.cluster, "oracle", seed=0, engine=engine).replica.tolist()
        for engine in ("compiled", "reference")
    ]
    assert replicas[0] == replicas[1]
