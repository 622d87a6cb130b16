"""The compiled engine's block of memory."""

import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.compiled.memory import Memory


def test_more_requests_than_it_can_name() -> None:
    cluster = Cluster.from_profile("a100-llama-2-7b", replicas=2)
    with pytest.raises(InputError, match=r"4 x 50000000 requests on 2 replicas .* run them in"):
        Memory(cluster, 4, 50_000_000, 4096, ObservationConfig(), 1.0)
