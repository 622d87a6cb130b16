"""Tokens of bytes: equal beginnings have equal blocks, and an answer can be read back."""

import numpy as np
import pytest

from llmroute_gym.mock.prompts import Prompt

SIZE = 16


def shared(one: Prompt, other: Prompt, blocks: int) -> int:
    """The leading blocks whose names are equal."""
    pairs = zip(one.leading(blocks, SIZE)[:blocks], other.leading(blocks, SIZE), strict=False)
    return sum(np.cumprod([a == b for a, b in pairs]).tolist())


def test_blocks_are_those_of_equal_beginnings() -> None:
    text = bytes(range(256)) * 2
    one, same = Prompt.of_texts([text], 4), Prompt.of_texts([text], 4)
    longer, other = Prompt.of_texts([text + b"more"], 4), Prompt.of_texts([b"x" + text[1:]], 4)
    late = Prompt.of_texts([text[:300] + b"x" + text[301:]], 4)
    assert (one.tokens, longer.tokens) == (128, 129)
    assert shared(one, same, 8) == 8
    assert shared(one, longer, 8) == 8
    assert shared(one, other, 8) == 0
    assert shared(one, late, 8) == 300 // (4 * SIZE)
    assert shared(one, Prompt.of_texts([text], 4, salt="s"), 8) == 0


def test_texts_begin_tokens_of_their_own() -> None:
    assert Prompt.of_texts([b"abcde", b"f"], 4).tokens == 3
    assert Prompt.of_texts([b"abcdef"], 4).tokens == 2
    assert Prompt.of_texts([], 4).tokens == 0


def test_an_answer_that_comes_back_is_found() -> None:
    first = [b"<|user|>", b"how are you", b"<|assistant|>"]
    prompt = Prompt.of_texts(first, 4)
    answer = b"".join(prompt.answer.token(index) for index in range(100))
    again = Prompt.of_texts([*first, answer, b"<|user|>", b"and now"], 4)
    blocks = (prompt.tokens + 100) // SIZE
    assert shared(prompt, again, blocks) == blocks


def test_ids_are_tokens() -> None:
    one, other = Prompt.of_ids(range(64)), Prompt.of_ids([*range(60), 9, 9, 9, 9])
    assert one.tokens == 64
    assert shared(one, other, 4) == 3


@pytest.mark.parametrize("token_bytes", [1, 4, 7])
def test_words_have_the_bytes_of_a_token_and_need_no_escape(token_bytes: int) -> None:
    answer = Prompt.of_texts([b"x"], token_bytes).answer
    words = [answer.token(index) for index in range(500)]
    assert {len(word) for word in words} == {token_bytes}
    assert all(word.isascii() and word.strip().isalpha() for word in words)
    assert len(set(words)) > (10 if token_bytes == 1 else 300)


def test_lengths_are_drawn_by_prompt_and_seed() -> None:
    answers = [Prompt.of_ids([index]).answer for index in range(4000)]
    lengths = [answer.length(50.0, seed=1) for answer in answers]
    assert lengths == [answer.length(50.0, seed=1) for answer in answers]
    assert lengths != [answer.length(50.0, seed=2) for answer in answers]
    assert min(lengths) == 1
    assert np.mean(lengths) == pytest.approx(50, rel=0.06)
    assert answers[0].length(1.0, seed=1) == 1
