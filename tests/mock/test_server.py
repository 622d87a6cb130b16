"""The API over sockets: answers, streams, clients that leave, faults."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.mock.generations import Terms
from llmroute_gym.mock.server import MockServer
from llmroute_gym.sim import FormulaBatchTime, Replica

MS = FormulaBatchTime(c0=0.001, c1=0.0, n0=0.0, c2=0.0, c3=0.0)
TERMS = Terms("m", Replica(MS, scheduler="vllm_v1", max_model_len=5000), 4, None, 0)
CHAT = [{"role": "user", "content": "How are you, and what is the weather like over there?"}]
SHORT = {"prompt": "x", "max_tokens": 4}

Story = Callable[[MockServer], Awaitable[None]]


class Answer(NamedTuple):
    status: int
    headers: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """What the events of a stream say; it must be whole."""
        texts = self.body.decode().split("\n\n")
        assert texts[-2:] == ["data: [DONE]", ""]
        return [json.loads(text.removeprefix("data: ")) for text in texts[:-2]]


def play(story: Story, terms: Terms = TERMS) -> None:
    """Runs a story against a server, of which nothing must be left."""

    async def whole() -> None:
        server = MockServer(terms)
        await server.start()
        try:
            await asyncio.wait_for(story(server), 20)
        finally:
            await server.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())


async def send(port: int | None, path: str, fields: Any = None) -> Any:
    """Returns the two ends of a connection on which a request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b"" if fields is None else json.dumps(fields).encode()
    method = "GET" if fields is None else "POST"
    head = f"{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def ask(port: int | None, path: str, fields: Any = None) -> Answer:
    reader, writer = await send(port, path, fields)
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return Answer(int(head.split()[1]), head.decode(), body)
    finally:
        writer.close()


async def read_events(reader: asyncio.StreamReader, got: list[bytes]) -> None:
    """Adds the events of a stream as they come, for ever."""
    while True:
        got.append(await reader.readuntil(b"\n\n"))


async def until_published(server: MockServer, *lines: str) -> None:
    """Waits for lines of the metrics; who leaves during a step is there until it ends."""
    while True:
        text = (await ask(server.port, "/metrics")).body.decode()
        if set(lines) <= set(text.splitlines()):
            return
        await asyncio.sleep(0.001)


async def fault(server: MockServer, **fields: Any) -> None:
    assert (await ask(server.ctl_port, "/ctl", fields)).status == 200


def test_a_completion_and_its_stream_say_the_same() -> None:
    async def story(server: MockServer) -> None:
        fields = {"model": "m", "prompt": "Once upon a time", "max_tokens": 5}
        whole = await ask(server.port, "/v1/completions", fields)
        assert (whole.status, whole.json["object"]) == (200, "text_completion")
        (choice,) = whole.json["choices"]
        assert choice["finish_reason"] == "length"
        assert len(choice["text"]) == 5 * 4
        usage = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
        assert whole.json["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 0}}

        streamed = await ask(server.port, "/v1/completions", {**fields, "stream": True})
        assert "content-type: text/event-stream" in streamed.headers
        choices = [event["choices"][0] for event in streamed.events()]
        assert "".join(one["text"] for one in choices) == choice["text"]
        assert [one["finish_reason"] for one in choices] == [None] * 4 + ["length"]
        assert not any("usage" in event for event in streamed.events())

    play(story)


@pytest.mark.parametrize("running", [False, True])
def test_a_chat_stream_tells_its_usage_where_asked(running: bool) -> None:
    async def story(server: MockServer) -> None:
        options = {"include_usage": True, "continuous_usage_stats": running}
        fields = {"messages": CHAT, "max_tokens": 3, "stream": True, "stream_options": options}
        events = (await ask(server.port, "/v1/chat/completions", fields)).events()
        assert {event["object"] for event in events} == {"chat.completion.chunk"}
        assert len({event["id"] for event in events}) == 1
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] == 3
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        counted = [event.get("usage", {}).get("completion_tokens") for event in events[:-1]]
        assert counted == ([0, 1, 2, 3] if running else [None] * 4)

        whole = await ask(server.port, "/v1/chat/completions", {"messages": CHAT, "max_tokens": 3})
        (choice,) = whole.json["choices"]
        text = "".join(delta["content"] for delta in deltas)
        assert choice["message"] == {"role": "assistant", "content": text}
        assert whole.json["object"] == "chat.completion"

    play(story)


