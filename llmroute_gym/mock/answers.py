"""A generation as it is answered: JSON in vLLM's words, whole or as a stream of events."""

import json
from typing import Any

from llmroute_gym.mock.generations import Generation

DONE = b"data: [DONE]\n\n"
ERRORS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError"}
"""Status to the type of an error."""


class AnswerWriter:
    """The texts of one answer.

    Args:
        generation: that is answered.
        name: of the answer, unique; without escapes in JSON, as all that is put together here.
        model: the served name.
        created: seconds since 1970.

    Attributes:
        cached_tokens: of the prompt; known once the first token is out.
    """

    def __init__(self, generation: Generation, name: str, model: str, created: int) -> None:
        self._generation = generation
        self.cached_tokens = 0
        prefix, kind = ("chatcmpl", "chat.completion") if generation.chat else _PLAIN
        chunk = f"{kind}.chunk" if generation.chat else kind
        identity = {"id": f"{prefix}-{name}", "object": kind, "created": created, "model": model}
        self._whole: dict[str, Any] = identity
        self._chunk: dict[str, Any] = {**identity, "object": chunk}
        # What most events consist of, so that they need no JSON of their own.
        common = self._event(self._said(_MARK), None, 0)
        self._head, self._tail = common.split(_MARK.encode())

    def event(self, told: int, tokens: int) -> bytes:
        """Returns what a stream says as tokens come out.

        Args:
            told: output tokens before these.
            tokens: output tokens that are out.
        """
        generation = self._generation
        text = self._text(told, tokens)
        last = tokens == generation.output_tokens
        if not last and not generation.running_usage and (told or not generation.chat):
            return b"%b%b%b" % (self._head, text, self._tail)
        events = []
        if not told and generation.chat:
            events.append(self._event({"delta": {"role": "assistant", "content": ""}}, None, 0))
        reason = self._reason() if last else None
        events.append(self._event(self._said(text.decode()), reason, tokens))
        if last and generation.usage:
            events.append(_data({**self._chunk, "choices": [], "usage": self._usage(tokens)}))
        return b"".join(events) + (DONE if last else b"")

    def whole(self) -> bytes:
        """Returns the body of an answer in one piece."""
        tokens = self._generation.output_tokens
        text = self._text(0, tokens).decode()
        message = {"role": "assistant", "content": text}
        said: dict[str, Any] = {"message": message} if self._generation.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self._reason()}
        return _json({**self._whole, "choices": [choice], "usage": self._usage(tokens)})

    def _said(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._generation.chat else {"text": text}

    def _event(self, said: dict[str, Any], reason: str | None, tokens: int) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        event: dict[str, Any] = {**self._chunk, "choices": [choice]}
        if self._generation.running_usage:
            event["usage"] = self._usage(tokens)
        return _data(event)

    def _text(self, told: int, tokens: int) -> bytes:
        answer = self._generation.prompt.answer
        if tokens == told + 1:
            return answer.token(told)
        return b"".join([answer.token(index) for index in range(told, tokens)])

    def _reason(self) -> str:
        return "stop" if self._generation.stopped else "length"

    def _usage(self, tokens: int) -> dict[str, Any]:
        prompt = self._generation.prompt.tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


_PLAIN = ("cmpl", "text_completion")
_MARK = "<the text>"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _data(event: object) -> bytes:
    return b"data: %b\n\n" % _json(event)
