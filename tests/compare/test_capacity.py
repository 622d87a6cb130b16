"""What a cluster can serve, and what is said of more."""

import math
from typing import Any

import numpy as np
import pytest

from llmroute_gym.compare.capacity import estimated_capacity, warn_of_overload
from llmroute_gym.config import ClusterConfig, WorkloadConfig
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.conversations import AgentLoop, MultiTurn, Turns
from llmroute_gym.sim.sources import WorkloadSource


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return build_cluster(ClusterConfig())


@pytest.fixture(scope="module")
def source() -> WorkloadSource:
    return build_source(WorkloadConfig(), 2.5)


def test_the_capacity_grows_with_the_replicas(cluster: Cluster, source: WorkloadSource) -> None:
    of_four = estimated_capacity(cluster, source)
    assert 4.5 < of_four < 8
    many = build_cluster(ClusterConfig(replicas=64))
    assert estimated_capacity(many, source) == pytest.approx(16 * of_four, rel=0.05)


@pytest.mark.parametrize("closed_loop", [False, True])
@pytest.mark.parametrize("kind", [MultiTurn, AgentLoop])
def test_the_capacity_for_conversations_takes_few_of_them(
    cluster: Cluster,
    kind: type[MultiTurn | AgentLoop],
    closed_loop: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, draw = [], kind._draw

    def counted(self: Any, conversations: int, rng: np.random.Generator) -> Turns:
        drawn.append(conversations)
        assert sum(drawn) < 2000
        return draw(self, conversations, rng)

    monkeypatch.setattr(kind, "_draw", counted)
    assert 0 < estimated_capacity(cluster, kind(qps=2.0, closed_loop=closed_loop)) < math.inf


def test_a_load_above_the_capacity_is_said(
    cluster: Cluster, source: WorkloadSource, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_overload(cluster, source, "training.qps", 4.5)
    assert caplog.text == ""
    warn_of_overload(cluster, source, "training.qps", 40.0)
    assert "training.qps reaches 40 requests/s, but the cluster serves about 5" in caplog.text
