"""Outcomes whose latencies are given."""

import numpy as np
import pytest

from llmroute_gym.sim import Outcome
from tests.compare.outcomes import outcome


@pytest.fixture
def runs(rng: np.random.Generator) -> list[Outcome]:
    return [outcome(rng.exponential(2.0 + run, 50)) for run in range(4)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
