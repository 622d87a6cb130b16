"""What an engine is made to do wrong, for tests of what stands before it."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llmroute_gym.errors import shown
from llmroute_gym.http.heads import HttpError

Span = tuple[float | None, float, float]
"""Default of a number, and the least and the most that it may be."""
ANY = 1e9
FAULTS: dict[str, dict[str, Span]] = {
    "status": {"status": (500, 400, 599), "retry_after": (1, 0, ANY)},
    "delay": {"seconds": (1, 0, ANY)},
    "stall": {"after_tokens": (1, 0, ANY)},
    "reset": {"after_tokens": (0, 0, ANY)},
    "slow": {"factor": (2, 1e-3, 1e6)},
    "sick": {},
}
"""Name of a fault to its options.

- status: a request is answered so at once, 429 and 503 with Retry-After
- delay: a request is taken in so many seconds late
- stall: no more of an answer comes after so many tokens
- reset: the connection is reset after so many tokens, at 0 before the first byte
- slow: every step takes so many times as long
- sick: ``/health`` and ``/ping`` say 503
"""
BEFALLEN: dict[str, Span] = {"share": (1, 0, 1), "requests": (None, 1, ANY)}
"""Which requests a fault befalls: a share of them, and so many at the most."""
LASTING = ("slow", "sick")
"""Those that are no matter of single requests."""


class Faults:
    """The faults at present.

    Args:
        seed: of which requests they befall.

    Attributes:
        present: name to options.
        hits: name to how many requests it has befallen.
    """

    def __init__(self, seed: int = 0) -> None:
        self.present: dict[str, dict[str, float | None]] = {}
        self.hits: Counter[str] = Counter()
        self._draw = random.Random(seed)

    def order(self, body: bytes) -> None:
        """Changes what is wrong.

        Args:
            body: JSON: ``fault``, a name of `FAULTS`, which is added or replaced, and numbers of
                its options and of `BEFALLEN`; or ``none``, which mends all.

        Raises:
            HttpError: it is malformed; nothing is changed.
        """
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, "the body must be JSON") from error
        name = fields.pop("fault", None) if isinstance(fields, dict) else None
        if name == "none" and not fields:
            self.present.clear()
            return
        if not isinstance(name, str) or name not in FAULTS:
            known = ", ".join((*FAULTS, "none"))
            raise HttpError(400, f"fault must be one of {known}, got {shown(name)}")
        options = FAULTS[name] if name in LASTING else {**FAULTS[name], **BEFALLEN}
        for key in fields:
            if key not in options:
                listed = ", ".join(options) or "no option"
                raise HttpError(400, f"{name} takes {listed}, got {shown(key)}")
        self.present[name] = {
            key: _number(key, fields.get(key, usual), usual, low, high)
            for key, (usual, low, high) in options.items()
        }

    def befall(self, name: str) -> Mapping[str, Any] | None:
        """Returns a fault's options if it befalls the request at hand, which is counted."""
        options = self.present.get(name)
        if options is None:
            return None
        share, requests = options["share"], options["requests"]
        if share is not None and share < 1 and self._draw.random() >= share:
            return None
        self.hits[name] += 1
        if requests is not None:
            options["requests"] = requests - 1
            if requests <= 1:
                del self.present[name]
        return options

    def text(self) -> bytes:
        """Returns all that is wrong, and how often it struck, as JSON."""
        return json.dumps({"faults": self.present, "hits": self.hits}).encode()


def _number(key: str, value: Any, usual: float | None, low: float, high: float) -> float | None:
    if value is None and usual is None:
        return None
    if type(value) not in (int, float) or not low <= value <= high:
        raise HttpError(400, f"{key} must be a number from {low:g} to {high:g}, got {shown(value)}")
    return float(value)
