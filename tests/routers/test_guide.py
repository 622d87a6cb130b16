"""Every rule by its name, with the defaults that its system ships, written here by hand."""

import math
from typing import Any

import numpy as np
import pytest

from llmroute_gym import routers
from llmroute_gym.errors import InputError
from llmroute_gym.routers import Rule, available, make
from llmroute_gym.routers.constants import constants_of
from tests.routers.hand import rows

GUIDE: dict[str, dict[str, Any]] = {
    "conditional_hash": {"factor": 1.25},
    "session_hash": {},
    "sticky_least_loaded": {"forget_after_s": 7200},
    "vllm_router_cache_aware": {
        "match_above": 0.3,
        "absolute": 64,
        "relative": 1.5,
        "tree_tokens": 2**25,
    },
    "smg_cache_aware": {
        "match_above": 0.3,
        "candidates": 8,
        "factor": 1.5,
        "margin": 64,
        "deviations": 2,
        "least_margin": 4,
    },
    "preble": {"match_above": 0.5, "window_s": 180},
    "ray_prefix": {"match_from": 0.1, "imbalance": math.inf},
    "latency_predictor": {},
    "llmd_predicted": {
        "warm": 0.99,
        "later_s": 5,
        "near": 0.8,
        "ttft_weight": 0.8,
        "tpot_weight": 0.2,
        "poll_s": 0.05,
    },
    "aibrix_load_balance": {"window_s": 60},
    "aibrix_prefix": {"imbalance": 8, "deviations": 1},
    "aibrix_prefix_helm": {"imbalance": 16, "deviations": 2},
    "dynamo_kv": {"block": 64},
    "envoy_weighted": {"bias": 1},
    "jsq": {},
    "least_kv": {},
    "least_tokens": {},
    "llmd_baseline": {"queue": 2, "kv": 2, "prefix": 3, "no_hit": 2, "poll_s": 0.05},
    "llmd_default": {"queue": 2, "kv": 2, "prefix": 3, "poll_s": 0.05},
    "llmd_token": {
        "share": 0.8,
        "wait_s": 18,
        "tokens_per_s": 15_928,
        "most_tokens": 4_194_304,
    },
    "lmetric": {},
    "lor": {},
    "lor_hybrid": {"a": 0.5},
    "lor_pending": {},
    "power_of_two": {},
    "random": {},
    "round_robin": {},
    "smetric": {},
    "smg_least_load": {
        "tokens_per_s": 2000,
        "tokens_per_request": 1024,
        "memory_s": 0.15,
        "poll_s": 10,
    },
    "smg_power_of_two": {
        "tokens_per_s": 2000,
        "tokens_per_request": 1024,
        "memory_s": 0.15,
        "poll_s": 10,
    },
    "smg_veto": {"queue": 8, "kv": 0.8, "poll_s": 10},
    "speed_lor": {},
    "vllm_dp": {"waiting": 4, "poll_s": 0.1},
}


@pytest.mark.parametrize("name", GUIDE)
def test_a_rule_has_its_systems_defaults(name: str) -> None:
    router = make(name)
    assert name in available()
    assert {option: getattr(router, option) for option in GUIDE[name]} == GUIDE[name]
    assert isinstance(router, Rule)
    assert router.source is not None


@pytest.mark.parametrize("name", GUIDE)
def test_each_constant_says_its_range_when_it_is_left(name: str) -> None:
    for constant, limits in constants_of(make(name)).items():
        assert limits.low <= getattr(make(name), constant) <= limits.high
        assert limits.low > 0 or not limits.logarithmic
        for wrong in (limits.low - 1, limits.high * 2 + 1, "much"):
            expected = f"{constant} of {name} must be {limits}, got "
            with pytest.raises(InputError) as error:
                make({"name": name, constant: wrong})
            assert str(error.value).startswith(expected)


def test_each_class_may_be_imported_by_its_name() -> None:
    for name in available():
        assert getattr(routers, type(make(name)).__name__) is type(make(name))


def test_an_unknown_option_names_the_known_ones_with_their_ranges() -> None:
    with pytest.raises(InputError) as error:
        make("lor_hybrid:poll=1")
    assert str(error.value) == (
        "unknown option of router 'lor_hybrid': 'poll'; available: a (a number from 0 to 1), "
        "poll_s (a number from 0 to 3600); did you mean 'poll_s'?"
    )


@pytest.mark.parametrize("name", ["jsq", "lor", "speed_lor", "least_tokens", "lor_hybrid"])
def test_a_rule_that_was_never_reset_decides_as_at_a_start(name: str) -> None:
    table, everyone = rows(3, waiting=[1, 0, 2], pending_prompt_tokens=[1, 0, 2]), np.ones(3, bool)
    assert make(name).route(table, everyone) == 1
