"""The explanation of the shipped rule: formulas, recorded decisions, responses, losses."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import explain
import numpy as np
import pytest
from explain_decisions import (
    changed,
    choice,
    duel,
    fresh,
    most_more,
    recorded,
    response,
    scores,
    without_terms,
)
from explain_formula import n_terms, options, plain_values, rounded, stated, used_symbols, written
from explain_losses import Losses, kept, mean_ratio
from explain_search import Searches, simpler, size_of
from frontier_cases import CASES, Case

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from tests.routers.hand import rows

CASE = next(case for case in CASES if case.name == "mixed 70% (i)")
RULE = EstimatedLatency(
    predicted_power=0.5,
    pace_per_request=0.05,
    pace_per_context=0.1,
    prefill=2.5,
    own_prefill=0.5,
    kv_threshold=0.75,
    kv_price=10.0,
    speed_power=1.5,
    speed_by_prompt=-0.25,
    waited=0.5,
    in_flight=1.25,
    kv_by_prompt=-0.5,
    ttft=1.0,
    ttft_by_output=-1.0,
    work=0.25,
    uncached=2.0,
)


def value(text: str, symbols: dict[str, float]) -> float:
    """Computes a printed formula."""
    code = re.sub(r"\s+", " ", text.removeprefix("score = "))
    code = code.replace("[", "(").replace("]", ")").replace("^", "**")
    code = re.sub(r"\be\*\*\(", "exp(", code).replace("e**l", "exp(l)")
    code = re.sub(r"([\d.]+|[a-zA-Z]|\)) (?=[a-zA-Z(])", r"\1*", code)
    names = {"ln": math.log, "exp": math.exp, "max": max, **symbols}
    return float(eval(code, {"__builtins__": {}}, names))


def table() -> FloatArray:
    return rows(
        3,
        prompt_tokens=1800,
        predicted_output_tokens=350,
        cached_prefix=[0.0, 0.25, 0.5],
        speed=[1.0, 2.0, 0.5],
        in_flight=[3, 9, 1],
        waiting=[0, 2, 0],
        kv_usage=[0.3, 0.9, 0.1],
        context_tokens=[4000, 12000, 900],
        uncached_tokens=[0, 3000, 700],
        oldest_waiting_s=[0.0, 1.5, 0.25],
        ttft_s=[0.3, 0.9, 0.2],
    )


def symbols_of(seen: FloatArray, r: int) -> dict[str, float]:
    row = seen[r]
    prompt, cached = row[Signal.PROMPT_TOKENS], row[Signal.CACHED_PREFIX]
    return {
        "n": row[Signal.IN_FLIGHT],
        "s": row[Signal.SPEED],
        "k": row[Signal.KV_USAGE],
        "U": row[Signal.UNCACHED_TOKENS],
        "P": prompt * (1 - cached),
        "h": cached,
        "w": row[Signal.OLDEST_WAITING_S],
        "f": row[Signal.TTFT_S],
        "C": row[Signal.CONTEXT_TOKENS],
        "q": row[Signal.WAITING],
        "p": math.log((prompt + 50) / 1000),
        "l": math.log(row[Signal.PREDICTED_OUTPUT_TOKENS] / 100),
    }


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        EstimatedLatency(),
        EstimatedLatency(kv_price=1.0, pace_per_request=0.001, prefill=1.0, queue=1.0),
        EstimatedLatency(waited=1.0, speed_power=0.0, oldest=-1.0, context=-0.25),
        EstimatedLatency(speed_power=0.0, speed_by_output=0.5, pending=0.5, predicted_power=0.0),
    ],
)
def test_a_formula_is_the_score(rule: EstimatedLatency) -> None:
    seen, text = table(), written(rule)
    found = scores(rule, fresh(rule, seen))
    printed = [value(text, symbols_of(seen, r)) for r in range(3)]
    # All but what is the same for all replicas.
    np.testing.assert_allclose(np.diff(printed), np.diff(found), rtol=0.01, atol=0.01)
    used = set(re.findall(r"\b[a-zA-Z]\b", text)) - {"e"}
    assert used <= set(used_symbols(rule))


def test_terms_and_constants_are_counted() -> None:
    assert written(EstimatedLatency()) == "score = ln[ (1 + n) e^l/s ]"
    assert (stated(EstimatedLatency()), n_terms(EstimatedLatency())) == ([], 2)
    rule = EstimatedLatency(prefill=1.0, in_flight=0.5, kv_threshold=0.9, recent_s=50.0)
    # The threshold counts only with a price, the time constant only with what is sent lately.
    assert stated(rule) == ["in_flight"]
    assert n_terms(rule) == 5
    assert stated(replace(rule, kv_price=1.0)) == ["kv_threshold", "in_flight"]
    rule = EstimatedLatency(prefill=1.0, cached=0.5)
    assert stated(rule) == ["cached"]
    assert stated(replace(rule, own_prefill=0.0)) == []
    assert used_symbols(rule)["P"] == "prompt tokens of this request, times 1 - 0.5 h"
    assert plain_values("in_flight_by_prompt") == [0.0]
    assert plain_values("pace_per_request") == [1.0, 0.001]
    with pytest.raises(ValueError, match="no formula"):
        written(EstimatedLatency(of_all=0.5))


def test_a_formula_is_rounded_and_made_again() -> None:
    rule = rounded(EstimatedLatency(in_flight=0.5678, kv_price=12.34))
    assert options(rule) == {"name": "estimated_latency", "kv_price": 12.0, "in_flight": 0.57}
    assert make(options(rule)) == rule


def test_recorded_decisions_are_those_of_the_rule() -> None:
    rule: Any = make("frontier")
    decisions = recorded(CASE, rule, ".")
    assert len(decisions) == 900
    assert changed(rule, rule, decisions) == 0
    # Who was chosen stands in the rows of the next decision.
    after = [one.rows[:, Signal.ROUNDS_SINCE_CHOSEN].argmin() for one in decisions[1:]]
    assert [choice(rule, one) for one in decisions[:-1]] == after
    assert changed(rule, EstimatedLatency(), decisions) > 0.1


def test_what_is_left_out_is_what_there_is() -> None:
    titles = without_terms(EstimatedLatency())
    assert list(titles) == [
        "estimate: requests in flight",
        "estimate: prompt's own prefill",
        "estimate: speed",
    ]
    for term, rule in without_terms(RULE).items():
        assert rule != RULE, term


def test_responses_vary_one_signal_alone() -> None:
    typical = rows(4, speed=[1.0, 2.0, 0.5, 1.0], in_flight=[3, 9, 1, 0], prompt_tokens=900)
    usual = {Signal.SPEED: 1.0, Signal.IN_FLIGHT: 3.0}
    rule = EstimatedLatency(slowness=1.0)
    values = np.array([0.0, 3.0, 7.0])
    found = response(rule, typical, usual, Signal.IN_FLIGHT, values, {})
    np.testing.assert_allclose(found, np.tile(np.log((values + 1) / 4), (4, 1)), atol=1e-3)
    fast = response(rule, typical, usual, Signal.IN_FLIGHT, values, {Signal.SPEED: 2.0})
    np.testing.assert_allclose(found - fast, np.log(2), atol=1e-3)
    prompts, ttft = np.array([950.0, 2668.28]), {Signal.TTFT_S: 0.9}
    weighed = EstimatedLatency(ttft_by_prompt=1.0)
    found = response(weighed, typical, usual, Signal.PROMPT_TOKENS, prompts, ttft)
    # 1 s instead of 0.1 s, weighed by the logarithm of the prompt's length.
    np.testing.assert_allclose(found, np.tile([0.0, np.log(10)], (4, 1)), atol=1e-3)


def test_a_duel_is_lost_when_the_queue_is_worth_the_speed() -> None:
    in_flight = np.arange(8.0)
    fast = rows(8, speed=2.0, in_flight=in_flight)
    (idle,) = rows(1, speed=0.5)
    leads = duel(EstimatedLatency(), fast, idle, np.array([100.0, 3000.0]))
    assert [most_more(lead, in_flight) for lead in leads] == pytest.approx([3.0, 3.0], abs=0.01)
    assert most_more(np.full(8, -1.0), in_flight) == math.inf
    assert most_more(np.full(8, 1.0), in_flight) < 0


def lost(name: str, simple: float, other: float) -> Losses:
    ratios = {"lor": simple, "formula": other}
    known = {title: Estimate(one, one, one) for title, one in ratios.items()}
    return Losses(Case(name, "", {}), Estimate(1, 1, 1), known, {}, "lor")


def test_half_of_a_gain_is_the_root() -> None:
    found = [lost("mixed 50% (i)", 2.0, 2**0.5), lost("mixed 70% (i)", 2.0, 2**0.5)]
    found += [lost("mixed, 32 replicas", 9.0, 9.0), lost("equal 50% (i)", 1.0, 1.5)]
    assert mean_ratio(found, "formula", "mixed") == pytest.approx(2**0.5)
    assert mean_ratio(found, "formula", "equal") == pytest.approx(1.5)
    assert kept(found, "formula", "mixed") == pytest.approx(0.5)


@pytest.mark.slow
def test_each_step_leaves_less() -> None:
    searches = Searches(0.01, quick=True)
    simple = simpler(searches, replace(RULE, speed_by_prompt=0.0), 0)
    assert size_of(simple) < size_of(replace(RULE, speed_by_prompt=0.0))
    assert len(stated(simple)) >= len(stated(RULE)) - 3


@pytest.mark.slow
def test_the_whole_command_in_small(tmp_path: Path) -> None:
    found = explain.searched(0.01, quick=True)
    formula: Any = make(found["sizes"][-1]["rule"])
    assert len(stated(formula)) <= 10
    assert n_terms(formula) <= 10
    page = explain.explained(found, tmp_path, ".", runs=2, quick=True)
    pictures = re.findall(r"\]\((\w+\.png)\)", page)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(pictures)
    assert "nan" not in page.lower()
    for rule in found["exports"]:
        assert f"`{rule}`" in page
        make(rule)
