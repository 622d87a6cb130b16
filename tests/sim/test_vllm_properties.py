"""What holds for every run of `vllm_v1`, on random cases."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Outcome, Signal
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.replica import Cluster
from tests.sim.monitor import watched_schedulers
from tests.sim.strategies import Case, seeds
from tests.sim.test_engines_agree import TIMES
from tests.sim.vllm_cases import random_vllm_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")


def replayed(case: Case, engine: EngineName = "reference") -> Outcome:
    return simulate(case.workload, case.cluster, case.assignment, engine=engine)


@seeds(100)
def test_memory_and_tokens_are_conserved(seed: int) -> None:
    case = random_vllm_case(seed)
    with watched_schedulers() as logs:  # checks blocks and limits at each batch
        outcome = replayed(case)
    for index, log in enumerate(logs):
        assert log.final_blocks == 0
        for request in np.flatnonzero(outcome.replica == index).tolist():
            preemptions, cached = (
                int(getattr(outcome, name)[request]) for name in ("preemptions", "cached_tokens")
            )
            assert log.restarts.count(request) == preemptions
            assert log.admissions.count(request) == preemptions + 1
            # The last output token needs no KV; all others are computed or found.
            needed = int(outcome.prompt_tokens[request] + outcome.output_tokens[request]) - 1
            found = needed - log.tokens_kept[request]
            if preemptions:
                assert 0 <= found <= int(outcome.recached_tokens[request])
            else:
                assert found == cached
            assert 0 <= cached < outcome.prompt_tokens[request]
            assert cached % case.cluster[index].block_size == 0
        if case.cluster[index].scheduler == "vllm_v1":
            first_admissions = list(dict.fromkeys(log.admissions))
            assert first_admissions == sorted(first_admissions)


@seeds(100)
def test_a_cache_that_finds_nothing_changes_nothing(seed: int) -> None:
    case = random_vllm_case(10_000 + seed)
    case = case._replace(workload=replace(case.workload, content=None))
    outcomes = []
    for caching in (True, False):
        replicas = [
            replace(one, prefix_caching=caching) if one.scheduler == "vllm_v1" else one
            for one in case.cluster
        ]
        outcomes.append(replayed(case._replace(cluster=Cluster(tuple(replicas)))))
    with_cache, without = outcomes
    assert not with_cache.cached_tokens.any()
    assert not without.recached_tokens.any()
    # A request that comes back finds its own blocks.
    if not with_cache.recached_tokens.any():
        for name in TIMES:
            np.testing.assert_array_equal(getattr(with_cache, name), getattr(without, name))


@seeds(100)
def test_an_idle_replica_finds_the_share_that_it_showed(seed: int, vllm_engine: EngineName) -> None:
    case = random_vllm_case(20_000 + seed)
    run = case.start(vllm_engine, observation=None)
    times = case.workload.arrived_at_s
    shown: dict[int, float] = {}
    while not run.done:
        request, replica = run.request, int(case.assignment[run.request])
        row = run.rows()[replica]
        idle = row[Signal.WAITING] == row[Signal.RUNNING] == 0
        # Others that arrive at this instant would be in the same batch.
        if idle and (times == times[request]).sum() == 1:
            shown[request] = row[Signal.CACHED_PREFIX]
        run.place(replica)
    outcome = run.outcome()
    for request, share in shown.items():
        if outcome.replica[request] >= 0:
            tokens = share * outcome.prompt_tokens[request]
            assert tokens == pytest.approx(outcome.cached_tokens[request])
