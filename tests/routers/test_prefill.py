"""Dynamo's and LMetric's rules on rows written by hand."""

from llmroute_gym.routers import make
from tests.routers.hand import chosen, route, rows


def test_dynamo_adds_blocks_to_prefill_and_blocks_that_decode() -> None:
    # Of 640 tokens the second holds half. Blocks of 64: 10 + 2 = 12, (320 + 320) / 64 + 1 = 11,
    # 10 + 3 = 13.
    table = rows(
        3,
        prompt_tokens=640,
        cached_prefix=[0, 0.5, 0],
        pending_prompt_tokens=[0, 320, 0],
        context_tokens=[128, 64, 192],
    )
    assert chosen("dynamo_kv", table, 10) == {1}
    assert chosen("dynamo_kv", rows(3, prompt_tokens=640)) == {0, 1, 2}


def test_the_weight_of_prefill_trades_it_against_decoding() -> None:
    # 10 + 0 against 0 + 6 blocks, or 5 + 0 against 0 + 6.
    table = rows(2, prompt_tokens=640, cached_prefix=[0, 1], context_tokens=[0, 384])
    assert route("dynamo_kv", table) == 1
    assert route("dynamo_kv:prefill=0.5", table) == 0


def test_dynamo_reads_what_the_engines_tell_of_their_caches() -> None:
    observation = make("dynamo_kv").observation
    assert observation is not None
    assert (observation.information, observation.prefix_view) == ("router", "events")


def test_shares_of_a_prompt_are_whole_tokens_so_that_ties_are_ties() -> None:
    # 1,000 tokens, m of them cached and m more pending, for each m of whole blocks: 1,000 all.
    cached = range(0, 1000, 16)
    shares = [m / 1000 for m in cached]
    n = len(cached)
    table = rows(n, prompt_tokens=1000, cached_prefix=shares, pending_prompt_tokens=list(cached))
    assert len(chosen("dynamo_kv", table, 300)) > n / 2
    table = rows(n, prompt_tokens=1000, cached_prefix=shares, uncached_tokens=list(cached))
    for first in range(n):
        assert route("lmetric", table, [r >= first for r in range(n)]) == first


def test_lmetric_multiplies_tokens_to_prefill_by_the_batch_and_one() -> None:
    # (0 + 1000) x 5 = 5000, (500 + 400) x 6 = 5400, (3000 + 1000) x 1 = 4000.
    table = rows(
        3,
        prompt_tokens=1000,
        cached_prefix=[0, 0.6, 0],
        uncached_tokens=[0, 500, 3000],
        running=[4, 5, 0],
    )
    assert route("lmetric", table) == 2
    assert route("lmetric", table, [True, True, False]) == 0
    assert route("lmetric", rows(3, prompt_tokens=1000, running=[1, 0, 0])) == 1
