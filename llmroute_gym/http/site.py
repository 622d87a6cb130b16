"""What all connections of a server share: routes, limits and counts."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from llmroute_gym.config import HttpLimits, HttpTimeouts
from llmroute_gym.http.heads import HttpError, RequestHead
from llmroute_gym.http.responder import Responder

Handler = Callable[[RequestHead, bytes, Responder], None]
"""Answers a request, now or later, once its body is complete; what it raises ends in 500."""
Routes = Mapping[str, Mapping[str, Handler]]
"""Path to method to handler; HEAD is answered by GET's."""


class Watched(Protocol):
    """A connection as its server sees it."""

    def look(self, now_s: float) -> None:
        """Ends what has taken too long."""

    def wind_up(self) -> None:
        """Closes, after the answer to a request that is under way."""

    def abort(self) -> None:
        """Closes at once."""


class Site:
    """Routes, limits and counts.

    Args:
        routes: what is served.
        limits: of requests.
        timeouts: of clients.
        gate: called with each head of a known route before its body is read; raises `HttpError` to
            refuse it.
        lengths: whether a POST without a length is refused; else it has no body.

    Attributes:
        connections: that are open.
        held_bytes: of bodies that are read or answered.
        refused: status to how many requests were refused before a handler saw them.
        stopping: whether each answer is the last one of its connection.
    """

    def __init__(
        self,
        routes: Routes,
        limits: HttpLimits,
        timeouts: HttpTimeouts,
        gate: Callable[[RequestHead], None] | None,
        lengths: bool,
    ) -> None:
        self.limits = limits
        self.timeouts = timeouts
        self.connections: set[Watched] = set()
        self.held_bytes = 0
        self.refused: Counter[int] = Counter()
        self.stopping = False
        self._routes = routes
        self._gate = gate
        self._lengths = lengths

    def handler(self, head: RequestHead) -> Handler:
        """Returns who answers a request.

        Raises:
            HttpError: nobody does, or the gate refuses it.
        """
        methods = self._routes.get(head.path)
        if methods is None:
            raise HttpError(404, "there is nothing at this path")
        found = methods.get("GET" if head.method == "HEAD" else head.method)
        if found is None:
            allowed = {*methods, "HEAD"} if "GET" in methods else methods
            raise HttpError(
                405,
                "the method is not one of this path",
                [(b"allow", ", ".join(sorted(allowed)).encode("ascii"))],
            )
        if self._lengths and not head.framed and head.method in ("POST", "PUT", "PATCH"):
            raise HttpError(411, "a request with a body must tell its length")
        if self._gate is not None:
            self._gate(head)
        return found

    def hold(self, size: int) -> None:
        """Counts bytes of a body, which are negative when they are let go.

        Raises:
            HttpError: all bodies together are too large.
        """
        if size > 0 and self.held_bytes + size > self.limits.bodies_bytes:
            raise HttpError(503, "too many requests are held", [(b"retry-after", b"1")])
        self.held_bytes += size
