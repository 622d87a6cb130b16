"""What the gateway passes on in both directions, and what it does not."""

import asyncio
import json
import random

import pytest

from llmroute_gym.config import GatewayLimits
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from tests.gateway.stage import Engine, Stage, run, status
from tests.http.corpus import MALFORMED
from tests.http.wires import split


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
