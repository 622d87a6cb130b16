"""What a client asks for, read from the body of its request as vLLM reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmroute_gym.errors import shown
from llmroute_gym.http.heads import HttpError
from llmroute_gym.mock.prompts import Prompt
from llmroute_gym.sim.replica import Replica

COMPLETION_TOKENS = 16
"""Of a completion that does not say how many it wants."""


@dataclass(frozen=True)
class Terms:
    """What holds for all requests to an engine.

    Attributes:
        model: the name that it serves its model by.
        replica: its limits.
        token_bytes: of text.
        mean_output_tokens: of answers that end by themselves; None lets none of them.
        seed: of their lengths.
    """

    model: str
    replica: Replica
    token_bytes: int
    mean_output_tokens: float | None
    seed: int

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        return min(self.replica.max_model_len or 2**62, self.replica.longest_request)


@dataclass(frozen=True)
class Generation:
    """A request that the engine can serve.

    Attributes:
        prompt: its tokens.
        output_tokens: that will come out.
        stopped: whether the answer then ends by itself.
        chat: whether it is answered as a chat.
        streamed: whether each token is sent as it comes out.
        usage: whether a stream tells at its end how many there were.
        running_usage: whether it tells so with each token.
    """

    prompt: Prompt
    output_tokens: int
    stopped: bool
    chat: bool
    streamed: bool
    usage: bool
    running_usage: bool


def completion(body: bytes, terms: Terms) -> Generation:
    """Reads a request to complete a text.

    Raises:
        HttpError: it is malformed or cannot be served.
    """
    fields = _fields(body, terms)
    given, salt = fields.get("prompt"), _typed(fields, "cache_salt", str) or ""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    try:
        if isinstance(given, str):
            prompt = Prompt.of_texts([_encoded(given)], terms.token_bytes, salt)
        elif isinstance(given, list):
            prompt = Prompt.of_ids(given, salt)
        else:
            raise TypeError
    except (TypeError, OverflowError):
        asked = f"prompt must be one text or one list of token ids, got {shown(given)}"
        raise _bad(asked) from None
    return _generation(fields, prompt, _count(fields, "max_tokens") or COMPLETION_TOKENS, terms)


def chat_completion(body: bytes, terms: Terms) -> Generation:
    """Reads a request to go on with a chat.

    Raises:
        HttpError: it is malformed or cannot be served.
    """
    fields = _fields(body, terms)
    messages, salt = _typed(fields, "messages", list), _typed(fields, "cache_salt", str) or ""
    if not messages:
        raise _bad("messages must be a list of at least one message")
    texts = [text for message in messages for text in _message(message)]
    prompt = Prompt.of_texts([*texts, b"<|assistant|>"], terms.token_bytes, salt)
    wanted = _count(fields, "max_completion_tokens") or _count(fields, "max_tokens")
    return _generation(fields, prompt, wanted, terms, chat=True)


def _generation(
    fields: Mapping[str, Any], prompt: Prompt, most: int | None, terms: Terms, chat: bool = False
) -> Generation:
    longest = terms.longest
    if prompt.tokens == 0:
        raise _bad("the prompt must have at least one token")
    if prompt.tokens + (most or 1) > longest:
        raise _bad(
            f"This model's maximum context length is {longest} tokens. However, you requested "
            f"{most or 1} output tokens and your prompt contains {prompt.tokens} input tokens. "
            "Please reduce the length of the input prompt or the number of requested output tokens."
        )
    most = most or longest - prompt.tokens
    least = _count(fields, "min_tokens", at_least=0) or 0
    if least > most:
        raise _bad(f"min_tokens must be at most max_tokens ({most}), got {least}")
    drawn = most + 1
    if terms.mean_output_tokens is not None and not _flag(fields, "ignore_eos"):
        drawn = max(prompt.answer.length(terms.mean_output_tokens, terms.seed), least, 1)
    if (why := terms.replica.why_oversize(prompt.tokens, min(drawn, most))) is not None:
        raise _bad(why)
    streamed, options = _flag(fields, "stream"), _typed(fields, "stream_options", dict)
    if options is not None and not streamed:
        raise _bad("Stream options can only be defined when `stream=True`.")
    options = options or {}
    return Generation(
        prompt,
        min(drawn, most),
        drawn <= most,
        chat,
        streamed,
        _flag(options, "include_usage"),
        _flag(options, "continuous_usage_stats"),
    )


def _fields(body: bytes, terms: Terms) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad("the body must be JSON") from error
    if not isinstance(fields, dict):
        raise _bad(f"the body must be a JSON object, got {shown(fields)}")
    model = fields.get("model")
    if model is not None and model != terms.model:
        raise HttpError(404, f"The model {shown(model)} does not exist.")
    if fields.get("n") not in (None, 1):
        raise _bad(f"n must be 1, got {shown(fields['n'])}")
    return fields


def _message(message: object) -> list[bytes]:
    """Returns the texts of a message of a chat."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str):
        raise _bad(f"a message must be an object with a role, got {shown(message)}")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and _is_text(part)]
    if len(texts) < len(parts):
        raise _bad(f"content must be a text or a list of parts with a text, got {shown(content)}")
    return [_encoded(f"<|{role}|>"), *map(_encoded, texts)]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def _count(fields: Mapping[str, Any], name: str, at_least: int = 1) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or not at_least <= value < 2**31):
        raise _bad(f"{name} must be an integer of at least {at_least}, got {shown(value)}")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    return bool(_typed(fields, name, bool))


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise _bad(f"{name} must be {_KINDS[kind]}, got {shown(value)}")
    return value


_KINDS = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


def _bad(message: str) -> HttpError:
    return HttpError(400, message)