def test_the_next_turn_of_a_chat_finds_the_one_before() -> None:
    async def story(server: MockServer) -> None:
        fields = {"messages": CHAT, "max_tokens": 100}
        first = (await ask(server.port, "/v1/chat/completions", fields)).json
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        more = [*CHAT, first["choices"][0]["message"], {"role": "user", "content": "And here?"}]
        second = (await ask(server.port, "/v1/chat/completions", {"messages": more})).json
        known = first["usage"]["total_tokens"] - 1  # the last token was never computed
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == known // 16 * 16 > 100

    play(story)


def test_what_it_tells_of_itself() -> None:
    async def story(server: MockServer) -> None:
        for path in ("/health", "/ping"):
            assert (await ask(server.port, path))[::2] == (200, b"")
        (model,) = (await ask(server.port, "/v1/models")).json["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("m", "model", 5000)
        assert "version" in (await ask(server.port, "/version")).json
        await fault(server, fault="slow", factor=10)
        _, writer = await send(server.port, "/v1/completions", {**SHORT, "max_tokens": 4000})
        while (await ask(server.port, "/load")).json["server_load"] == 0:
            await asyncio.sleep(0.001)
        await until_published(server, 'vllm:num_requests_running{engine="0",model_name="m"} 1')
        writer.close()
        await until_published(
            server,
            'vllm:num_requests_running{engine="0",model_name="m"} 0',
            'vllm:request_success_total{finished_reason="abort",engine="0",model_name="m"} 1',
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="1792",engine="0"} 1',
        )
        assert (await ask(server.port, "/load")).json["server_load"] == 0

    play(story)


def test_errors_are_worded_as_vllm_does() -> None:
    async def story(server: MockServer) -> None:
        for fields, status, kind in (
            ({"prompt": 3}, 400, "BadRequestError"),
            ({"prompt": "x", "model": "y"}, 404, "NotFoundError"),
        ):
            answer = await ask(server.port, "/v1/completions", fields)
            assert answer.status == status
            assert answer.json["error"]["type"] == kind
            assert answer.json["error"]["code"] == status
        assert (await ask(server.port, "/v1/completions/render", SHORT)).status == 404
        assert (await ask(server.port, "/ctl")).status == 404
        assert (await ask(server.port, "/v1/completions")).status == 405

    play(story)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_ordered_statuses_come_back(status: int) -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="status", status=status, retry_after=7, requests=2)
        for _ in range(2):
            answer = await ask(server.port, "/v1/completions", SHORT)
            assert answer.status == status
            assert ("retry-after: 7" in answer.headers) == (status != 500)
        assert (await ask(server.port, "/v1/completions", SHORT)).status == 200
        told = (await ask(server.ctl_port, "/ctl")).json
        assert told == {"faults": {}, "hits": {"status": 2}}

    play(story)


def test_a_share_of_the_requests_is_befallen() -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="status", share=0.3)
        got = [(await ask(server.port, "/v1/completions", SHORT)).status for _ in range(100)]
        assert 15 < got.count(500) < 45
        await fault(server, fault="none")
        assert (await ask(server.port, "/v1/completions", SHORT)).status == 200

    play(story)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_connection_is_reset(after: int, streamed: bool) -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="reset", after_tokens=after)
        reader, writer = await send(server.port, "/v1/completions", {**SHORT, "stream": streamed})
        got: list[bytes] = []
        with pytest.raises(ConnectionResetError):
            await read_events(reader, got)
        assert len(got) <= (after if streamed else 0)
        assert not any(b"[DONE]" in event for event in got)
        writer.close()
        assert (await ask(server.port, "/load")).json["server_load"] == 0

    play(story)


