"""What the gateway does about clients that leave, are slow, are many or have no key."""

import asyncio

import pytest

from llmroute_gym.config import GatewayLimits
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from tests.gateway.stage import Engine, Stage, answer, hang, run


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_stops_the_engine_at_once(streams: bool) -> None:
    async def story() -> None:
        engine = Engine("a", answer if streams else hang, step_s=0.01)
        async with Stage(engine) as stage:
            client = await stage.client()
            client.post("/v1/completions", b'{"prompt": "a", "stream": true, "max_tokens": 1000}')
            if streams:
                await client.reader.readuntil(b"data: ")
            while not engine.requests:
                await asyncio.sleep(0.005)
            client.writer.close()
            await asyncio.sleep(0.05)
            assert (engine.aborted, engine.under_way) == (1, 0)
            phase = "streaming" if streams else "waiting"
            assert stage.count("disconnects") == {(phase,): 1}
            stage.check_nothing_is_left()

    run(story())


def test_a_slow_client_holds_its_engine_back_and_loses_nothing() -> None:
    sent = 0

    def flood(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        loop = asyncio.get_running_loop()

        def more() -> None:
            nonlocal sent
            while sent < 400 and not responder.paused:
                responder.write(b"data: " + b"x" * 65_528 + b"\n\n")
                sent += 1
            if sent < 400:
                responder.on_resume = more
            else:
                responder.end(b"data: [DONE]\n\n")

        responder.start(200, [(b"content-type", b"text/event-stream")])
        loop.call_soon(more)

    async def story() -> None:
        async with Stage(Engine("a", flood)) as stage:
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port, limit=1)
            body = b'{"prompt": "a", "stream": true}'
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await asyncio.sleep(0.5)
            assert sent < 300  # 26 MB would have come at once
            got = 0
            while piece := await reader.read(1_000_000):
                got += len(piece)
            assert got > 400 * 65_536
            writer.close()

    run(story())


def test_limits_are_answered_and_not_queued() -> None:
    async def story() -> None:
        limits = GatewayLimits(in_flight=2, in_flight_per_backend=1)
        async with Stage(Engine("a", hang), Engine("b", hang), limits=limits) as stage:
            held = [await stage.client() for _ in range(2)]
            for client in held:
                client.post("/v1/completions", b"{}")
            while len(stage.shared.live) < 2:
                await asyncio.sleep(0.01)
            got = await stage.ask()
            assert (got.status, got.head.get(b"retry-after")) == (503, b"1")
            for client in held:
                client.writer.close()

    run(story())


def test_keys_are_checked_replaced_and_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE", "secret")

    async def story() -> None:
        async with Stage(Engine("a"), key_env="GATE") as stage:
            client = await stage.client()
            assert (await client.get("/v1/models")).status == 401
            assert (await client.get("/health")).status == 200
            got = await client.get("/v1/models", b"Authorization: Bearer secret\r\n")
            assert got.status == 200
            ask = (b'{"prompt": "a"}', b"Authorization: Bearer secret\r\n")
            assert (await client.send("/v1/completions", *ask)).status == 200
            assert stage.engines[0].requests[0][0].get(b"authorization") is None
            client.writer.close()
            client = await stage.client()
            ask = (b'{"prompt": "a"}', b"Authorization: Bearer secre\r\n")
            assert (await client.send("/v1/completions", *ask)).status == 401
            client.writer.close()

    run(story())
