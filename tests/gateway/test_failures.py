"""What the gateway does about an engine that refuses, breaks off or is silent."""

import asyncio
import json
import random

import pytest

from llmroute_gym.config import GatewayTimeouts, RetryConfig
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from tests.gateway.stage import (
    QUICK,
    RESTLESS,
    Engine,
    Stage,
    answer,
    break_off,
    event,
    hang,
    reset,
    run,
    status,
)


@pytest.mark.parametrize("code", [429, 502, 503])
def test_a_backend_that_refuses_costs_no_request(code: int) -> None:
    async def story() -> None:
        async with Stage(Engine("a", status(code)), Engine("b")) as stage:
            client = await stage.client()
            for _ in range(1000):
                assert (await client.ask()).status == 200
            client.writer.close()
            assert len(stage.engines[1].requests) == 1000
            assert stage.count("retries") == {(str(code),): len(stage.engines[0].requests)}
            assert len(stage.engines[0].requests) > 0

    run(story(), 60)


def test_a_backend_that_resets_costs_no_request_and_is_down() -> None:
    async def story() -> None:
        async with Stage(Engine("a", reset), Engine("b"), health=RESTLESS) as stage:
            client = await stage.client()
            for _ in range(1000):
                assert (await client.ask(stream=True, max_tokens=1)).done
            client.writer.close()
            assert len(stage.engines[0].requests) == 1
            assert stage.shared.backends[0].state.value == "down"

    run(story(), 60)


def test_500_is_the_requests_fault_unless_one_says_otherwise() -> None:
    async def story() -> None:
        async with Stage(Engine("a", status(500)), Engine("b")) as stage:
            assert {(await stage.ask()).status for _ in range(4)} == {500}
        retry = RetryConfig(retry_500=True)
        async with Stage(Engine("a", status(500)), Engine("b"), retry=retry) as stage:
            assert {(await stage.ask()).status for _ in range(1000)} == {200}

    run(story(), 60)


def test_the_last_refusal_is_passed_on() -> None:
    async def story() -> None:
        engines = (Engine("a", status(429, retry_after=b"7")), Engine("b", reset))
        async with Stage(*engines) as stage:
            got = await stage.ask()
            assert got.status == 429
            assert got.head.get(b"retry-after") == b"7"
        engines = (Engine("a", status(503)), Engine("b", status(429, retry_after=b"9")))
        async with Stage(*engines) as stage:
            got = await stage.ask()
            assert (got.status, got.content) == (429, b'{"error": "no"}')
            assert got.head.get(b"retry-after") == b"9"
        async with Stage(Engine("a", reset), Engine("b", reset)) as stage:
            got = await stage.ask()
            assert (got.status, got.head.get(b"retry-after")) == (503, b"1")

    run(story())


def test_no_more_others_are_tried_than_allowed() -> None:
    async def story() -> None:
        engines = [Engine(name, status(503)) for name in "abcd"]
        async with Stage(*engines, retry=RetryConfig(others=2)) as stage:
            assert (await stage.ask()).status == 503
            assert sorted(len(engine.requests) for engine in engines) == [0, 1, 1, 1]
        engines = [Engine(name, status(503)) for name in "ab"]
        async with Stage(*engines, retry=RetryConfig(others=0)) as stage:
            assert (await stage.ask()).status == 503
            assert sum(len(engine.requests) for engine in engines) == 1

    run(story())


def test_a_stream_that_breaks_off_does_not_look_complete() -> None:
    async def story() -> None:
        async with Stage(Engine("a", break_off)) as stage:
            got = await stage.ask(stream=True)
            assert got.status == 200
            assert not got.whole
            assert b"[DONE]" not in got.content
            last = got.content.strip().split(b"\n\n")[-1]
            error = json.loads(last.removeprefix(b"data: "))["error"]
            assert error["type"] == "upstream_error"
            assert stage.count("stream_errors") == {("broken",): 1}

    run(story())


