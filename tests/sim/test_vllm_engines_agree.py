"""The compiled engine gives the reference engine's numbers for `vllm_v1`, on random cases."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.replica import Cluster
from tests.sim.strategies import QUICK_CASES, seeds, with_waiting
from tests.sim.test_engines_agree import (
    APART,
    TIMES,
    assert_simulated_alike,
    assert_stepped_alike,
)
from tests.sim.vllm_cases import random_vllm_case

pytestmark = pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")


@pytest.fixture(autouse=True, scope="module")
def _kernel() -> None:
    try:
        random_vllm_case(0).start("compiled")
    except InputError as error:
        pytest.skip(str(error))


@seeds(320)
def test_steps_agree(seed: int) -> None:
    assert_stepped_alike(random_vllm_case(seed))


@seeds(320)
def test_runs_agree(seed: int) -> None:
    assert_simulated_alike(random_vllm_case(APART + seed), seed)


@seeds(160)
def test_runs_whose_arrivals_depend_on_ends_agree(seed: int) -> None:
    case = with_waiting(random_vllm_case(2 * APART + seed), seed)
    assert_stepped_alike(case)
    assert_simulated_alike(case, seed)


@seeds(160)
def test_runs_that_read_shared_blocks_less_often_agree(seed: int) -> None:
    case = random_vllm_case(5 * APART + seed, exact=False)
    shares = np.random.default_rng([seed, 9]).choice([0.0, 0.3, 0.44, 1.0], len(case.cluster))
    cluster = Cluster(
        tuple(
            replace(one, shared_reads=float(share)) if one.scheduler == "vllm_v1" else one
            for one, share in zip(case.cluster, shares, strict=True)
        )
    )
    case = case._replace(cluster=cluster)
    assert_stepped_alike(case)
    assert_simulated_alike(case, seed)


@seeds(160)
def test_events_at_one_instant_agree_to_the_bit(seed: int) -> None:
    case = random_vllm_case(3 * APART + seed, exact=True)
    if seed % 2:
        case = with_waiting(case, seed)
    assert_stepped_alike(case)
    reference, compiled = (
        simulate(case.workload, case.cluster, case.assignment, engine=engine)
        for engine in ("reference", "compiled")
    )
    for name in TIMES:
        np.testing.assert_array_equal(getattr(compiled, name), getattr(reference, name))


@seeds(QUICK_CASES)
def test_larger_workloads_agree(seed: int) -> None:
    assert_simulated_alike(random_vllm_case(4 * APART + seed, n_requests=300), seed)
