"""What engines say of an answer's tokens, read from its last bytes."""

import re
from typing import NamedTuple

TAIL_BYTES = 8_192
"""The last ones of an answer, in which its usage stands."""

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})\b')
_OUTPUT = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})\b')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})\b')


class Usage(NamedTuple):
    """Tokens as an engine counted them; None where it does not tell."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


def read_usage(tail: bytes) -> Usage:
    """Returns the last usage of an answer.

    Text that a model wrote cannot pass for it: in JSON its quotes are escaped.

    Args:
        tail: the end of the answer.
    """
    places = [found.end() for found in _USAGE.finditer(tail)]
    if not places:
        return Usage()
    said = tail[places[-1] :]
    return Usage(*(int(found[1]) if (found := one.search(said)) else None for one in _FIELDS))


_FIELDS = (_PROMPT, _OUTPUT, _CACHED)
