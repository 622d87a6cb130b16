"""The benchmark of decisions in service."""

import deciding
import pytest

from llmroute_gym.routers import make


@pytest.mark.parametrize("backends", [1, 4])
def test_it_serves_a_policy_and_rules(backends: int) -> None:
    for router in (deciding.random_policy(), *map(make, deciding.RULES)):
        times = deciding.measure("one", router, backends, 60)
        assert 0 < times.median <= times.p99
        assert times.events > 0
