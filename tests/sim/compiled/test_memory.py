"""The compiled engine's block of memory."""

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.memory import Memory
from llmroute_gym.sim.content import Content


def test_more_requests_than_it_can_name() -> None:
    cluster = Cluster.from_profile("a100-llama-2-7b", replicas=2)
    with pytest.raises(InputError, match=r"4 x 50000000 requests on 2 replicas .* run them in"):
        Memory(cluster, 4, 50_000_000, 4096, ObservationConfig(), 1.0)


@pytest.mark.parametrize("content", [None, Content.of([[(0, 40)], [(0, 20)]])])
def test_changes_of_caches_are_logged_only_where_somebody_may_find_them(
    content: Content | None,
) -> None:
    workload = Workload([0.0, 1.0], [40, 20], [5, 5], content=content)
    cluster = Cluster.from_profile("h100-llama-3.1-8b", replicas=2)
    memory = Memory(cluster, 1, 2, 45, ObservationConfig(events_lag_s=1.0), 6.0)
    memory.start(0, workload, np.zeros(2))
    stores = memory.ints[memory.replicas(0) + at.STORE]
    assert memory.ints[stores + kv.LOGGED].tolist() == [int(content is not None)] * 2
