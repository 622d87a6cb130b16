"""The server on real sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from llmroute_gym.config import HttpLimits, HttpTimeouts
from llmroute_gym.errors import InputError
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.server import Server

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    def to_end(story: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story, 20))  # type: ignore[arg-type]

    return to_end


def echo(request: RequestHead, body: bytes, responder: Responder) -> None:
    responder.send(200, body)


POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_bodies_go_to_and_fro(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        server = Server({"/echo": {"POST": echo}})
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for size in (0, 1, 100_000, 5_000_000):
            body = bytes(size % 251 for size in range(size))
            writer.write(POST % size + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % size in head
            assert await reader.readexactly(size) == body
        writer.close()
        await server.close()
        assert server.site.connections == set()
        assert server.site.held_bytes == 0

    run(story())


def test_a_client_that_still_sends_sees_why_it_is_refused(
    run: Callable[[Awaitable[None]], None],
) -> None:
    async def story() -> None:
        server = Server({"/echo": {"POST": echo}}, HttpLimits(body_bytes=1000))
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST % 2_000_000)
        for _ in range(20):
            writer.write(b"a" * 100_000)
            await writer.drain()
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await server.close()

    run(story())


def test_a_client_that_leaves_is_noticed_at_once(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        arrived, left = asyncio.Event(), asyncio.Event()

        def wait(request: RequestHead, body: bytes, responder: Responder) -> None:
            responder.on_disconnect = left.set
            arrived.set()

        server = Server({"/wait": {"GET": wait}})
        port = await server.listen("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await arrived.wait()
        writer.close()
        noticed = await asyncio.wait_for(left.wait(), 0.05)
        assert noticed
        await server.close()

    run(story())


def test_slow_clients_are_timed_out(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        server = Server({"/echo": {"POST": echo}}, timeouts=HttpTimeouts(head_s=0.1, body_s=0.1))
        port = await server.listen("127.0.0.1", 0)
        for sent, status in ((b"POST /ec", 408), (POST % 9 + b"abc", 408), (b"", None)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            got = await asyncio.wait_for(reader.read(), 1)
            assert got.startswith(b"HTTP/1.1 %d " % status if status else b"")
            assert bool(got) == bool(status)
            writer.close()
        await server.close()

    run(story())


def test_a_closing_server_lets_answers_end(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        waiting: list[Responder] = []

        def wait(request: RequestHead, body: bytes, responder: Responder) -> None:
            waiting.append(responder)

        server = Server({"/wait": {"GET": wait}})
        port = await server.listen("127.0.0.1", 0)
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        while not waiting:
            await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(server.close(5))
        assert await idle_reader.read() == b""
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await asyncio.open_connection("127.0.0.1", port)
        waiting[0].send(200, b"the last")
        got = await reader.read()
        assert got.endswith(b"the last")
        assert b"connection: close\r\n" in got
        writer.close()
        idle_writer.close()
        await closing

    run(story())


def test_a_closing_server_cuts_what_does_not_end(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        def wait(request: RequestHead, body: bytes, responder: Responder) -> None:
            responder.start(200)
            responder.write(b"a")

        server = Server({"/wait": {"GET": wait}})
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"1\r\na\r\n")
        await asyncio.wait_for(server.close(0.05), 1)
        assert await reader.read() == b""  # no last chunk, so that it is not whole
        writer.close()

    run(story())


def test_an_old_client_sees_that_an_answer_is_cut(
    run: Callable[[Awaitable[None]], None],
) -> None:
    async def story() -> None:
        waiting: list[Responder] = []

        def wait(request: RequestHead, body: bytes, responder: Responder) -> None:
            responder.start(200)
            responder.write(b"a")
            waiting.append(responder)

        server = Server({"/wait": {"GET": wait}})
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\na")
        waiting[0].cut()
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()
        await server.close()

    run(story())


def test_small_writes_are_not_held_back(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        found: list[int] = []

        def look(request: RequestHead, body: bytes, responder: Responder) -> None:
            sock = responder._transport.get_extra_info("socket")
            found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            responder.send(200)

        server = Server({"/look": {"GET": look}})
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /look HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert found == [1]
        writer.close()
        await server.close()

    run(story())


def test_too_many_connections_are_told_so(run: Callable[[Awaitable[None]], None]) -> None:
    async def story() -> None:
        server = Server({"/echo": {"POST": echo}}, HttpLimits(connections=1))
        port = await server.listen("127.0.0.1", 0)
        first_reader, first = await asyncio.open_connection("127.0.0.1", port)
        first.write(POST % 1 + b"a")
        await first_reader.readuntil(b"\r\n\r\n")
        reader, second = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        first.close()
        second.close()
        await server.close()

    run(story())


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", None), ("203.0.113.1", 0), ("no.such.host.invalid", 0)]
)
def test_an_address_that_cannot_be_had_is_one_sentence(
    host: str, port: int | None, run: Callable[[Awaitable[None]], None]
) -> None:
    async def story() -> None:
        server = Server({})
        taken = await server.listen("127.0.0.1", 0)
        with pytest.raises(InputError, match=r"cannot listen on .*; choose another"):
            await Server({}).listen(host, taken if port is None else port)
        await server.close()

    run(story())
