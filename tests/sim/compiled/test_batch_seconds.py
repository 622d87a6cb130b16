"""Batch times inside the kernels, where a batch lies beyond what its tables hold."""

import numpy as np
import pytest

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.compiled.batch_seconds import prefill_seconds
from llmroute_gym.sim.compiled.models import FlatModels
from llmroute_gym.sim.profile_time import ProfileBatchTime, load_profile
from tests.sim.strategies import random_profile, random_table

SHIPPED = load_profile("a100-llama-2-7b").batch_time
WIDE = random_profile(np.random.default_rng(3))
FAR = ProfileBatchTime(
    **{**WIDE.arrays(), "prefill_context": np.array([0.0, 100.0, 300.0])}, linear_slope_s=0.0
)
"""Its knots lie beyond the contexts that a short workload needs."""


@pytest.mark.filterwarnings("ignore:a batch lies outside the batch-time table")
@pytest.mark.parametrize("model", [SHIPPED, WIDE, FAR, random_table(np.random.default_rng(0))])
@pytest.mark.parametrize("buckets", [0, 63, 64, 65, 200, 500, 20_000])
def test_many_chunks_may_have_more_context_than_one_request(model: object, buckets: int) -> None:
    # Of several chunks the contexts add up to more than the longest request's.
    words = FlatModels([model], 0, 512, 1000, 8).words  # type: ignore[list-item]
    for prefills, squares in ((1, 25), (9, 90_000)):
        sums = BatchSums(0, 0, prefills, 300, squares, 0, buckets)
        plain = BatchSums(0, 0, 0, 300, 0, 0, 0)
        expected = model.seconds(sums) - model.seconds(plain)  # type: ignore[attr-defined]
        part = prefill_seconds(0, prefills, squares, 0, buckets, words, words.view(np.float64))
        assert part == pytest.approx(expected, rel=1e-9)
