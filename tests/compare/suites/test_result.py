"""Results of a suite survive their file, infinity and NaN included."""

import json
import math

import pytest

from llmroute_gym.compare.statistics import Estimate, RouterResult
from llmroute_gym.compare.suites.result import ScenarioResult, SuiteResult
from llmroute_gym.errors import InputError


def some_results() -> SuiteResult:
    one = Estimate(1.5, 0.1 + 0.2, math.inf)
    result = RouterResult("lor", {"e2e_p99_s": one}, {"e2e_p99_s": one}, {})
    scenario = ScenarioResult(
        name="equal_70",
        title="requests to replicas",
        group="equal replicas",
        load=0.7,
        qps=12.5,
        capacity_rps=17.9,
        n_replicas=4,
        requests=500,
        runs=20,
        baseline="round_robin",
        results=(result,),
        ratio_to_baseline={"e2e_p99_s": {"lor": one}},
        ratio_to_best={"e2e_p99_s": {"lor": Estimate(1.0, 1.0, 1.0)}},
        regret={"lor": one},
        unstable={"round_robin": 0.25},
        upper_bounds=("oracle",),
    )
    return SuiteResult(
        *("core", "1.0", "2026-01-01", 7, 0.95),
        routers=("round_robin", "lor"),
        scenarios=(scenario,),
        left_out={"mooncake": "the trace is absent"},
    )


def test_results_come_back_as_they_were() -> None:
    results = some_results()
    assert SuiteResult.from_json(results.to_json()) == results


def test_the_text_is_strict_json() -> None:
    def refused(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(some_results().to_json(), parse_constant=refused)["scenarios"]


def test_other_text_is_refused() -> None:
    for text in ("{}", "[]", "no json", '{"name": 1}'):
        with pytest.raises(InputError, match="no results of a suite"):
            SuiteResult.from_json(text)