def test_an_event_that_breaks_off_is_ended_first() -> None:
    def half(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.start(200, [(b"content-type", b"text/event-stream")])
        responder.write(event(choices=[]) + b'data: {"cho')
        asyncio.get_running_loop().call_later(0.02, responder.abort)

    async def story() -> None:
        async with Stage(Engine("a", half)) as stage:
            got = await stage.ask(stream=True)
            assert got.content.split(b"\n\n")[1] == b'data: {"cho'
            assert b"upstream_error" in got.content.split(b"\n\n")[2]

    run(story())


def test_a_body_that_breaks_off_is_shorter_than_it_says() -> None:
    def half(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.start(200, [(b"content-type", b"application/json")], 100)
        responder.write(b'{"choices": [')
        asyncio.get_running_loop().call_later(0.02, responder.abort)

    async def story() -> None:
        async with Stage(Engine("a", half)) as stage:
            got = await stage.ask()
            assert not got.whole
            assert got.content == b'{"choices": ['

    run(story())


def test_an_engine_that_dies_before_the_first_byte_costs_no_request() -> None:
    def headed(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.start(200, [(b"content-type", b"text/event-stream")])
        responder.write(b"")  # the head alone
        asyncio.get_running_loop().call_later(0.02, responder.abort)

    async def story() -> None:
        async with Stage(Engine("a", headed), Engine("b"), health=RESTLESS) as stage:
            assert [(await stage.ask(stream=True)).done for _ in range(10)] == [True] * 10

    run(story())


def test_a_backend_that_is_silent_is_timed_out() -> None:
    async def story() -> None:
        timeouts = GatewayTimeouts(first_byte_s=0.1, between_s=0.1)
        async with Stage(Engine("a", hang), timeouts=timeouts) as stage:
            assert (await stage.ask()).status == 504
            await asyncio.sleep(0.05)
            assert stage.engines[0].under_way == 0

        def stall(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
            responder.start(200, [(b"content-type", b"text/event-stream")])
            responder.write(event(choices=[{"text": "a"}]))

        async with Stage(Engine("a", stall), timeouts=timeouts) as stage:
            got = await stage.ask(stream=True)
            assert not got.whole
            assert stage.count("stream_errors") == {("between_timeout",): 1}

        timeouts = GatewayTimeouts(whole_s=0.2)
        async with Stage(Engine("a", step_s=0.02), timeouts=timeouts) as stage:
            got = await stage.ask(stream=True, max_tokens=100)
            assert not got.whole
            assert stage.count("stream_errors") == {("whole_timeout",): 1}

    run(story())


def test_an_idle_connection_that_the_engine_closed_costs_nothing() -> None:
    async def story() -> None:
        async with Stage(Engine("a"), health=RESTLESS) as stage:
            client = await stage.client()
            for _ in range(50):
                assert (await client.ask()).status == 200
                # It closes while the next request is on its way.
                for connection in list(stage.engines[0].server.site.connections):
                    connection._transport.close()
            client.writer.close()
            assert stage.count("retries") == {}
            assert stage.shared.backends[0].state.value == "up"

    run(story())


def test_after_mixed_faults_all_counts_are_zero() -> None:
    rng = random.Random(7)

    def mixed(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        behaviours = (answer, answer, status(429), status(503), status(500), reset, break_off)
        rng.choice(behaviours)(engine, request, body, responder)

    async def story() -> None:
        engines = [Engine(name, mixed) for name in "abc"]
        async with Stage(*engines, health=QUICK) as stage:

            async def user() -> None:
                for _ in range(40):
                    client = await stage.client()
                    streams = rng.random() < 0.6
                    body = json.dumps({"prompt": "a" * rng.randrange(2000), "stream": streams})
                    client.post("/v1/completions", body.encode())
                    if rng.random() < 0.2:
                        await asyncio.sleep(rng.random() * 0.01)
                    else:
                        got = await client.answer()
                        assert got.status in (200, 429, 500, 503)
                        if got.status == 200 and streams:
                            assert got.done != (b"upstream_error" in got.content)
                    client.writer.close()

            await asyncio.gather(*(user() for _ in range(25)))
            # A probe may just be on its way to a backend.
            while stage.shared.live or any(one.pool._tasks for one in stage.shared.backends):
                await asyncio.sleep(0.01)
            stage.check_nothing_is_left()
            assert sum(stage.count("requests").values()) == 1000

    run(story(), 60)