def test_a_stream_stalls_until_its_client_leaves() -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="stall", after_tokens=2)
        fields = {**SHORT, "max_tokens": 4000, "stream": True}
        reader, writer = await send(server.port, "/v1/completions", fields)
        got: list[bytes] = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_events(reader, got), 0.3)
        assert len(got) == 2
        assert (await ask(server.port, "/load")).json["server_load"] == 1
        writer.close()
        while (await ask(server.port, "/load")).json["server_load"]:
            await asyncio.sleep(0.001)

    play(story)


def test_slowness_and_delay_take_time() -> None:
    async def story(server: MockServer) -> None:
        loop = asyncio.get_running_loop()

        async def taken_s() -> float:
            began_s = loop.time()
            assert (await ask(server.port, "/v1/completions", SHORT)).status == 200
            return loop.time() - began_s

        await fault(server, fault="slow", factor=50)
        assert await taken_s() > 0.19
        await fault(server, fault="none")
        await fault(server, fault="delay", seconds=0.2, requests=1)
        assert await taken_s() > 0.19
        assert (await ask(server.ctl_port, "/ctl")).json["faults"] == {}
        assert min([await taken_s() for _ in range(5)]) < 0.15

    play(story)


def test_a_client_that_leaves_during_a_delay_is_forgotten() -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="delay", seconds=0.1)
        _, writer = await send(server.port, "/v1/completions", SHORT)
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.15)
        text = (await ask(server.port, "/metrics")).body.decode()
        assert 'vllm:generation_tokens_total{engine="0",model_name="m"} 0' in text

    play(story)


def test_a_sick_engine_says_so_and_goes_on() -> None:
    async def story(server: MockServer) -> None:
        await fault(server, fault="sick")
        assert (await ask(server.port, "/health")).status == 503
        assert (await ask(server.port, "/v1/completions", SHORT)).status == 200
        await fault(server, fault="none")
        assert (await ask(server.port, "/health")).status == 200

    play(story)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "fault must be one of status, delay, stall, reset, slow, sick, none, got None"),
        ({"fault": "fire"}, "fault must be one of"),
        ({"fault": ["sick"]}, "fault must be one of"),
        ({"fault": "none", "share": 1}, "fault must be one of"),
        ({"fault": "sick", "share": 1}, "sick takes no option, got 'share'"),
        ({"fault": "stall", "tokens": 1}, "stall takes after_tokens, share, requests, got"),
        ({"fault": "status", "status": 200}, "status must be a number from 400 to 599, got 200"),
        ({"fault": "slow", "factor": 0}, "factor must be a number from 0.001"),
        ({"fault": "delay", "seconds": "1"}, "seconds must be a number from 0"),
        ({"fault": "delay", "seconds": True}, "seconds must be a number from 0"),
        ({"fault": "reset", "requests": 0}, "requests must be a number from 1"),
    ],
)
def test_a_fault_that_is_unknown_changes_nothing(fields: Any, words: str) -> None:
    async def story(server: MockServer) -> None:
        answer = await ask(server.ctl_port, "/ctl", fields)
        assert answer.status == 400
        assert words in answer.json["error"]["message"]
        assert (await ask(server.ctl_port, "/ctl")).json["faults"] == {}

    play(story)


def test_a_port_that_is_taken_leaves_nothing_open() -> None:
    async def story(server: MockServer) -> None:
        other = MockServer(TERMS)
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await other.start(port=0, ctl_port=server.port)
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", other.port)

    play(story)


def test_many_clients_that_come_and_go_leave_nothing() -> None:
    async def client(server: MockServer, index: int) -> None:
        fields = {"prompt": [index % 7] * 100, "max_tokens": 1 + index * 7 % 60, "stream": True}
        reader, writer = await send(server.port, "/v1/completions", fields)
        if index % 3:
            await reader.read()
        else:
            await asyncio.sleep(index % 10 * 0.003)
        writer.close()

    async def story(server: MockServer) -> None:
        await asyncio.gather(*(client(server, index) for index in range(300)))
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        ends = (f'vllm:{name}{{engine="0",model_name="m"}} 0' for name in names)
        await until_published(server, *ends)
        assert (await ask(server.port, "/load")).json["server_load"] == 0

    play(story)
