"""Rules that go by the router's own tree, on rows written by hand."""

import math
from typing import Any

import numpy as np
import pytest

from llmroute_gym import InputError
from llmroute_gym.config import ObservationConfig
from llmroute_gym.routers.preble import Preble
from llmroute_gym.routers.prefix_trees import RayPrefix, SmgCacheAware, VllmRouterCacheAware
from tests.routers.hand import ask, fresh, rows


@pytest.mark.parametrize(
    ("cached", "in_flight", "without", "chosen"),
    [
        ([0.2, 0.9, 0.4], [0, 9, 1], [], 1),
        ([0.2, 0.9, 0.9], [0, 9, 1], [], 1),  # the first of equal matches
        ([0.2, 0.9, 0.4], [0, 9, 1], [1], 2),
        ([0.3, 0.3, 0.2], [5, 4, 4], [], 1),  # no match above 0.3: the first least loaded
        ([0.0, 0.31, 0.2], [5, 9, 4], [], 1),
        ([0.9, 0.0, 0.0], [65, 1, 2], [], 0),  # 64 apart is even
        ([0.9, 0.0, 0.0], [66, 1, 2], [], 1),  # 65 apart and 66 times the least
        ([0.9, 0.0, 0.0], [195, 130, 130], [], 0),  # 65 apart, but 1.5 times the least
        ([0.9, 0.0, 0.0], [196, 131, 130], [], 2),
        ([0.9, 0.0, 0.0], [66, 1, 2], [1], 0),  # 64 apart among those that may be chosen
    ],
)
def test_vllm_router_takes_the_longest_match_while_load_is_even(
    cached: list[float], in_flight: list[int], without: list[int], chosen: int
) -> None:
    rule = fresh(VllmRouterCacheAware(), 3)
    assert ask(rule, rows(3, cached_prefix=cached, in_flight=in_flight), without) == chosen


def test_the_tree_of_vllm_router_holds_2_to_the_25_tokens_in_blocks_of_16() -> None:
    told = VllmRouterCacheAware().observation
    assert told == ObservationConfig(
        information="router", prefix_view="tree", tree_blocks=2**25 // 16
    )
    smaller = VllmRouterCacheAware(tree_tokens=80).observation
    assert smaller is not None
    assert smaller.tree_blocks == 5


def test_smg_takes_the_least_loaded_of_those_with_the_deepest_match() -> None:
    rule = fresh(SmgCacheAware(), 4)
    deep = rows(4, cached_prefix=[0.8, 0.5, 0.8, 0.8], in_flight=[3, 0, 2, 4])
    assert ask(rule, deep) == 2
    assert ask(rule, deep, without=[2]) == 0
    tied = rows(4, cached_prefix=[0.8, 0.5, 0.8, 0.8], in_flight=[2, 0, 2, 4])
    assert {ask(rule, tied) for _ in range(40)} == {0, 2}


def test_smg_considers_the_first_eight_of_them() -> None:
    rule = fresh(SmgCacheAware(), 10)
    load = [5, 5, 5, 5, 5, 5, 5, 4, 0, 0]
    assert ask(rule, rows(10, cached_prefix=0.9, in_flight=load)) == 7
    assert ask(rule, rows(10, cached_prefix=0.9, in_flight=load), without=[3]) == 8
    assert ask(fresh(SmgCacheAware(candidates=1), 10), rows(10, cached_prefix=0.9)) == 0


def test_smg_without_a_match_takes_the_least_by_load_processed_and_index() -> None:
    rule = fresh(SmgCacheAware(), 3)
    cold = rows(3, cached_prefix=[0.3, 0.1, 0.0], in_flight=[1, 1, 1])
    assert [ask(rule, cold) for _ in range(4)] == [0, 1, 2, 0]
    assert ask(rule, rows(3, in_flight=[0, 1, 1])) == 0
    # Sent so far 3, 1, 1.
    assert [ask(rule, cold) for _ in range(5)] == [1, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("in_flight", "spills"),
    [
        # Mean 4, deviation 4: the margin is 8, so up to 12 is not hot.
        ([12, 0, 4, 0], False),
        # Mean 10, deviation 10: 1.5 * 10 and 10 + 20 are exceeded by 31 only.
        ([30, 0, 10, 0], False),
        # 8 others at 10: mean 14.4.., deviation 12.6, margin 25: 50 is hot.
        ([50, 10, 10, 10, 10, 10, 10, 10, 10], True),
        # Mean 1, deviation 2.4: 1.5 and 5.9 are exceeded.
        ([7, 0, 0, 0, 0, 0, 0], True),
        # Mean 0.57: the margin is 2 * 1.4, but at least 4, not exceeded by 4.
        ([4, 0, 0, 0, 0, 0, 0], False),
        # Mean 111.1: the margin is 64 and not 2 * 31.4 = 62.9; over the mean by 88.9, not half.
        ([200, 100, 100, 100, 100, 100, 100, 100, 100], True),
        ([160, 100, 100, 100, 100, 100, 100, 100, 100], False),
    ],
)
def test_smg_spills_from_a_hot_replica(in_flight: list[int], spills: bool) -> None:
    n = len(in_flight)
    cached = [0.9] + [0.0] * (n - 1)
    load = np.array(in_flight)
    hot = load[0] > 1.5 * load.mean() and load[0] > load.mean() + min(64, max(2 * load.std(), 4))
    assert hot == spills
    rule = fresh(SmgCacheAware(), n)
    assert (ask(rule, rows(n, cached_prefix=cached, in_flight=in_flight)) != 0) == spills


