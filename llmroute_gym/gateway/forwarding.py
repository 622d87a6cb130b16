"""One request on its way: where it is tried, what comes back, how it ends."""

import math
from collections import deque
from collections.abc import Callable
from time import perf_counter

from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.deciding import Arrival
from llmroute_gym.gateway.prompts import Prompt
from llmroute_gym.gateway.record import Record
from llmroute_gym.gateway.shared import Shared
from llmroute_gym.gateway.upstream import Upstream
from llmroute_gym.gateway.usage import TAIL_BYTES, Usage, read_usage
from llmroute_gym.gateway.wire import STREAM, answer_headers, cut_event, request_bytes
from llmroute_gym.http.heads import AnswerHead, HttpError, RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.sim.request_log import SERVED, LoggedRequest

ELSEWHERE = frozenset((429, 502, 503))
"""Answers after which another backend is tried."""
BUSY = 429
"""The one of them that is no failure."""
TAIL_PIECES = 4
"""The last pieces of an answer, in which its usage stands."""
AGAIN = [(b"retry-after", b"1")]


class Forwarding:
    """Sends a request to a backend, to another one if it does not begin to answer, and relays.

    An answer has begun for the client with the first byte of its body; until then another backend
    may be tried, from then on an answer that breaks off is cut.

    Args:
        shared: of all requests.
        request: its head.
        body: its bytes.
        responder: of the client.
        prompt: what routing goes by; None for a request that is routed by nobody, such as for the
            list of models.
        arrival: the same as the router is told.
    """

    def __init__(
        self,
        shared: Shared,
        request: RequestHead,
        body: bytes,
        responder: Responder,
        prompt: Prompt | None = None,
        arrival: Arrival | None = None,
    ) -> None:
        self._shared = shared
        self._request, self._body, self._responder = request, body, responder
        self._prompt, self._arrival = prompt, arrival
        self._tokens = arrival.prompt_tokens if arrival is not None else 0
        self._key = next(shared.keys)
        self._arrived_s = perf_counter()
        self._sent_s = self._arrived_s
        self._deadline_s = math.inf
        self._last_s = self._arrived_s + shared.settings.timeouts.whole_s
        self._tried: set[int] = set()
        self._backend: Backend | None = None
        self._trial = False
        self._call_off: Callable[[], object] | None = None
        self._connection: Upstream | None = None
        self._refusal: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._head: AnswerHead | None = None
        self._streams = False
        self._begun = False
        self._first_token_s: float | None = None
        self._events = 0
        self._tail: deque[bytes] = deque(maxlen=TAIL_PIECES)
        responder.on_disconnect = self._leave
        responder.on_pause = self._pause
        responder.on_resume = self._resume

    def start(self) -> None:
        """Sends it to the first backend."""
        self._shared.live.add(self)
        self._try()

    # The backend's side.

    def _try(self) -> None:
        """Sends it to a backend that has not had it, or gives up."""
        shared, now_s = self._shared, perf_counter()
        allowed = shared.allowed(self._tried)
        if len(self._tried) > shared.settings.retry.others or not allowed.any():
            self._give_up()
            return
        if self._arrival is None:
            usable = [one for one in shared.backends if allowed[one.index]]
            backend = min(usable, key=lambda one: one.in_flight)
        else:
            backend = shared.backends[shared.chooser.choose(self._arrival, allowed, now_s)]
            shared.chooser.placed(self._key, self._arrival, backend.index, now_s)
        self._backend, self._sent_s = backend, now_s
        self._trial = shared.place(backend, self._tokens)
        self._tried.add(backend.index)
        self._open(backend.pool.take())

    def _open(self, connection: Upstream | None) -> None:
        """Sends it over a connection, a new one if there is none."""
        assert self._backend is not None
        if connection is None:
            self._call_off = self._backend.pool.connect(self._connected, self._unreachable)
        else:
            self._connected(connection)

    def _connected(self, connection: Upstream) -> None:
        assert self._backend is not None
        self._call_off = None
        self._connection = connection
        now_s = perf_counter()
        self._shared.overhead.add(now_s - self._arrived_s)
        self._deadline_s = now_s + self._shared.settings.timeouts.first_byte_s
        connection.send(
            request_bytes(self._request, self._body, self._backend, own_key=self._shared.own_key),
            self,
        )

    def _unreachable(self, reason: str) -> None:
        assert self._backend is not None
        self._call_off = None
        self._backend.broke(reason, self._sent_s)
        self._try_elsewhere("connect")

    def on_head(self, head: AnswerHead) -> None:
        """Takes the head of an answer, unless another backend is asked instead."""
        assert self._backend is not None
        assert self._connection is not None
        retry = self._shared.settings.retry
        if head.status in ELSEWHERE or (head.status == 500 and retry.retry_500):
            if head.status != BUSY:
                self._backend.failed(f"it answered {head.status}", self._sent_s)
            self._refusal = (head.status, answer_headers(head, ("retry-after",)))
            if len(self._tried) <= retry.others and self._shared.allowed(self._tried).any():
                connection, self._connection = self._connection, None
                connection.drop()
                self._try_elsewhere(str(head.status))
                return
        else:
            self._backend.answered(trial=self._trial)
        self._head = head
        self._streams = (head.get(b"content-type") or b"").lower().startswith(STREAM)
        self._deadline_s = perf_counter() + self._shared.settings.timeouts.between_s

    def on_body(self, content: bytes) -> None:
        """Relays a piece of the answer."""
        now_s = perf_counter()
        self._take(content, now_s)
        self._deadline_s = now_s + self._shared.settings.timeouts.between_s
        self._responder.write(content)

    def on_end(self, content: bytes) -> None:
        """Relays the last piece, and ends the answer as its backend did."""
        assert self._head is not None
        assert self._backend is not None
        self._connection = None
        self._take(content, perf_counter())
        served = self._head.status < 400
        if served and self._arrival is not None:
            self._backend.served()
        self._responder.end(content)
        self._finish(SERVED if served else "refused", self._head.status)

    def _take(self, content: bytes, now_s: float) -> None:
        """Notes a piece of the answer that is about to be relayed."""
        if not self._begun:
            self._begin()
        if self._streams:
            self._events += content.count(b"\n\n")
            if self._first_token_s is None and b"data:" in content:
                self._note_first_token(now_s)
        self._tail.append(content)

    def on_broken(self, reason: str) -> None:
        """Tries again where nothing has been relayed, else cuts the answer."""
        assert self._backend is not None
        assert self._connection is not None
        connection, self._connection = self._connection, None
        if self._begun:
            self._backend.failed(reason, self._sent_s)
            self._cut("broken")
        elif connection.reused and connection.untouched:
            # The engine may have closed it as idle while the request was on its way.
            self._open(None)
        else:
            self._backend.broke(reason, self._sent_s)
            self._try_elsewhere("reset")

    def _try_elsewhere(self, reason: str) -> None:
        self._shared.retries.add(reason)
        self._head = None
        self._withdraw()
        self._try()

    def _withdraw(self) -> None:
        """Takes it from its backend's books."""
        if self._backend is None:
            return
        begun = self._first_token_s is not None
        self._backend.left(self._tokens, begun=begun, trial=self._trial)
        self._backend, self._trial = None, False
        if self._arrival is not None and not begun:
            self._shared.chooser.withdrawn(self._key, perf_counter())

    # The client's side.

    def _begin(self) -> None:
        assert self._head is not None
        assert self._backend is not None
        self._begun = True
        headers = answer_headers(self._head)
        if self._shared.settings.show_backend:
            headers.append((b"x-llmroute-backend", self._backend.name.encode("ascii")))
        self._responder.start(self._head.status, headers, self._head.length)

    def _note_first_token(self, now_s: float) -> None:
        assert self._backend is not None
        self._first_token_s = now_s
        self._backend.first_token(self._tokens)
        self._shared.ttft.add(now_s - self._arrived_s)
        if self._arrival is not None:
            self._shared.chooser.first_token(self._key, now_s)

    def _give_up(self) -> None:
        """Tells the client that nobody answers."""
        if self._refusal is None:
            outcome = "failed" if self._tried else "rejected"
            self._refuse(outcome, HttpError(503, "no backend is available", AGAIN))
        else:
            status, headers = self._refusal
            self._refuse("refused", HttpError(status, "the backends refuse it", headers))

    def _refuse(self, outcome: str, error: HttpError) -> None:
        self._responder.refuse(error)
        self._finish(outcome, error.status)

    def _cut(self, reason: str) -> None:
        """Ends an answer so that no client takes it for a whole one."""
        assert self._head is not None
        self._shared.stream_errors.add(reason)
        if self._streams and self._head.status < 400:
            self._responder.write(cut_event(reason, b"".join(self._tail)[-4:]))
        self._responder.cut()
        self._finish("cut", self._head.status)

    def _stop(self) -> None:
        """Lets go of the backend, which stops to work on it."""
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort()

    def _leave(self) -> None:
        """Ends it, as its client has gone."""
        self._stop()
        self._shared.disconnects.add("streaming" if self._begun else "waiting")
        self._finish("left", 499)

    def _pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def _resume(self) -> None:
        self._deadline_s = perf_counter() + self._shared.settings.timeouts.between_s
        if self._connection is not None:
            self._connection.resume()

    def look(self, now_s: float) -> None:
        """Ends what has taken too long."""
        late = now_s > self._deadline_s and not self._responder.paused
        if late and self._backend is not None:
            # Its silence has lasted until now.
            self._backend.failed("an answer was timed out", now_s)
        if late or now_s > self._last_s:
            self._time_out("between_timeout" if late else "whole_timeout")

    def end_now(self) -> None:
        """Ends it, as the gateway ends."""
        self._stop()
        if self._begun:
            self._cut("shutdown")
        else:
            self._refuse("failed", HttpError(503, "the gateway ends", AGAIN))

    def _time_out(self, reason: str) -> None:
        self._stop()
        if self._begun:
            self._cut(reason)
        else:
            self._refuse("failed", HttpError(504, "the backend did not answer in time"))

    def _finish(self, outcome: str, status: int) -> None:
        """Closes all books."""
        shared, now_s = self._shared, perf_counter()
        shared.live.discard(self)
        self._deadline_s = self._last_s = math.inf
        name = "" if self._backend is None else self._backend.name
        shared.requests.add(name, str(status))
        served = outcome == SERVED
        if served:
            shared.e2e.add(now_s - self._arrived_s)
        usage = self._count_tokens(served)
        if self._arrival is not None:
            if self._tried:
                shared.chooser.ended(self._key, now_s, served=served)
            else:
                shared.chooser.rejected(now_s)
            if shared.record is not None:
                self._write(shared.record, name, outcome, usage, now_s)
        if self._backend is not None:
            begun = self._first_token_s is not None
            self._backend.left(self._tokens, begun=begun, trial=self._trial)
            self._backend = None

    def _count_tokens(self, served: bool) -> Usage:
        if not served or self._prompt is None:
            return Usage()
        usage = read_usage(b"".join(self._tail)[-TAIL_BYTES:])
        if usage.prompt_tokens:
            if not self._prompt.tokens:
                self._shared.tokens_ratio.add(self._tokens / usage.prompt_tokens)
            self._shared.rates.learn(self._prompt, usage.prompt_tokens)
        return usage

    def _write(
        self, record: Record, backend: str, outcome: str, usage: Usage, now_s: float
    ) -> None:
        assert self._arrival is not None
        least = 1 if outcome == SERVED else 0
        first_s = self._first_token_s
        output = usage.output_tokens
        if output is None:
            output = self._events - 1 if outcome == SERVED else self._events
        prompt = max(usage.prompt_tokens or self._tokens, least)
        cached = usage.cached_tokens
        session = self._arrival.session
        record.add(
            LoggedRequest(
                arrived_at_s=record.clock(self._arrived_s),
                backend=backend,
                prompt_tokens=prompt,
                output_tokens=max(output, least),
                cached_tokens=None if cached is None else min(cached, prompt),
                first_token_at_s=None if first_s is None else record.clock(first_s),
                ended_at_s=record.clock(now_s),
                outcome=outcome,
                session=None if session < 0 else session,
            )
        )
