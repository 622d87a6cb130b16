"""vLLM's balancer and its router's smetric on rows written by hand."""

from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import make
from tests.routers.hand import route, rows


def test_a_waiting_request_counts_four_running_ones() -> None:
    # 4 x 1 + 2 = 6, 5, 4 x 1 + 1 = 5.
    assert route("vllm_dp", rows(3, waiting=[1, 0, 1], running=[2, 5, 1])) == 1
    assert route("vllm_dp:waiting=3", rows(3, waiting=[1, 0, 1], running=[2, 5, 1])) == 2
    assert route("vllm_dp", rows(3, running=[1, 0, 0]), [True, False, True]) == 2


def test_the_balancer_is_told_every_hundred_milliseconds() -> None:
    observation = make("vllm_dp").observation
    assert observation is not None
    assert (observation.information, observation.signal_interval_s) == ("metrics", 0.1)


UNITS = "smetric:linear_s=0.001,pair_s=0,gate=0.5,slack=2,base_s=1,token_s=0.001"
"""A thousand tokens a second; a prompt of 1000 is to start within 2 x (1 + 1) = 4 s."""


def test_the_longest_match_wins_while_its_queue_is_short() -> None:
    # 0.4 x 1000 new tokens and 3600 queued are 4 s.
    table = rows(2, prompt_tokens=1000, cached_prefix=[0, 0.6], uncached_tokens=[0, 3600])
    table[:, Signal.IN_FLIGHT] = [1, 9]
    assert route(UNITS, table) == 1
    table[1, Signal.UNCACHED_TOKENS] = 3601
    assert route(UNITS, table) == 0
    assert route(f"{UNITS.replace('slack=2', 'slack=3')}", table) == 1


def test_a_share_that_only_reaches_the_gate_is_not_enough() -> None:
    table = rows(2, prompt_tokens=1000, cached_prefix=[0, 0.5], in_flight=[1, 9])
    assert route(UNITS, table) == 0
    assert route(UNITS.replace("gate=0.5", "gate=0.49"), table) == 1


def test_else_the_least_queued_times_in_flight() -> None:
    # (1000 + 2000) x 3 = 9000 against (1000 + 500) x 7 = 10,500 against 3000 x 4.
    table = rows(3, prompt_tokens=1000, uncached_tokens=[2000, 500, 2000], in_flight=[3, 7, 4])
    assert route(UNITS, table) == 0
    assert route(UNITS, table, [False, True, True]) == 1
    assert route(UNITS, rows(3, prompt_tokens=1000)) == 0


def test_attention_costs_by_pairs_of_tokens() -> None:
    pairs = UNITS.replace("pair_s=0", "pair_s=0.00001")
    # u (p - u / 2) of 1000 uncached is 500,000 pairs: 1 + 5 = 6 s beside 6 s for the second's 0.6:
    # 0.4 + 400 x (1000 - 200) x 1e-5 = 3.6 s, more with 0.4 s of pairs in its queue: 4 s.
    table = rows(2, prompt_tokens=1000, cached_prefix=[0, 0.6], in_flight=[1, 9])
    table[1, Signal.UNCACHED_PAIRS] = 39_999
    assert route(pairs, table) == 1
    table[1, Signal.UNCACHED_PAIRS] = 40_001
    assert route(pairs, table) == 0
