"""Mock engines and clients on the raw protocol, light enough not to be what is measured."""

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, cast

import uvloop

FIRST_S, STEP_S = 0.005, 0.010
EVENT = b'data: {"id":"x","object":"text_completion","choices":[{"index":0,"text":" token"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()


def chunk(content: bytes) -> bytes:
    """Returns a chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


class MockEngine(asyncio.Protocol):
    """Streams as many events as asked for, in steps or, with ``burst``, in one piece."""

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        self.received += data
        end = self.received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self.received[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 : head.index(b"\r", at)]) if at >= 0 else 0
        if len(self.received) < end + length:
            return
        body, self.received = self.received[end : end + length], self.received[end + length :]
        self.answer(head.split(b" ", 2)[1].partition(b"?")[0], body)

    def answer(self, path: bytes, body: bytes) -> None:
        """Answers a request."""
        if path in (b"/v1/completions", b"/v1/chat/completions"):
            asked = json.loads(body)
            tokens = asked["max_tokens"]
            if asked.get("burst") or asked.get("user") == "burst":
                content = STREAM + chunk(EVENT) * tokens + chunk(DONE) + LAST
                self.transport.write(content)
            else:
                step_s = float(asked["user"]) if asked.get("user") else STEP_S
                asyncio.get_running_loop().call_later(FIRST_S, self.step, tokens, step_s, STREAM)
        elif path in (b"/health", b"/ready"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif path in (b"/v1/models", b"/server_info", b"/get_model_info", b"/get_server_info"):
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            self.transport.write(head % len(MODELS) + MODELS)
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def step(self, left: int, step_s: float, head: bytes) -> None:
        """Writes an event, and the next ones later."""
        if self.transport.is_closing():
            return
        if left > 1:
            self.transport.write(head + chunk(EVENT))
            asyncio.get_running_loop().call_later(step_s, self.step, left - 1, step_s, b"")
        else:
            self.transport.write(head + chunk(EVENT) + chunk(DONE) + LAST)


class Times(NamedTuple):
    """Seconds from the request's start."""

    ttft_s: float
    e2e_s: float


class Client(asyncio.Protocol):
    """One connection; checks that every answer has all of its events and its end."""

    def __init__(self) -> None:
        self.asked_s = self.first_s = 0.0
        self.events = self.wanted = 0
        self.tail = b""
        self.done: asyncio.Future[Times] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, tokens: int) -> "asyncio.Future[Times]":
        """Sends a request for so many events; gives its times."""
        self.done = asyncio.get_running_loop().create_future()
        self.events, self.wanted, self.tail, self.first_s = 0, tokens + 1, b"", 0.0
        self.asked_s = perf_counter()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        now_s = perf_counter()
        events = data.count(b"data: ")
        if events and not self.first_s:
            self.first_s = now_s
        self.events += events
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(LAST) and self.done is not None and not self.done.done():
            if self.events == self.wanted and DONE in self.tail:
                self.done.set_result(Times(self.first_s - self.asked_s, now_s - self.asked_s))
            else:
                self.done.set_exception(RuntimeError(f"{self.events} events of {self.wanted}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what is under way."""
        if self.done is not None and not self.done.done():
            self.done.set_exception(RuntimeError(f"the connection was lost: {exc}"))


class Target:
    """Where requests go: one port, or several in turn.

    Args:
        ports: on this machine.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        self.idle: list[list[Client]] = [[] for _ in ports]
        self.turn = 0

    async def ask(self, tokens: int, user: str = "") -> Times:
        """Sends a request of 256 bytes of prompt and waits for its end."""
        self.turn = (self.turn + 1) % len(self.ports)
        idle, port = self.idle[self.turn], self.ports[self.turn]
        if idle:
            client = idle.pop()
        else:
            _, client = await asyncio.get_running_loop().create_connection(
                Client, "127.0.0.1", port
            )
        times = await client.ask(request(port, tokens, user), tokens)
        idle.append(client)
        return times

    def close(self) -> None:
        """Closes all connections."""
        for client in (client for idle in self.idle for client in idle):
            client.transport.close()


def request(port: int, tokens: int, user: str) -> bytes:
    """Returns a request for so many events; `user` tells the mock engine in which steps."""
    fields = {"model": "tiny", "prompt": "word " * 50, "max_tokens": tokens, "stream": True}
    body = json.dumps({**fields, **({"user": user} if user else {})}).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (port, len(body), body)
    )


async def open_loop(target: Target, rate: float, seconds: float, seed: int) -> list[Times]:
    """Sends requests of 20 events at Poisson times, whether answered or not."""
    rng = random.Random(seed)
    asked, start_s, due_s = [], perf_counter(), 0.0
    while (due_s := due_s + rng.expovariate(rate)) < seconds:
        wait_s = start_s + due_s - perf_counter()
        if wait_s > 0.0005:
            await asyncio.sleep(wait_s)
        asked.append(asyncio.ensure_future(target.ask(20)))
    return list(await asyncio.gather(*asked))


async def closed_loop(target: Target, users: int, count: int) -> float:
    """Sends requests whose 20 events come at once; returns how long all of them took."""
    left = count

    async def user() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await target.ask(20, "burst")

    start_s = perf_counter()
    await asyncio.gather(*(user() for _ in range(users)))
    return perf_counter() - start_s


async def many_streams(target: Target, streams: int, events: int, step_s: float) -> list[Times]:
    """Takes streams at a time, each with an event per step."""
    return list(await asyncio.gather(*(target.ask(events, str(step_s)) for _ in range(streams))))


async def serve(port: int) -> None:
    """Serves a mock engine for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(MockEngine, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