def test_the_margin_of_smg_bounds_its_least_one() -> None:
    # Mean 0.57: 4 is over it by the margin, min(1, max(2 * 1.4, 4)).
    hot = rows(7, cached_prefix=[0.9, 0, 0, 0, 0, 0, 0], in_flight=[4, 0, 0, 0, 0, 0, 0])
    assert ask(fresh(SmgCacheAware(margin=1), 7), hot) == 1
    assert ask(fresh(SmgCacheAware(margin=4), 7), hot) == 0


def test_what_smg_spills_goes_to_the_least_busy() -> None:
    rule = fresh(SmgCacheAware(), 7)
    hot = rows(7, cached_prefix=[0.9, 0, 0, 0, 0, 0, 0], in_flight=[7, 0, 0, 0, 0, 0, 0])
    assert [ask(rule, hot) for _ in range(4)] == [1, 2, 3, 4]


def test_smg_may_be_told_of_the_engines_events() -> None:
    told = SmgCacheAware(view="events").observation
    assert told is not None
    assert told.prefix_view == "events"


def test_preble_takes_the_longest_match_with_fewest_requests_of_the_window() -> None:
    rule = fresh(Preble(), 3)
    both = rows(3, cached_prefix=[0.6, 0.6, 0.5], prompt_tokens=100)
    assert [ask(rule, both) for _ in range(4)] == [0, 1, 0, 1]
    assert ask(rule, both, without=[0]) == 1
    # Half is not more than half; the third has cost nothing so far.
    assert ask(rule, rows(3, cached_prefix=[0.5, 0.5, 0.2], prompt_tokens=100)) == 2


def test_preble_without_a_match_takes_the_least_cost_of_the_window() -> None:
    """Costs of 1 ms per uncached token and 10 tokens of 10 ms."""
    rule = fresh(
        Preble(prefill_s_per_token=1e-3, decode_tokens=10, decode_s_per_token=0.01), 2, 100
    )
    assert ask(rule, rows(2, prompt_tokens=1000)) == 0  # 0: 1.1
    assert ask(rule, rows(2, prompt_tokens=200, now_s=1.0)) == 1  # 1: 0.3
    assert ask(rule, rows(2, prompt_tokens=200, now_s=2.0)) == 1  # 1: 0.6
    assert ask(rule, rows(2, prompt_tokens=600, cached_prefix=0.5, now_s=3.0)) == 1  # 1: 1.0
    assert ask(rule, rows(2, prompt_tokens=200, now_s=4.0)) == 1  # 1: 1.3
    assert ask(rule, rows(2, prompt_tokens=10, now_s=5.0)) == 0  # 0: 1.21
    # After 180 s the first request counts no more: 0.11 against 1.3.
    assert ask(rule, rows(2, prompt_tokens=100, now_s=180.0)) == 0  # 0: 0.31
    # At 182 those of 1 and 2 s do not either: 0.31 against 0.7.
    assert ask(rule, rows(2, prompt_tokens=2000, now_s=182.0)) == 0
    assert ask(rule, rows(2, prompt_tokens=10, now_s=182.0)) == 1


def test_an_idle_window_of_preble_leaves_no_crumbs() -> None:
    rule = fresh(Preble(), 2)
    for now_s in (0.0, 0.1, 0.2, 0.3, 0.4):
        ask(rule, rows(2, prompt_tokens=1 + 1000 * now_s, now_s=now_s))
    assert ask(rule, rows(2, prompt_tokens=7, now_s=1000.0)) == 0


def test_ray_takes_the_longest_match_from_a_tenth_on() -> None:
    rule = fresh(RayPrefix(), 3)
    trees = [100, 50, 60]
    assert ask(rule, rows(3, cached_prefix=[0.1, 0.05, 0], view_tokens=trees)) == 0
    assert ask(rule, rows(3, cached_prefix=[0.09, 0.05, 0], view_tokens=trees)) == 1
    assert ask(rule, rows(3, cached_prefix=[0.1, 0.05, 0], view_tokens=trees), without=[0]) == 1
    assert ask(rule, rows(3, cached_prefix=0, view_tokens=trees), without=[1]) == 2


def test_ray_settles_ties_by_the_better_of_two() -> None:
    rule = fresh(RayPrefix(), 4, 400)
    tied = rows(4, cached_prefix=[0.5, 0.5, 0.2, 0.5], in_flight=[2, 1, 0, 3])
    chosen = [ask(rule, tied) for _ in range(300)]
    # Two of the three tied ones are drawn: 1 wins two pairs of three, 0 the other.
    counts = np.bincount(chosen, minlength=4)
    assert counts[2] == counts[3] == 0
    assert abs(counts[1] / 300 - 2 / 3) < 0.1


def test_ray_goes_by_load_where_it_is_imbalanced() -> None:
    table = rows(2, cached_prefix=[0.9, 0.0], in_flight=[11, 0])
    assert ask(fresh(RayPrefix(), 2), table) == 0
    assert ask(fresh(RayPrefix(imbalance=11), 2), table) == 0
    assert ask(fresh(RayPrefix(imbalance=10), 2), table) == 1
    assert RayPrefix().imbalance == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VllmRouterCacheAware(match_above=1.5), "match_above of vllm_router_cache_aware"),
        (lambda: SmgCacheAware(candidates=2.5), "candidates of smg_cache_aware"),
        (lambda: SmgCacheAware(view="leaf"), "view of smg_cache_aware"),
        (lambda: RayPrefix(imbalance=-1), "imbalance of ray_prefix must be a number of requests"),
        (lambda: RayPrefix(imbalance="a"), "imbalance of ray_prefix must be a number of requests"),  # type: ignore[arg-type]
        (lambda: RayPrefix(imbalance=True), "imbalance of ray_prefix must be .*, got True"),
        (lambda: RayPrefix(tree_tokens=0), "tree_tokens of ray_prefix"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
