"""What a gateway takes from a request's body, for routing only: the bytes go on as they are."""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmroute_gym.http.heads import HttpError

BLOCK_BYTES = 256
"""Of text; a block of token ids has as many, at four bytes each."""
ID_BYTES = 4
HEAD_BLOCKS = 4
"""Blocks that stand for the first 256 tokens."""
LARGEST_NAME = 2**53 - 1
"""Names go into rows of float64."""
TOKENS_PER_BYTE = 0.25
"""Where nothing is known yet; right within a fifth for English text and for code."""
NEWEST = 0.05
"""Weight of the newest answer in what is known of a model."""
MOST_MODELS = 256
"""Models whose rates are kept; a client may name any."""


@dataclass(slots=True)
class Prompt:
    """What routing goes by.

    Attributes:
        model: as the request names it.
        tokens: exact count, of a prompt of token ids; else 0.
        size: bytes of the text.
        blocks: a name of each full block, which stands for all before it too, and for the model.
        head: a name of the prompt's beginning, -1 if nothing is known of it.
    """

    model: str
    tokens: int = 0
    size: int = 0
    blocks: tuple[int, ...] = ()
    head: int = -1


def read_prompt(path: str, body: bytes, limit: int, *, blocks: bool) -> Prompt:
    """Returns what routing goes by.

    Args:
        path: of the endpoint.
        body: of the request.
        limit: bytes beyond which a body is not read, but counts by its size.
        blocks: whether blocks and head are wanted.

    Raises:
        HttpError: the body is no JSON object.
    """
    if len(body) > limit:
        return Prompt("", size=len(body))
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(400, "the body must be a JSON object") from None
    if not isinstance(fields, dict):
        raise HttpError(400, "the body must be a JSON object")
    model = fields.get("model")
    model = model if isinstance(model, str) else ""
    if path.endswith("/chat/completions"):
        content, tokens = "".join(_messages(fields)).encode("utf-8", "replace"), 0
    else:
        content, tokens = _content(fields.get("prompt"))
    prompt = Prompt(model, tokens, 0 if tokens else len(content))
    if blocks:
        _name_blocks(prompt, content)
    return prompt


def _messages(fields: dict[str, Any]) -> Iterable[str]:
    """Yields the text of a chat in its order."""
    if "tools" in fields:
        yield json.dumps(fields["tools"])
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        yield f"\n{message.get('role')}:"
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    yield part["text"]


def _content(prompt: Any) -> tuple[bytes, int]:
    """Returns the bytes of a prompt, and how many tokens it has if it is made of token ids."""
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "replace"), 0
    if not isinstance(prompt, list) or not prompt:
        return b"", 0
    if isinstance(prompt[0], int):
        try:
            return array("I", prompt).tobytes(), len(prompt)
        except (TypeError, ValueError, OverflowError):
            return b"", 0  # for the engine to refuse
    parts = [_content(one) for one in prompt if isinstance(one, str | list)]
    return b"".join(content for content, _ in parts), sum(tokens for _, tokens in parts)


def _name_blocks(prompt: Prompt, content: bytes) -> None:
    """Names the full blocks; Python's own hash is keyed, so that no client can make two alike."""
    name, names = hash((prompt.model, bool(prompt.tokens))), []
    for start in range(0, len(content) - BLOCK_BYTES + 1, BLOCK_BYTES):
        name = hash((name, content[start : start + BLOCK_BYTES]))
        names.append(name)
    prompt.blocks = tuple(names)
    if content:
        whole = len(names) < HEAD_BLOCKS
        head = hash((prompt.model, content)) if whole else names[HEAD_BLOCKS - 1]
        prompt.head = head & LARGEST_NAME


class TokenRates:
    """How many tokens a byte has, by model, learned from what engines count."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def tokens(self, prompt: Prompt) -> int:
        """Returns the tokens of a prompt, at least 1: counted, or estimated."""
        if prompt.tokens:
            return prompt.tokens
        return max(1, round(prompt.size * self.rate(prompt.model)))

    def rate(self, model: str) -> float:
        """Returns the tokens per byte."""
        return self._rates.get(model, TOKENS_PER_BYTE)

    def learn(self, prompt: Prompt, tokens: int) -> None:
        """Takes over how many tokens an engine has counted."""
        if prompt.tokens or not prompt.size or tokens < 1 or not prompt.model:
            return
        if prompt.model not in self._rates and len(self._rates) >= MOST_MODELS:
            return
        # No tokenizer makes more tokens than bytes; a template adds some to a short prompt.
        seen = min(1.0, tokens / prompt.size)
        self._rates[prompt.model] = self.rate(prompt.model) * (1 - NEWEST) + seen * NEWEST
