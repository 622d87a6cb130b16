"""The gateway between clients and engines: what it passes on, and what it does about faults."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from llmroute_gym.config import (
    GatewayLimits,
    GatewayTimeouts,
    HealthConfig,
    PolicyConfig,
    RetryConfig,
    ScrapeConfig,
)
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.sim.request_log import read_request_log
from llmroute_gym.sim.traces import load_trace
from tests.gateway.stage import (
    Answer,
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
from tests.http.corpus import MALFORMED
from tests.http.wires import split

QUICK = HealthConfig(interval_s=0.05, timeout_s=0.5)
RESTLESS = HealthConfig(interval_s=30.0)


def test_answers_come_through_in_both_forms() -> None:
    async def story() -> None:
        async with Stage() as stage:
            client = await stage.client()
            got = await client.ask(max_tokens=5)
            assert got.status == 200
            assert json.loads(got.content)["choices"] == [{"text": "aaaaa"}]
            got = await client.ask(max_tokens=5, stream=True)
            assert got.done
            assert got.content.count(b"data: {") == 5
            got = await client.ask("/v1/chat/completions", stream=True)
            assert got.done
            got = await client.get("/v1/models")
            assert got.content == b'{"data": [{"id": "tiny"}]}'
            client.writer.close()
            assert sum(len(engine.requests) for engine in stage.engines) == 3

    run(story())


def test_bodies_are_the_same_bytes_on_both_sides() -> None:
    random.seed(4)

    def mirror(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        content = body[::-1]
        kind = random.choice((b"application/json", b"text/event-stream"))
        headers = [(b"content-type", kind)]
        if random.random() < 0.5:
            responder.send(200, content, headers)
            return
        responder.start(200, headers)
        while content:
            size = random.randrange(1, 5000)
            responder.write(content[:size])
            content = content[size:]
        responder.end()

    def body() -> bytes:
        text = "".join(chr(random.choice((34, 92, 97, 10, 0x4E2D, 0x1F600))) for _ in range(300))
        fields = {"model": "m", "prompt": text * random.choice((0, 1, 40)), "x": [1.0, 1e99, None]}
        spaced = json.dumps(
            fields,
            ensure_ascii=random.random() < 0.5,
            indent=random.choice((None, 1)),
            sort_keys=random.random() < 0.5,
        )
        return (" " * random.randrange(3) + spaced + "\n" * random.randrange(3)).encode()

    async def story() -> None:
        engines = (Engine("a", mirror), Engine("b", mirror))
        async with Stage(*engines) as stage:
            client = await stage.client()
            for index in range(1000):
                sent = body()
                path = random.choice(("/v1/completions", "/v1/chat/completions"))
                if index < 50:
                    client.post(path, sent)
                    got = await client.answer()
                else:
                    got = await client.send(path, sent)
                assert got.whole
                assert got.content == sent[::-1]
            client.writer.close()
        arrived = {body for engine in engines for _, body in engine.requests}
        assert sum(len(engine.requests) for engine in engines) == 1000
        assert all(len(one) for one in arrived)

    run(story(), 60)


def test_only_harmless_headers_go_on() -> None:
    async def story() -> None:
        async with Stage(Engine("a")) as stage:
            client = await stage.client()
            headers = (
                b"Authorization: Bearer mine\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\n"
                b"X-Foo: bar\r\nConnection: keep-alive, x-foo\r\nTE: trailers\r\nTraceparent: t\r\n"
                b"Content-Type: application/json\r\nX-Request-Id: 7\r\nAccept: */*\r\n"
            )
            path = "/v1/completions?worker=http://evil"
            got = await client.send(path, b'{"prompt": ""}', headers)
            assert got.status == 200
            request, _ = stage.engines[0].requests[0]
            assert dict(request.headers) == {
                b"host": b"127.0.0.1:%d" % stage.engines[0].port,
                b"authorization": b"Bearer mine",
                b"traceparent": b"t",
                b"content-type": b"application/json",
                b"x-request-id": b"7",
                b"accept": b"*/*",
                b"content-length": b"14",
            }
            assert request.target == b"/v1/completions"
            client.writer.close()

    run(story())


def test_headers_of_engines_tell_no_address() -> None:
    def told(engine: Engine, request: RequestHead, body: bytes, responder: Responder) -> None:
        headers = [
            (b"server", b"uvicorn"),
            (b"location", b"http://10.0.0.1/"),
            (b"set-cookie", b"a"),
        ]
        responder.send(307, b"", [*headers, (b"x-request-id", b"7")])

    async def story() -> None:
        async with Stage(Engine("a", told), show_backend=True) as stage:
            got = await stage.ask()
            assert got.status == 307
            assert dict(got.head.headers) == {
                b"content-length": b"0",
                b"x-request-id": b"7",
                b"x-llmroute-backend": b"a",
            }

    run(story())


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b"\xff\xfe\xfd", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b'{"a": ' + b"9" * 5000 + b"}", 400),
        ("/v1/embeddings", b"{}", 404),
        ("/v1/models", b"{}", 405),
        ("/", b"{}", 404),
        ("/v1/completions/", b"{}", 404),
        ("/v1/../metrics", b"{}", 404),
    ],
)
def test_wrong_requests_get_their_status_and_reach_no_engine(
    path: str, body: bytes, code: int
) -> None:
    async def story() -> None:
        async with Stage() as stage:
            client = await stage.client()
            got = await client.send(path, body)
            assert got.status == code
            assert set(json.loads(got.content)["error"]) == {"message", "type", "param", "code"}
            assert all(engine.requests == [] for engine in stage.engines)
            client.writer.close()

    run(story())


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2], [3]]},
        {"prompt": ["a", "b"]},
        {"prompt": [-1, 2**70, "a"]},
        {"prompt": None, "model": 3},
        {"prompt": {"a": 1}},
        {"messages": "text"},
        {"messages": [1, {"role": "user"}, {"content": [{"text": "a"}, 1, {"text": 3}]}]},
    ],
)
def test_what_is_odd_is_for_the_engine_to_refuse(fields: dict[str, object]) -> None:
    async def story() -> None:
        async with Stage(Engine("a", status(422))) as stage:
            for path in ("/v1/completions", "/v1/chat/completions"):
                client = await stage.client()
                assert (await client.ask(path, **fields)).status == 422
                client.writer.close()

    run(story())


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


def test_a_killed_backend_costs_only_its_streams_and_comes_back() -> None:
    async def story() -> None:
        engines = (Engine("a", step_s=0.02), Engine("b", step_s=0.02))
        async with Stage(*engines, health=QUICK) as stage:
            got: list[Answer] = []

            async def one() -> None:
                got.append(await stage.ask(stream=True, max_tokens=10))

            asked = []
            for index in range(80):
                asked.append(asyncio.create_task(one()))
                await asyncio.sleep(0.0125)
                if index == 30:
                    streams = stage.shared.backends[0].running
                    await engines[0].kill()
                if index == 50:
                    before = len(engines[0].requests)
                    await engines[0].start()
            await asyncio.gather(*asked)
            cut = [one for one in got if not one.done]
            assert all(one.status == 200 for one in got)
            assert 0 < len(cut) <= streams + 1
            assert all(not one.whole and b"upstream_error" in one.content for one in cut)
            assert len(engines[0].requests) > before
            assert stage.shared.backends[0].state.value == "up"

    run(story())


def test_a_backend_that_comes_back_gets_one_request_first() -> None:
    async def story() -> None:
        engine = Engine("a", well=False)
        async with Stage(engine, health=QUICK) as stage:
            assert (await stage.ask()).status == 503
            assert (await (await stage.client()).get("/ready")).status == 503
            engine.well, engine.behaviour = True, hang
            while stage.shared.backends[0].state.value != "trial":
                await asyncio.sleep(0.01)
            first = asyncio.create_task(stage.ask())
            while not engine.requests:
                await asyncio.sleep(0.01)
            assert (await stage.ask()).status == 503
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            engine.behaviour = answer
            while stage.shared.live:
                await asyncio.sleep(0.01)
            assert (await stage.ask()).status == 200
            assert stage.shared.backends[0].state.value == "up"

    run(story())


def test_probes_take_a_sick_backend_out() -> None:
    async def story() -> None:
        async with Stage(health=QUICK) as stage:
            stage.engines[0].well = False
            while stage.shared.backends[0].state.value == "up":
                await asyncio.sleep(0.01)
            for _ in range(10):
                assert (await stage.ask()).status == 200
            assert stage.engines[0].requests == []

    run(story())


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


def test_connections_are_used_again_and_closed_when_idle() -> None:
    async def story() -> None:
        timeouts = GatewayTimeouts(upstream_idle_s=0.2)
        async with Stage(Engine("a"), timeouts=timeouts, health=RESTLESS) as stage:
            client = await stage.client()
            for _ in range(20):
                await client.ask(stream=True, max_tokens=1)
            assert len(stage.shared.backends[0].pool.open) == 1
            await asyncio.sleep(0.4)
            assert stage.shared.backends[0].pool.open == set()
            client.writer.close()

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


def test_draining_backends_get_nothing_new() -> None:
    async def story() -> None:
        async with Stage() as stage:
            got = await stage.admin("/backends/a/drain", "POST")
            assert b'"draining": true' in got
            for _ in range(5):
                assert (await stage.ask()).status == 200
            assert stage.engines[0].requests == []
            await stage.admin("/backends/a/resume", "POST")
            for _ in range(5):
                await stage.ask()
            assert len(stage.engines[0].requests) > 0
            assert b'"state": "up"' in await stage.admin("/backends")
            assert b"404" in (await stage.admin("/backends/c/drain", "POST")).partition(b"\r\n")[0]
            assert b"405" in (await stage.admin("/backends/a/drain")).partition(b"\r\n")[0]

    run(story())


def test_metrics_tell_what_happened() -> None:
    async def story() -> None:
        scraping = ScrapeConfig(interval_s=0.25)
        async with Stage(Engine("a"), scrape=scraping) as stage:
            stage.engines[0].metrics = (
                b"# HELP vllm:num_requests_running x\n"
                b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
                b'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
                b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
                b'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0\n'
                b'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 25.0\n'
            )
            await stage.ask(stream=True)
            await asyncio.sleep(0.4)
            text = (await stage.admin("/metrics")).partition(b"\r\n\r\n")[2].decode()
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
            assert lines['llmroute_requests_total{backend="a",code="200"}'] == "1"
            assert lines['llmroute_inflight{backend="a",phase="waiting"}'] == "0"
            assert lines['llmroute_backend_up{backend="a"}'] == "1"
            assert lines["llmroute_ttft_seconds_count"] == "1"
            assert lines['llmroute_ttft_seconds_bucket{le="+Inf"}'] == "1"
            assert 0 <= float(lines['llmroute_scrape_age_seconds{backend="a"}']) < 0.5
            names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
            assert {
                "llmroute_pending_prompt_tokens",
                "llmroute_e2e_seconds",
                "llmroute_overhead_seconds",
                "llmroute_decision_seconds",
                "llmroute_retries_total",
                "llmroute_stream_errors_total",
                "llmroute_client_disconnects_total",
                "llmroute_policy_fallbacks_total",
                "llmroute_shadow_disagreements_total",
                "llmroute_prompt_tokens_error_ratio",
            } <= names

    run(story())


def test_the_log_tells_each_request_and_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"

    async def story() -> None:
        async with Stage(Engine("a"), log=str(path), session_header="x-session") as stage:
            client = await stage.client()
            options = {"include_usage": True}
            await client.ask(prompt="secret", max_tokens=4, stream=True, stream_options=options)
            await client.ask(prompt=[1] * 50, max_tokens=7)
            body = b'{"prompt": "a", "stream": true}'
            await client.send("/v1/completions", body, b"X-Session: alice\r\n")
            stage.engines[0].behaviour = status(400)
            await client.ask()
            stage.engines[0].behaviour = break_off
            await client.ask(stream=True)
            client.writer.close()

    run(story())
    first, second, third, *rest = read_request_log(path)
    assert (first.prompt_tokens, first.output_tokens, first.outcome) == (6, 4, "ok")
    assert first.first_token_at_s is not None
    assert second.output_tokens == 7
    assert second.first_token_at_s is None
    assert third.session is not None
    assert third.output_tokens == 3
    assert [one.outcome for one in rest] == ["refused", "cut"]
    assert b"secret" not in path.read_bytes()
    assert len(load_trace(path)) >= 3


def test_shadows_are_counted_and_change_nothing() -> None:
    async def story() -> None:
        policy = PolicyConfig(mode="shadow", rule="round_robin", policy="lor")
        async with Stage(policy=policy) as stage:
            for _ in range(10):
                await stage.ask()
            assert [len(engine.requests) for engine in stage.engines] == [5, 5]
            assert stage.shared.chooser.disagreements.counts[()] == 5

    run(story())


def test_a_router_that_fails_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with Stage() as stage:

            def broken(*_: object) -> int:
                raise ValueError("no idea")

            stage.shared.chooser._main._router.route = broken
            for _ in range(5):
                assert (await stage.ask()).status == 200
            assert stage.shared.chooser.fallbacks.counts == {("error",): 5}
            assert caplog.text.count("a decision failed") == 1

    run(story())


def test_the_end_lets_streams_end_and_cuts_the_rest() -> None:
    async def story() -> None:
        engine = Engine("a", step_s=0.02)
        async with Stage(engine, timeouts=GatewayTimeouts(drain_s=0.6)) as stage:
            short = asyncio.create_task(stage.ask(stream=True, max_tokens=10))
            long = asyncio.create_task(stage.ask(stream=True, max_tokens=1000))
            while len(engine.requests) < 2:
                await asyncio.sleep(0.01)
            await stage.gateway.close()
            assert (await short).done
            cut = await long
            assert not cut.whole
            assert b"upstream_error" in cut.content

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


def test_malformed_requests_get_their_status_and_reach_no_engine() -> None:
    limits = GatewayLimits(head_bytes=1024, target_bytes=512, headers=16, body_bytes=1000)

    async def story() -> None:
        async with Stage(Engine("a"), limits=limits) as stage:
            for name, (code, whole) in MALFORMED.items():
                reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
                for piece in split(whole.replace(b"/echo", b"/v1/completions"), 9, 40):
                    writer.write(piece)
                    await asyncio.sleep(0.001)
                got = await asyncio.wait_for(reader.read(), 1)
                assert got.startswith(b"HTTP/1.1 %d " % code), name
                assert got.count(b"content-length: ") == 1, name
                writer.close()
            assert stage.engines[0].requests == []
            assert (await stage.ask()).status == 200

    run(story(), 60)
