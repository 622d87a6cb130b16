"""Backends, meters, what engines publish, and answers that come in any pieces."""

import asyncio
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import (
    BackendConfig,
    BreakerConfig,
    GatewayTimeouts,
    HealthConfig,
    ObservationConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.gateway.backends import Backend, State
from llmroute_gym.gateway.choosing import Chooser
from llmroute_gym.gateway.deciding import Decider
from llmroute_gym.gateway.meters import Counter, Gauge, Histogram, exposition
from llmroute_gym.gateway.upstream import Pool, Upstream
from llmroute_gym.gateway.watching import Published, read_metrics
from llmroute_gym.http.heads import AnswerHead
from llmroute_gym.routers import make
from tests.http.wires import Wire, split


class Clock:
    """Stands still unless it is set."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def backend(
    breaker: BreakerConfig | None = None, clock: Clock | None = None, **health: Any
) -> Backend:
    made = Backend(
        0,
        BackendConfig("a", "http://[::1]:80/x"),
        HealthConfig(**health),
        breaker or BreakerConfig(),
        GatewayTimeouts(),
        clock or Clock(),
    )
    made.introduced(good=True)
    return made


def test_a_backend_is_down_after_some_probes_and_tried_after_some() -> None:
    one = backend(down_after=2, up_after=2)
    states = []
    for good in (False, True, False, False, False, True, False, True, True, True):
        one.probed(good=good)
        states.append(one.state.value)
    assert states == ["up"] * 3 + ["down"] * 5 + ["trial"] * 2
    one.answered()
    assert one.state is State.UP
    one.broke("refused", 0.0)
    assert one.state is State.DOWN
    one.answered()
    assert one.state is State.DOWN


def test_a_trial_is_one_request() -> None:
    one = backend(down_after=1)
    one.probed(good=False)
    assert not one.usable(9)
    one.probed(good=True)
    assert one.usable(9)
    trial = one.placed(100)
    assert trial
    assert not one.usable(9)
    one.left(100, begun=False, trial=trial)
    assert one.usable(9)
    one.probed(good=False)
    assert one.state is State.DOWN
    assert (one.in_flight, one.prompt_tokens) == (0, 0)


def test_failures_in_a_row_leave_a_backend_out_for_longer_each_time() -> None:
    clock = Clock()
    one = backend(BreakerConfig(after=3, first_s=1.0, longest_s=5.0), clock)
    for _ in range(2):
        one.failed("503", clock())
    one.served()
    for _ in range(2):
        one.failed("503", clock())
    assert one.state is State.UP
    for rest_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        one.failed("503", clock())
        assert one.state is State.DOWN
        clock.now_s += rest_s - 0.01
        one.failed("503", clock.now_s - rest_s)
        one.probed(good=True)
        assert one.state is State.DOWN
        assert one.spare(9)
        clock.now_s += 0.01
        one.probed(good=True)
        assert one.state is State.TRIAL
    one.left(1, begun=False, trial=one.placed(1))
    one.answered()
    one.failed("its answer broke off", clock())
    assert one.state is State.DOWN
    clock.now_s += 5.0
    one.probed(good=True)
    one.answered()
    one.served()
    assert (one.state, one.failures) == (State.UP, 0)
    for _ in range(3):
        one.failed("503", clock())
    clock.now_s += 1.0
    one.probed(good=True)
    assert one.state is State.TRIAL


def test_what_fails_together_counts_once() -> None:
    clock = Clock()
    one = backend(BreakerConfig(after=2), clock)
    clock.now_s = 1.0
    for sent_s in (0.1, 0.2, 0.3):
        one.failed("it was killed", sent_s)
    assert (one.state, one.failures) == (State.UP, 1)
    one.failed("it is dead", 1.0)
    assert (one.state, one.failures) == (State.DOWN, 2)


def test_without_a_number_no_failures_leave_a_backend_out() -> None:
    one = backend(BreakerConfig(after=None))
    for _ in range(1000):
        one.failed("503", 0.0)
    assert one.state is State.UP


def test_refused_connections_leave_out_too_and_good_probes_make_a_last_resort() -> None:
    clock = Clock()
    one = backend(BreakerConfig(after=2), clock)
    one.broke("refused", 0.0)
    assert not one.spare(9)
    one.probed(good=True)
    assert (one.state, one.spare(9)) == (State.TRIAL, False)
    one.broke("refused", 0.0)
    assert (one.state, one.spare(9)) == (State.DOWN, False)
    one.probed(good=True)
    assert (one.state, one.spare(9)) == (State.DOWN, True)
    clock.now_s = 1.0
    one.probed(good=True)
    assert one.state is State.TRIAL


def test_addresses_of_all_kinds() -> None:
    one = backend()
    assert (one.host_header, one.path) == ("[::1]:80", "/x")
    assert BackendConfig("a", "http://host").address() == ("host", 80, "")
    assert BackendConfig("a", "http://host:81/").address() == ("host", 81, "")


def test_a_key_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "two words")
    for name in ("KEY", "NOT_THERE"):
        settings = BackendConfig("a", "http://host", key_env=name)
        with pytest.raises(InputError, match=rf"backends\[0\].key_env={name}: .* holds no key"):
            Backend(0, settings, HealthConfig(), BreakerConfig(), GatewayTimeouts())


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    counter = Counter("a_total", "Of a.", "code")
    counter.add("200")
    counter.add("200")
    histogram = Histogram("b_seconds", "Of b.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.add(value)
    gauge = Gauge("c", "Of c.", lambda: [(("x",), 0.25)], "backend")
    assert exposition([counter, histogram, gauge]).decode().splitlines() == [
        "# HELP a_total Of a.",
        "# TYPE a_total counter",
        'a_total{code="200"} 2',
        "# HELP b_seconds Of b.",
        "# TYPE b_seconds histogram",
        'b_seconds_bucket{le="0.1"} 2',
        'b_seconds_bucket{le="1"} 3',
        'b_seconds_bucket{le="+Inf"} 4',
        "b_seconds_sum 7.65",
        "b_seconds_count 4",
        "# HELP c Of c.",
        "# TYPE c gauge",
        'c{backend="x"} 0.25',
    ]


def test_what_engines_publish_is_read_and_several_are_added() -> None:
    text = b"".join(
        b'vllm:num_requests_running{engine="%d"} 3.0\n'
        b'vllm:num_requests_waiting{engine="%d"} 1.0\n'
        b'vllm:kv_cache_usage_perc{engine="%d"} 0.%d\n'
        b'vllm:prefix_cache_queries_total{engine="%d"} 1e2\n'
        b'vllm:prefix_cache_hits_total{engine="%d"} 50\n'
        b'vllm:inter_token_latency_seconds_sum{engine="%d"} 1.5\n'
        b'vllm:inter_token_latency_seconds_count{engine="%d"} 100\n' % (i, i, i, 2 + i, i, i, i, i)
        for i in range(2)
    )
    assert read_metrics(text) == Published(2, 6, 0.25, 0.5, 200, 3.0)
    assert read_metrics(b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n") is None
    assert read_metrics(text.replace(b" 3.0", b" e")) is None
    assert read_metrics(text.replace(b" 3.0", b" 1e999")) is None
    assert read_metrics(b"") is None


class Heard:
    """Keeps what is heard of an answer."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.content = b""

    def on_head(self, head: AnswerHead) -> None:
        self.heard.append(head.status)

    def on_body(self, content: bytes) -> None:
        self.content += content

    def on_end(self, content: bytes) -> None:
        self.content += content
        self.heard.append("end")

    def on_broken(self, reason: str) -> None:
        self.heard.append("broken")


ANSWERS = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    ),
    "a word before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
}
BROKEN = {
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a chunk without size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
}


