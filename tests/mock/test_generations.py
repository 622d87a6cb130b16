"""Bodies of requests, read as vLLM does."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from llmroute_gym.http.heads import HttpError
from llmroute_gym.mock.generations import Generation, Terms, chat_completion, completion
from llmroute_gym.sim import FormulaBatchTime, Replica

ONE_S = FormulaBatchTime(c0=1.0, c1=0.0, n0=0.0, c2=0.0, c3=0.0)
TERMS = Terms("m", Replica(ONE_S, scheduler="vllm_v1", max_model_len=1000), 4, None, 0)
ENDING = Terms("m", Replica(ONE_S), 4, 20.0, 0)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("eight by", 2), ("nine byte", 3), (["one"], 1), ([5, 6, 7], 3), ([[5, 6, 7]], 3), ("é", 1)],
)
def test_prompts_have_tokens(prompt: Any, tokens: int) -> None:
    assert completion(body(prompt=prompt), TERMS).prompt.tokens == tokens


def test_a_chat_is_all_its_messages_in_order() -> None:
    one = chat_completion(body(messages=CHAT), TERMS)
    assert one.chat
    assert one.prompt.tokens == sum((3, 3, 2, 1, 4))
    parts = [{"type": "text", "text": "Be brief."}]
    same = chat_completion(body(messages=[{"role": "system", "content": parts}, CHAT[1]]), TERMS)
    assert same.prompt.leading(3, 4) == one.prompt.leading(3, 4)
    other = chat_completion(body(messages=CHAT[::-1]), TERMS)
    assert other.prompt.leading(3, 4) != one.prompt.leading(3, 4)


def test_lengths_follow_the_request() -> None:
    assert completion(body(prompt="x"), TERMS).output_tokens == 16
    assert completion(body(prompt="x", max_tokens=3), TERMS).output_tokens == 3
    whole = chat_completion(body(messages=CHAT), TERMS)
    assert whole.output_tokens == 1000 - whole.prompt.tokens
    assert chat_completion(body(messages=CHAT, max_tokens=9), TERMS).output_tokens == 9
    fields = {"max_tokens": 9, "max_completion_tokens": 7}
    assert chat_completion(body(messages=CHAT, **fields), TERMS).output_tokens == 7
    assert not whole.stopped


def test_answers_that_end_by_themselves() -> None:
    drawn = [completion(body(prompt=[i], max_tokens=60), ENDING) for i in range(300)]
    assert {one.stopped for one in drawn} == {True, False}
    assert all(one.output_tokens == 60 for one in drawn if not one.stopped)
    assert 10 < sum(one.output_tokens for one in drawn) / 300 < 30
    for i in range(100):
        least = completion(body(prompt=[i], max_tokens=60, min_tokens=30), ENDING)
        assert 30 <= least.output_tokens <= 60
        forced = completion(body(prompt=[i], max_tokens=60, ignore_eos=True), ENDING)
        assert (forced.output_tokens, forced.stopped) == (60, False)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"9" * 5000, "must be JSON"),
        (b"\xff", "must be JSON"),
        (b"[1]", r"must be a JSON object, got \[1\]"),
        (body(), "prompt must be one text or one list of token ids, got None"),
        (body(prompt=["a", "b"]), "prompt must be one text"),
        (body(prompt=[1, "b"]), "prompt must be one text"),
        (body(prompt=[-1]), "prompt must be one text"),
        (body(prompt=[2**32]), "prompt must be one text"),
        (body(prompt=[1.0]), "prompt must be one text"),
        (body(prompt=[[1], [2]]), "prompt must be one text"),
        (body(prompt=""), "at least one token"),
        (body(prompt=[]), "at least one token"),
        (body(prompt="x", max_tokens=0), "max_tokens must be an integer of at least 1, got 0"),
        (body(prompt="x", max_tokens="3"), "max_tokens must be an integer of at least 1, got '3'"),
        (body(prompt="x", max_tokens=1e3), "max_tokens must be an integer"),
        (body(prompt="x", max_tokens=2**31), "max_tokens must be an integer"),
        (body(prompt="x", max_tokens=4, min_tokens=5), r"at most max_tokens \(4\), got 5"),
        (body(prompt="x", max_tokens=1000), "maximum context length is 1000 tokens"),
        (body(prompt="x" * 4000), "maximum context length is 1000 tokens"),
        (body(prompt="x", stream="yes"), "stream must be true or false, got 'yes'"),
        (body(prompt="x", stream_options={}), "only be defined when `stream=True`"),
        (body(prompt="x", stream=True, stream_options=[]), "stream_options must be an object"),
        (body(prompt="x", n=2), "n must be 1, got 2"),
        (body(prompt="x", cache_salt=3), "cache_salt must be a text, got 3"),
    ],
)
def test_what_cannot_be_served_gets_400(sent: bytes, words: str) -> None:
    with pytest.raises(HttpError, match=words) as error:
        completion(sent, TERMS)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", [1], [{}], [{"role": 1}], [{"role": "user", "content": [{"type": "image"}]}]],
)
def test_what_is_no_chat_gets_400(messages: Any) -> None:
    with pytest.raises(HttpError, match=r"message|content") as error:
        chat_completion(body(messages=messages), TERMS)
    assert error.value.status == 400


def test_another_model_gets_404() -> None:
    assert completion(body(prompt="x", model="m"), TERMS).prompt.tokens == 1
    with pytest.raises(HttpError, match="The model 'other' does not exist") as error:
        completion(body(prompt="x", model="other"), TERMS)
    assert error.value.status == 404


def test_a_prompt_that_no_batch_can_take_gets_400() -> None:
    terms = Terms("m", Replica(ONE_S, scheduler="prefill_first", max_batched_tokens=50), 4, None, 0)
    with pytest.raises(HttpError, match="exceed max_batched_tokens"):
        completion(body(prompt=list(range(60))), terms)


FIELDS = {
    **{"model": "m", "n": 1, "prompt": [1, 2, 3], "messages": CHAT, "max_tokens": 9},
    **{"max_completion_tokens": 9, "min_tokens": 2, "ignore_eos": True, "stream": True},
    **{"stream_options": {"include_usage": True}, "cache_salt": "s"},
}
ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**64,
        10**400,
        0.5,
        math.nan,
        math.inf,
        "",
        "9",
        "\ud800",
    ),
    *([], [None], [[]], [""], [0.5], [{}], {}, {"include_usage": 3}, {"role": None}),
    *([{"role": "user", "content": odd}] for odd in (3, {}, [3], [{"text": 3}], "\ud800", None)),
)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("parse", [completion, chat_completion])
def test_whatever_a_field_is_the_request_is_served_or_refused(
    name: str, parse: Callable[[bytes, Terms], Generation]
) -> None:
    for odd in ODD:
        try:
            made = parse(body(**FIELDS | {name: odd}), TERMS)
        except HttpError:
            continue
        assert 1 <= made.output_tokens <= 1000 - made.prompt.tokens
        made.prompt.leading(made.prompt.tokens // 4, 4)
