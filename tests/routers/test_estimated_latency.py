"""The family of estimated latencies, on rows written by hand."""

from typing import Final

from llmroute_gym.routers import EstimatedLatency
from tests.routers.by_hand import ask, fresh, rows

LESS_THAN_NOTHING: Final = EstimatedLatency(cached=1.5, prefill=4.0, own_prefill=3.0, in_flight=1.0)


def test_the_defaults_weigh_requests_in_flight_by_speed() -> None:
    # 1 + 0.1 n requests over the speed: 1.2, 1.4 / 2, 1.6 / 2.
    table = rows(3, in_flight=[2, 4, 6], speed=[1, 2, 2], prompt_tokens=100)
    assert ask(fresh(EstimatedLatency(), 3), table) == 1
    assert ask(fresh(EstimatedLatency(), 3), table, without=[1]) == 2


def test_an_estimate_below_nothing_is_nothing_and_leaves_the_rest_to_decide() -> None:
    # 1 s of output, and 4 * 3 * 8 s * (1 - 1.5) of prefill: below 0 on all, so the load decides.
    table = rows(3, prompt_tokens=8000, cached_prefix=1.0, in_flight=[5, 1, 0])
    assert ask(fresh(LESS_THAN_NOTHING, 3), table) == 2
    cold = rows(3, prompt_tokens=8000, cached_prefix=[0.0, 0.0, 1.0], in_flight=[0, 0, 1])
    assert ask(fresh(LESS_THAN_NOTHING, 3), cold) == 2
