"""vLLM's HTTP API before an engine, and the port that orders faults."""

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import count

from llmroute_gym.http.answers import JSON_TYPE, TEXT_TYPE, error_body
from llmroute_gym.http.heads import HttpError, RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.site import Handler, Routes
from llmroute_gym.mock.answers import DONE, ERRORS, AnswerWriter
from llmroute_gym.mock.engine import Clock, Engine
from llmroute_gym.mock.faults import Faults
from llmroute_gym.mock.generations import Generation, Terms, chat_completion, completion

VERSION = "0.32.0+mock"
"""Of the vLLM whose API it is."""
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class Api:
    """Answers requests.

    Args:
        terms: what holds for all requests.
        clock: whose time the engine generates in.

    Attributes:
        engine: that generates.
        faults: what it does wrong.
    """

    def __init__(self, terms: Terms, clock: Clock) -> None:
        self.engine = Engine(terms, clock)
        self.faults = Faults(terms.seed)
        self._terms = terms
        self._clock = clock
        self._started_at = int(time.time())
        self._names = count(1)

    def routes(self) -> Routes:
        """Returns what the engine's port serves."""
        healthy = {"GET": self._health}
        return {
            "/v1/completions": {"POST": partial(self._generate, completion)},
            "/v1/chat/completions": {"POST": partial(self._generate, chat_completion)},
            "/v1/models": {"GET": _json(self._models)},
            "/health": healthy,
            "/ping": {**healthy, "POST": self._health},
            "/version": {"GET": _json(lambda: {"version": VERSION})},
            "/load": {"GET": _json(lambda: {"server_load": len(self.engine)})},
            "/metrics": {"GET": self._metrics},
        }

    def fault_routes(self) -> Routes:
        """Returns what the fault port serves."""
        return {"/ctl": {"GET": self._tell_faults, "POST": self._order_fault}}

    def _generate(
        self,
        parse: Callable[[bytes, Terms], Generation],
        head: RequestHead,
        body: bytes,
        responder: Responder,
    ) -> None:
        if (wrong := self.faults.befall("status")) is not None:
            status = int(wrong["status"])
            again = (b"retry-after", b"%d" % wrong["retry_after"])
            headers = [again] if status in (429, 503) else []
            refuse(responder, HttpError(status, "this is a fault that was ordered", headers))
            return
        try:
            generation = parse(body, self._terms)
        except HttpError as error:
            refuse(responder, error)
            return
        name = f"mock-{next(self._names)}"
        writer = AnswerWriter(generation, name, self._terms.model, int(time.time()))
        exchange = _Exchange(self.engine, generation, writer, responder)
        reset, stall = self.faults.befall("reset"), self.faults.befall("stall")
        if reset is not None:
            exchange.reset_after = int(reset["after_tokens"])
        if stall is not None:
            exchange.stall_after = int(stall["after_tokens"])
        if (late := self.faults.befall("delay")) is not None:
            timer = self._clock.call_at(self._clock.now_s() + late["seconds"], exchange.begin)
            responder.on_disconnect = timer.cancel
        else:
            exchange.begin()

    def _health(self, head: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(503 if "sick" in self.faults.present else 200)

    def _metrics(self, head: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, self.engine.metrics().encode(), [TEXT_TYPE])

    def _models(self) -> object:
        model = {"id": self._terms.model, "object": "model", "created": self._started_at}
        more = {"owned_by": "vllm", "root": self._terms.model, "parent": None}
        limit = {"max_model_len": self._terms.longest}
        return {"object": "list", "data": [model | more | limit]}

    def _tell_faults(self, head: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, self.faults.text(), [JSON_TYPE])

    def _order_fault(self, head: RequestHead, body: bytes, responder: Responder) -> None:
        try:
            self.faults.order(body)
        except HttpError as error:
            responder.refuse(error)
            return
        factor = self.faults.present.get("slow", {}).get("factor")
        self.engine.slow_down(1.0 if factor is None else factor)
        self._tell_faults(head, body, responder)


class _Exchange:
    """One request and its answer.

    Attributes:
        reset_after: tokens after which the connection is reset.
        stall_after: tokens after which nothing more is said.
    """

    def __init__(
        self, engine: Engine, generation: Generation, writer: AnswerWriter, responder: Responder
    ) -> None:
        self.reset_after: int | None = None
        self.stall_after: int | None = None
        self._engine = engine
        self._generation = generation
        self._writer = writer
        self._responder = responder

    def begin(self) -> None:
        """Has the answer generated."""
        if self.reset_after == 0:
            self._responder.reset()
            return
        self._work = self._engine.submit(self._generation, self._on_tokens)
        self._responder.on_disconnect = self._leave

    def _leave(self) -> None:
        self._engine.abort(self._work)

    def _on_tokens(self, told: int, tokens: int) -> None:
        if self.stall_after is not None and tokens > self.stall_after:
            return
        self._writer.cached_tokens = self._work.request.cached_tokens
        last = tokens == self._generation.output_tokens
        if self._generation.streamed:
            if not told:
                self._responder.start(200, [EVENTS])
            event = self._writer.event(told, tokens)
            if last and self.reset_after != tokens:
                self._responder.end(event)
            else:
                self._responder.write(event.removesuffix(DONE))
        elif last and self.reset_after != tokens:
            self._responder.send(200, self._writer.whole(), [JSON_TYPE])
        if tokens == self.reset_after:
            self._leave()
            self._responder.reset()


def refuse(responder: Responder, error: HttpError) -> None:
    """Answers with an error in vLLM's words."""
    kind = ERRORS.get(error.status, "InternalServerError")
    content = error_body(error.status, error.message, kind)
    responder.send(error.status, content, [JSON_TYPE, *error.headers])


def _json(value: Callable[[], object]) -> Handler:
    def handler(head: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, json.dumps(value()).encode(), [JSON_TYPE])

    return handler