def asked() -> tuple[Heard, Upstream, Wire, Pool]:
    pool, wire, heard = Pool("host", 1, 1.0, 3.0), Wire(), Heard()
    connection = Upstream(pool)
    connection.connection_made(wire)
    connection.send(b"GET / HTTP/1.1\r\n\r\n", heard)
    return heard, connection, wire, pool


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_the_same_at_every_split(name: str) -> None:
    whole = ANSWERS[name]
    for place in range(len(whole)):
        heard, connection, wire, pool = asked()
        for piece in split(whole, place):
            connection.data_received(piece)
        assert heard.heard == [204 if name == "nothing" else 200, "end"]
        assert heard.content == (b"" if name == "nothing" else b"hello")
        assert pool.take() is connection
        assert not wire.closed


@pytest.mark.parametrize("name", BROKEN)
def test_answers_that_are_none_break(name: str) -> None:
    for places in ((), range(0, len(BROKEN[name]), 1 + len(BROKEN[name]) // 50)):
        heard, connection, wire, pool = asked()
        for piece in split(BROKEN[name], *places):
            if not wire.closed:
                connection.data_received(piece)
        assert heard.heard[-1] == "broken"
        assert wire.aborted
        assert pool.take() is None


def test_more_than_an_answer_ends_the_connection() -> None:
    heard, connection, wire, pool = asked()
    connection.data_received(ANSWERS["a length"] * 2)
    assert heard.heard == [200, "end"]
    assert heard.content == b"hello"
    assert pool.take() is None
    assert wire.aborted


def test_an_answer_to_the_connections_end_ends_with_it() -> None:
    heard, connection, _, pool = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhel")
    connection.data_received(b"lo")
    assert heard.heard == [200]
    connection.eof_received()
    assert heard.heard == [200, "end"]
    assert heard.content == b"hello"
    assert pool.take() is None
    heard, connection, _, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhel")
    connection.connection_lost(ConnectionResetError())
    assert heard.heard == [200, "broken"]


def test_what_nobody_asked_for_closes_an_idle_connection() -> None:
    _, connection, wire, pool = asked()
    connection.data_received(ANSWERS["a length"])
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert wire.aborted
    assert pool.take() is None


def test_a_connection_for_one_request_is_used_by_no_other() -> None:
    heard, connection, wire, pool = asked()
    connection.data_received(ANSWERS["a length"])
    connection.send(b"GET / HTTP/1.1\r\n\r\n", heard, keep=False)
    connection.data_received(ANSWERS["a length"])
    assert heard.heard == [200, "end"] * 2
    assert pool.take() is None
    assert wire.aborted


def test_a_connection_that_is_lost_before_it_is_used_breaks() -> None:
    async def story() -> None:
        heard, connection, _, _ = asked()
        connection.data_received(ANSWERS["a length"])
        connection.connection_lost(None)
        connection.send(b"GET / HTTP/1.1\r\n\r\n", heard)
        await asyncio.sleep(0)
        assert heard.heard == [200, "end", "broken"]

    asyncio.run(story())


def test_a_connection_that_is_called_off_leaves_nothing() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool("127.0.0.1", port, 1.0, 3.0)
        for rounds in range(30):
            call_off = pool.connect(lambda _: None, lambda _: None)
            for _ in range(rounds % 10):
                await asyncio.sleep(0)
            call_off()
        await asyncio.wait_for(pool.close(), 5)
        assert pool.open == set()
        server.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("rule", "reads"), [("conditional_hash", True), ("smg_cache_aware", True), ("lor", False)]
)
def test_prompts_are_read_for_whoever_goes_by_their_blocks_or_heads(rule: str, reads: bool) -> None:
    told = ObservationConfig(information="router")
    decider = Decider(make(rule), [1.0, 1.0], told, np.random.default_rng(0))
    assert Chooser(decider, None, 1.0).reads_blocks is reads
