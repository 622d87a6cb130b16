"""What routing goes by, and how tokens are estimated."""

import json
from typing import Any

import pytest

from llmroute_gym.gateway.prompts import LARGEST_NAME, Prompt, TokenRates, read_prompt
from llmroute_gym.gateway.usage import Usage, read_usage
from llmroute_gym.http.heads import HttpError

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def read(path: str, **fields: Any) -> Prompt:
    return read_prompt(path, json.dumps(fields).encode(), 1_000_000, blocks=True)


def common(one: Prompt, other: Prompt) -> int:
    pairs = list(zip(one.blocks, other.blocks, strict=False))
    return next((i for i, (mine, its) in enumerate(pairs) if mine != its), len(pairs))


def test_token_ids_are_counted_and_text_is_measured() -> None:
    assert read(TEXT, prompt=[7] * 100).tokens == 100
    assert read(TEXT, prompt=[[7] * 100, [8] * 20]).tokens == 120
    text = read(TEXT, prompt="é" * 100)
    assert (text.tokens, text.size) == (0, 200)
    assert read(TEXT, prompt=["ab", "cde"]).size == 5


def test_blocks_are_equal_as_far_as_prompts_are() -> None:
    system = "You are kind. " * 100
    one, other = read(TEXT, prompt=system + "Hi"), read(TEXT, prompt=system + "Who are you?")
    assert len(one.blocks) == len(system + "Hi") // 256
    assert common(one, other) == len(system) // 256
    assert common(one, read(TEXT, prompt="x" + system)) == 0
    assert common(one, read(TEXT, prompt=system + "Hi", model="b")) == 0
    assert one.head == other.head
    assert 0 <= one.head <= LARGEST_NAME
    assert read(TEXT, prompt="").head == -1
    ids = read(TEXT, prompt=list(range(200)))
    assert len(ids.blocks) == 200 // 64
    assert common(ids, read(TEXT, prompt=[*range(190), 0, 0])) == 2


def test_a_chat_goes_on_from_its_own_prefix() -> None:
    said = [{"role": "system", "content": "Be brief. " * 60}]
    said.append({"role": "user", "content": "a" * 400})
    first = read(CHAT, messages=said)
    answer = {"role": "assistant", "content": "b"}
    second = read(CHAT, messages=[*said, answer, {"role": "user", "content": "c" * 300}])
    assert common(first, second) == len(first.blocks) > 0
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief. " * 60}]}, said[1]]
    assert read(CHAT, messages=parts).blocks == first.blocks
    assert common(read(CHAT, messages=said, tools=[{"type": "function"}]), first) == 0
    swapped = [{**said[0], "role": "user"}, said[1]]
    assert common(read(CHAT, messages=swapped), first) == 0


def test_blocks_are_left_out_where_nobody_wants_them() -> None:
    body = json.dumps({"prompt": "a" * 1000}).encode()
    prompt = read_prompt(TEXT, body, 1_000_000, blocks=False)
    assert (prompt.blocks, prompt.head, prompt.size) == ((), -1, 1000)


def test_what_is_too_large_to_read_counts_by_its_size() -> None:
    prompt = read_prompt(TEXT, b"{" * 100, 99, blocks=True)
    assert (prompt.size, prompt.tokens, prompt.blocks) == (100, 0, ())


@pytest.mark.parametrize("body", [b"", b"3", b"null", b'"a"', b"{]", b"[" * 10_000, b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(HttpError, match="must be a JSON object") as caught:
        read_prompt(TEXT, body, 1_000_000, blocks=True)
    assert caught.value.status == 400


def test_tokens_per_byte_are_learned_by_model() -> None:
    rates = TokenRates()
    english, numbers = Prompt("a", size=4000), Prompt("b", size=4000)
    assert rates.tokens(english) == 1000
    for _ in range(100):
        rates.learn(english, 900)
        rates.learn(numbers, 2000)
    assert rates.tokens(english) == pytest.approx(900, rel=0.01)
    assert rates.tokens(numbers) == pytest.approx(2000, rel=0.01)
    assert rates.tokens(Prompt("c", size=0)) == 1
    assert rates.tokens(Prompt("a", tokens=77)) == 77


def test_nothing_is_learned_of_what_was_counted_and_no_client_fills_the_memory() -> None:
    rates = TokenRates()
    rates.learn(Prompt("a", tokens=10), 500)
    rates.learn(Prompt("", size=10), 5)
    rates.learn(Prompt("b", size=10), 0)
    assert rates._rates == {}
    rates.learn(Prompt("short", size=1), 400)
    assert rates.rate("short") <= 1
    for index in range(1000):
        rates.learn(Prompt(str(index), size=100), 30)
    assert len(rates._rates) <= 256


def test_usage_is_read_from_the_end_of_both_forms() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    whole = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()
    assert read_usage(whole) == Usage(12, 34, None)
    details = {**usage, "prompt_tokens_details": {"cached_tokens": 8}}
    stream = b'data: {"usage": null}\n\ndata: ' + json.dumps({"usage": details}).encode()
    assert read_usage(stream + b"\n\ndata: [DONE]\n\n") == Usage(12, 34, 8)
    assert read_usage(b'{"usage": null}') == Usage()
    assert read_usage(b"") == Usage()


def test_text_of_a_model_is_not_taken_for_usage() -> None:
    lie = '{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
    assert read_usage(json.dumps({"choices": [{"text": lie}]}).encode()) == Usage()
