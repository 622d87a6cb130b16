"""Sources of shared prefixes: what is shared is what their docstrings say."""

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.arrivals import GammaArrivals
from llmroute_gym.sim.prefixes import PrefixRepetition, SharedPrefix
from llmroute_gym.sim.sources import prompt_source
from llmroute_gym.sim.workload import Workload
from tests.sim.endless_cache import cacheable_share


def rows_of(workload: Workload) -> list[list[tuple[int, int]]]:
    assert workload.content is not None
    return workload.content.rows()


def test_shared_prefixes_go_round_in_one_order() -> None:
    source = SharedPrefix(4.0, groups=3, prompts=2, system_tokens=50, question_tokens=7)
    workload = source.sample(15, np.random.default_rng(0))
    rows = rows_of(workload)
    assert len({tuple(row) for row in rows[:6]}) == 6
    assert rows[6:12] == rows[:6]
    assert rows[12:] == rows[:3]
    assert sorted(row[0] for row in rows[:6]) == [(group, 50) for group in (0, 0, 1, 1, 2, 2)]
    assert workload.prompt_tokens.tolist() == [57] * 15
    assert workload.output_tokens.tolist() == [1000] * 15
    assert rows_of(source.sample(15, np.random.default_rng(1)))[:6] != rows[:6]


def test_prefixes_repeat_equally_often_before_suffixes_that_do_not() -> None:
    source = PrefixRepetition(4.0, prefixes=3, prefix_tokens=9, suffix_tokens=4, output_tokens=2)
    rows = rows_of(source.sample(30, np.random.default_rng(0)))
    prefixes = [row[0] for row in rows]
    assert [prefixes.count((prefix, 9)) for prefix in range(3)] == [10, 10, 10]
    assert len({row[1] for row in rows}) == 30
    assert {length for _, length in (row[1] for row in rows)} == {4}
    assert prefixes != sorted(prefixes)


@pytest.mark.parametrize(
    ("source", "requests", "prompt", "output", "share"),
    [
        (SharedPrefix(20.0), 750, 7200, 1000, 0.667),
        (SharedPrefix(20.0), 5000, 7200, 1000, 0.948),
        (PrefixRepetition(20.0), 1000, 512, 128, 0.495),
    ],
)
def test_the_defaults_are_as_documented(
    source: SharedPrefix | PrefixRepetition, requests: int, prompt: int, output: int, share: float
) -> None:
    workload = source.sample(requests, np.random.default_rng(0))
    assert workload.prompt_tokens.mean() == prompt
    assert workload.output_tokens.mean() == output
    assert workload.qps == pytest.approx(20.0, rel=0.1)
    assert cacheable_share(workload) == pytest.approx(share, abs=0.0005)


def test_a_source_takes_any_arrivals_and_rate() -> None:
    source = SharedPrefix(4.0, arrivals=GammaArrivals(0.0)).with_qps(8.0)
    workload = source.sample(20, np.random.default_rng(0))
    assert np.diff(workload.arrived_at_s) == pytest.approx(1 / 8)
    again = source.sample(20, np.random.default_rng(0))
    assert rows_of(again) == rows_of(workload)
    with pytest.raises(InputError, match="n_requests must be an integer >= 1, got 0"):
        source.sample(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("shared_prefix", {"groups": 0}, "groups must be an integer >= 1, got 0"),
        ("shared_prefix", {"system_tokens": 1.5}, "system_tokens must be an integer >= 1, got 1.5"),
        ("shared_prefix", {"qps": 0}, "qps must be a finite number > 0, got 0"),
        ("prefix_repetition", {"suffix_tokens": 0}, "suffix_tokens must be an integer >= 1, got 0"),
        (
            "prefix_repetition",
            {"prefix": 3},
            "option of workload source .* did you mean",
        ),
        ("shared_prefixes", {}, "did you mean 'shared_prefix'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prompt_source(name, **{"qps": 1.0, **options})
