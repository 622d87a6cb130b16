"""A gateway between clients and small engines that fail on demand, all in one loop."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from llmroute_gym.config import BackendConfig, HealthConfig, ServeConfig
from llmroute_gym.gateway.gateway import Gateway
from llmroute_gym.http.bodies import body_of
from llmroute_gym.http.heads import END, AnswerHead, RequestHead, parse_answer
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.server import Server

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
Behaviour = Callable[["Engine", RequestHead, bytes, Responder], None]
QUICK = HealthConfig(interval_s=0.05, timeout_s=0.5)
RESTLESS = HealthConfig(interval_s=30.0)


def run(story: Awaitable[None], seconds: float = 30.0) -> None:
    """Runs a story on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story, seconds))  # type: ignore[arg-type]


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def answer(engine: "Engine", request: RequestHead, body: bytes, responder: Responder) -> None:
    """Answers with `max_tokens` tokens, in events if they are wanted."""
    asked = json.loads(body)
    tokens = asked.get("max_tokens", 3)
    usage = {"prompt_tokens": len(str(asked.get("prompt"))), "completion_tokens": tokens}
    if not asked.get("stream"):
        text = {"choices": [{"text": "a" * tokens}], "usage": usage}
        responder.send(200, json.dumps(text).encode(), JSON)
        return
    loop = asyncio.get_running_loop()

    def step(done: int) -> None:
        if responder.gone:
            return
        if done < tokens:
            responder.write(event(choices=[{"text": "a"}]))
            engine.timer = loop.call_later(engine.step_s, step, done + 1)
        else:
            if (asked.get("stream_options") or {}).get("include_usage"):
                responder.write(event(choices=[], usage=usage))
            responder.end(b"data: [DONE]\n\n")

    responder.start(200, SSE)
    loop.call_later(engine.step_s, step, 0)


def status(code: int, **headers: bytes) -> Behaviour:
    """Refuses everything."""

    def refuse(engine: "Engine", request: RequestHead, body: bytes, responder: Responder) -> None:
        named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        responder.send(code, b'{"error": "no"}', [*JSON, *named])

    return refuse


def reset(engine: "Engine", request: RequestHead, body: bytes, responder: Responder) -> None:
    """Closes instead of answering."""
    responder.abort()


def hang(engine: "Engine", request: RequestHead, body: bytes, responder: Responder) -> None:
    """Never answers."""


def break_off(engine: "Engine", request: RequestHead, body: bytes, responder: Responder) -> None:
    """Breaks off after one token."""
    responder.start(200, SSE)
    responder.write(event(choices=[{"text": "a"}]))
    asyncio.get_running_loop().call_later(0.02, responder.abort)


@dataclass
class Engine:
    """An engine that answers as its behaviour says."""

    name: str = "a"
    behaviour: Behaviour = answer
    step_s: float = 0.001
    well: bool | None = True
    metrics: bytes = b""
    requests: list[tuple[RequestHead, bytes]] = field(default_factory=list)
    under_way: int = 0
    aborted: int = 0
    probes: int = 0
    port: int = 0

    async def start(self) -> None:
        complete = {"POST": self._complete}
        self.server = Server(
            {
                "/v1/completions": complete,
                "/v1/chat/completions": complete,
                "/v1/models": {"GET": self._models},
                "/health": {"GET": self._health},
                "/metrics": {"GET": self._metrics},
            }
        )
        self.port = await self.server.listen("127.0.0.1", self.port)

    async def kill(self) -> None:
        await self.server.close()

    def _complete(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        self.requests.append((request, body))
        self.under_way += 1

        def left() -> None:
            self.aborted += 1
            self.under_way -= 1

        responder.on_disconnect = left
        ended = responder._finished

        def finished() -> None:
            self.under_way -= 1
            ended()

        responder._finished = finished
        self.behaviour(self, request, body, responder)

    def _models(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, b'{"data": [{"id": "tiny"}]}', JSON)

    def _health(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        self.probes += 1
        if self.well is not None:
            responder.send(200 if self.well else 503)

    def _metrics(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, self.metrics)


class Stage:
    """Engines, a gateway before them, and clients."""

    def __init__(self, *engines: Engine, **settings: Any) -> None:
        self.engines = engines or (Engine("a"), Engine("b"))
        self.settings = settings

    async def __aenter__(self) -> "Stage":
        for engine in self.engines:
            await engine.start()
        backends = [
            BackendConfig(name=one.name, url=f"http://127.0.0.1:{one.port}") for one in self.engines
        ]
        given: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "admin": "localhost:0",
            "backends": backends,
            **self.settings,
        }
        self.gateway = Gateway(ServeConfig(**given).validate())
        await self.gateway.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.close()
        for engine in self.engines:
            await engine.kill()
        self.check_nothing_is_left()
        await asyncio.sleep(0)
        left = {repr(task) for task in asyncio.all_tasks()}
        assert not [task for task in left if "story" not in task and "wait_for" not in task]

    @property
    def shared(self) -> Any:
        return self.gateway.shared

    def check_nothing_is_left(self) -> None:
        """Checks that all counts are back at zero."""
        assert self.shared.live == set()
        assert self.shared.chooser.in_flight == 0
        for backend in self.shared.backends:
            assert (backend.waiting, backend.running, backend.prompt_tokens) == (0, 0, 0)
            assert not backend._trying
            assert backend.pool._tasks == set()
        assert self.gateway._server.site.held_bytes == 0

    def count(self, meter: str) -> dict[tuple[str, ...], int]:
        return dict(getattr(self.shared, meter).counts)

    async def client(self) -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        return Client(reader, writer)

    async def ask(self, **fields: Any) -> "Answer":
        """Sends one request on a connection of its own."""
        client = await self.client()
        try:
            return await client.ask(**fields)
        finally:
            client.writer.close()

    async def admin(self, path: str, method: str = "GET") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.admin_port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = await reader.read()
        writer.close()
        return got


@dataclass
class Answer:
    """What a client got; `whole` says whether it came to its proper end."""

    head: AnswerHead
    content: bytes
    whole: bool

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def done(self) -> bool:
        return self.whole and self.content.endswith(b"data: [DONE]\n\n")


@dataclass
class Client:
    """One connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, path: str = "/v1/completions", **fields: Any) -> Answer:
        body = {"model": "tiny", "prompt": "hello"} | fields
        return await self.send(path, json.dumps(body).encode())

    async def send(self, path: str, body: bytes, headers: bytes = b"") -> Answer:
        self.post(path, body, headers)
        return await self.answer()

    def post(self, path: str, body: bytes, headers: bytes = b"") -> None:
        self.writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b"
            % (path.encode(), headers, len(body), body)
        )

    async def get(self, path: str, headers: bytes = b"") -> Answer:
        self.writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), headers))
        return await self.answer()

    async def answer(self) -> Answer:
        head = parse_answer(await self.reader.readuntil(END))
        body, content = body_of(head), b""
        while not body.done:
            piece = await self.reader.read(65_536)
            if not piece:
                return Answer(head, content, False)
            mine, rest = body.take(piece)
            assert rest == b""
            content += mine
        return Answer(head, content, True)
