"""The common requests, and their serving."""

from dataclasses import replace

import numpy as np
import pytest

from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import ClusterConfig, EvaluationConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.sources import TraceWorkload

SMALL = EvaluationConfig(runs=3, requests=40, resamples=200)


def test_workloads_depend_on_seed_and_run_only() -> None:
    source, cluster = build_source(WorkloadConfig(), 2.5), build_cluster(ClusterConfig())
    first, again = (common_workloads(source, cluster, SMALL) for _ in range(2))
    other = common_workloads(source, cluster, replace(SMALL, seed=3))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.arrived_at_s, b.arrived_at_s)
        assert np.array_equal(a.prompt_tokens, b.prompt_tokens)
        assert not np.array_equal(a.arrived_at_s, c.arrived_at_s)
    assert not np.array_equal(first[0].prompt_tokens, first[1].prompt_tokens)


@pytest.mark.parametrize("new_times", [False, True])
def test_windows_of_a_trace_are_spread_over_it(new_times: bool) -> None:
    n = 1000
    recorded = Workload(np.arange(n) * 2.0, np.arange(1, n + 1), np.ones(n, dtype=int))
    arrivals = build_source(WorkloadConfig(), 4.0).arrivals if new_times else None
    source = TraceWorkload(recorded, 4.0, arrivals)
    workloads = common_workloads(source, build_cluster(ClusterConfig()), SMALL)
    assert [int(one.prompt_tokens[0]) for one in workloads] == [1, 481, 961]
    assert all(len(one) == 40 for one in workloads)
    if not new_times:
        assert np.allclose(np.diff(workloads[1].arrived_at_s), 0.25)
        assert workloads[2].arrived_at_s[0] == 0


def test_a_trace_shorter_than_a_run_is_refused() -> None:
    recorded = Workload(np.arange(10.0), np.ones(10, dtype=int), np.ones(10, dtype=int))
    with pytest.raises(InputError, match="more than the trace's 10"):
        common_workloads(TraceWorkload(recorded, 1.0), build_cluster(ClusterConfig()), SMALL)


def test_all_routers_serve_the_same_requests() -> None:
    cluster = build_cluster(ClusterConfig())
    workloads = common_workloads(build_source(WorkloadConfig(), 2.5), cluster, SMALL)
    for name in ("round_robin", "random"):
        outcomes, again = (
            serve(make(name), workloads, cluster, SMALL, ObservationConfig()) for _ in range(2)
        )
        for workload, one, two in zip(workloads, outcomes, again, strict=True):
            assert np.array_equal(one.arrived_at_s, workload.arrived_at_s)
            assert np.array_equal(one.replica, two.replica)
            assert np.isfinite(one.finished_at_s).all()
