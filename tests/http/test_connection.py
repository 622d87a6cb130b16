"""What a server makes of bytes, however they come."""

import errno

import pytest

from llmroute_gym.config import HttpLimits, HttpTimeouts
from llmroute_gym.http.heads import HttpError, RequestHead
from llmroute_gym.http.responder import Responder
from tests.http.corpus import GOOD, HOST, MALFORMED, SMUGGLED, post
from tests.http.wires import Client, Wire, answers, split

LIMITS = HttpLimits(head_bytes=1024, target_bytes=512, headers=16, body_bytes=1000)
GET = b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n"


def outcome(*pieces: bytes) -> tuple[bytes, bool, list[bytes]]:
    client = Client(LIMITS).feed(*pieces)
    return client.wire.written, client.wire.ended, [body for _, body in client.requests]


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_their_status_and_the_connection_ends(name: str) -> None:
    status, whole = MALFORMED[name]
    client = Client(LIMITS).feed(whole, SMUGGLED)
    assert client.statuses == [status]
    assert client.wire.ended
    assert client.requests == []
    assert client.site.refused == {status: 1}
    assert client.site.held_bytes == 0


@pytest.mark.parametrize("name", GOOD)
def test_good_requests_arrive_and_are_answered_in_order(name: str) -> None:
    whole, bodies = GOOD[name]
    client = Client(LIMITS).feed(whole)
    assert [body for _, body in client.requests] == bodies
    assert answers(client.wire.written) == [(200, body) for body in bodies]
    assert client.site.held_bytes == 0


@pytest.mark.parametrize("name", [*MALFORMED, *GOOD])
def test_splits_change_nothing(name: str) -> None:
    whole = MALFORMED[name][1] if name in MALFORMED else GOOD[name][0]
    expected = outcome(whole)
    for place in range(1, len(whole)):
        assert outcome(*split(whole, place)) == expected, place
    assert outcome(*split(whole, *range(1, len(whole)))) == expected


@pytest.mark.parametrize("ends", [b"\r\n\r", b"\r\n\r\n", b"\r\n\r\n" + GET])
def test_one_line_end_may_come_before_a_request_however_it_is_split(ends: bytes) -> None:
    assert answers(Client(LIMITS).feed(b"\r\n" + GET).wire.written) == [(200, b"")]
    client = Client(LIMITS).feed(GET + b"\r\n" + GET)
    assert client.statuses == [200, 200]
    for place in range(len(ends)):
        client = Client(LIMITS).feed(*split(GET + ends, len(GET) + place))
        assert client.statuses == [200, 400]
        assert client.wire.ended


def test_a_path_and_a_method_that_are_not_there_leave_the_connection_open() -> None:
    client = Client().feed(b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n")
    client.feed(b"DELETE /echo HTTP/1.1\r\n" + HOST + b"\r\n", GET)
    assert client.statuses == [404, 405, 200]
    assert b"allow: GET, HEAD, POST\r\n" in client.wire.written
    assert not client.wire.ended


def test_what_has_a_body_is_refused_before_it_is_sent() -> None:
    client = Client().feed(b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n")
    assert client.statuses == [404]
    assert client.wire.ended


def test_leave_to_send_a_body_is_given_once_the_head_is_taken() -> None:
    head = post(b"Content-Length: 3\r\nExpect: 100-continue\r\n")
    client = Client(LIMITS).feed(head)
    assert client.wire.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.feed(b"abc").statuses == [200]
    assert b"100" not in Client(LIMITS).feed(head + b"abc").wire.written.partition(b"\r\n")[0]
    refused = Client(LIMITS).feed(post(b"Content-Length: 3000\r\nExpect: 100-continue\r\n"))
    assert refused.statuses == [413]
    assert refused.wire.written.startswith(b"HTTP/1.1 413 ")


def test_head_is_get_without_a_body() -> None:
    client = Client()
    client.connection.data_received(b"HEAD /echo HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.wire.written == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_a_client_that_wants_to_close_is_obeyed() -> None:
    client = Client().feed(b"GET /echo HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", GET)
    assert client.statuses == [200]
    assert client.wire.ended
    old = Client().feed(b"GET /echo HTTP/1.0\r\n\r\n")
    assert old.wire.ended
    kept = Client().feed(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert not kept.wire.ended
    assert b"connection: keep-alive\r\n" in kept.wire.written


def test_ten_thousand_requests_in_one_piece_do_not_nest() -> None:
    assert Client().feed(GET * 10_000).statuses == [200] * 10_000


class Held(Client):
    """Answers only when told."""

    def __init__(self, **options: object) -> None:
        self.responders: list[Responder] = []
        super().__init__(**options)  # type: ignore[arg-type]

    def echo(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        self.requests.append((request, body))
        self.responders.append(responder)


def test_requests_of_a_connection_are_handled_one_by_one() -> None:
    client = Held().feed(GET + GET)
    assert len(client.requests) == 1
    client.responders[0].send(200, b"first")
    assert len(client.requests) == 2
    client.responders[1].send(200, b"second")
    assert answers(client.wire.written) == [(200, b"first"), (200, b"second")]


def test_a_client_that_sends_far_ahead_is_not_read_on() -> None:
    client = Held().feed(GET, GET * 3000)
    assert client.wire.paused
    client.responders[0].send(200)
    assert not client.wire.paused


def test_bodies_are_counted_while_they_are_held() -> None:
    client = Held(limits=HttpLimits(bodies_bytes=5)).feed(post(b"Content-Length: 4\r\n", b"abcd"))
    assert client.site.held_bytes == 4
    other = Client()
    other.connection._site = client.site
    assert other.feed(post(b"Content-Length: 4\r\n", b"abcd")).statuses == [503]
    client.responders[0].send(200)
    assert client.site.held_bytes == 0


def test_a_client_that_leaves_is_told_once() -> None:
    client = Held().feed(post(b"Content-Length: 3\r\n", b"abc"))
    told: list[bool] = []
    client.responders[0].on_disconnect = lambda: told.append(True)
    client.connection.eof_received()
    assert client.wire.aborted
    client.connection.connection_lost(None)
    assert told == [True]
    client.responders[0].send(200, b"late")
    assert client.wire.written == b""
    assert client.site.connections == set()
    assert client.site.held_bytes == 0


def test_a_client_that_leaves_after_its_answer_tells_nobody() -> None:
    client = Held().feed(GET)
    told: list[bool] = []
    client.responders[0].on_disconnect = lambda: told.append(True)
    client.responders[0].send(200)
    client.connection.connection_lost(None)
    assert told == []


def test_chunks_go_as_they_are_written_and_the_head_goes_with_the_first() -> None:
    client = Held().feed(GET)
    responder = client.responders[0]
    responder.start(200, [(b"content-type", b"text/event-stream")])
    assert client.wire.written == b""
    responder.write(b"one")
    assert client.wire.written.endswith(b"\r\n\r\n3\r\none\r\n")
    responder.write(b"")
    responder.end(b"two")
    assert answers(client.wire.written) == [(200, b"onetwo")]


def test_an_answer_that_is_cut_is_not_whole() -> None:
    client = Held().feed(GET)
    responder = client.responders[0]
    responder.start(200)
    responder.write(b"one")
    responder.cut()
    assert client.wire.ended
    assert not client.wire.written.endswith(b"0\r\n\r\n")
    short = Held().feed(GET)
    short.responders[0].start(200, length=5)
    short.responders[0].end(b"abc")
    assert short.wire.ended


def test_an_old_client_gets_a_body_to_the_end_and_a_reset_if_it_is_cut() -> None:
    old = b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    client = Held().feed(old)
    client.responders[0].start(200)
    client.responders[0].end(b"all")
    assert client.wire.written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall"
    assert client.wire.ended
    other = Held().feed(old)
    other.responders[0].start(200)
    other.responders[0].write(b"a")
    other.responders[0].cut()
    assert other.wire.aborted


def test_a_handler_that_fails_ends_in_500_or_a_cut(caplog: pytest.LogCaptureFixture) -> None:
    def late(request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.start(200)
        responder.write(b"a")
        raise ValueError("broken")

    def early(request: RequestHead, body: bytes, responder: Responder) -> None:
        raise ValueError("broken")

    client = Client(routes={"/echo": {"GET": early}}).feed(GET, GET)
    assert client.statuses == [500, 500]
    assert b"broken" not in client.wire.written
    client = Client(routes={"/echo": {"GET": late}}).feed(GET)
    assert client.wire.ended
    assert not client.wire.written.endswith(b"0\r\n\r\n")
    assert "a handler of /echo failed" in caplog.text


def test_what_takes_too_long_gets_408_or_is_closed() -> None:
    timeouts = HttpTimeouts(head_s=10, body_s=30, idle_s=75)
    silent = Client(timeouts=timeouts)
    silent.connection.look(10.0)
    assert silent.wire.closed
    assert silent.wire.written == b""
    slow = Client(timeouts=timeouts).feed(b"GET /ec")
    slow.connection.look(9.9)
    assert slow.wire.written == b""
    slow.connection.look(10.0)
    assert slow.statuses == [408]
    body = Client(timeouts=timeouts).feed(post(b"Content-Length: 3\r\n", b"ab"))
    body.connection.look(29.9)
    assert body.wire.written == b""
    body.connection.look(30.0)
    assert body.statuses == [408]
    assert body.site.held_bytes == 0
    idle = Client(timeouts=timeouts).feed(GET)
    idle.connection.look(74.9)
    assert not idle.wire.closed
    idle.connection.look(75.0)
    assert idle.wire.closed
    assert idle.statuses == [200]


def test_the_clock_of_a_head_starts_with_its_first_byte() -> None:
    client = Client(timeouts=HttpTimeouts(head_s=10)).feed(GET)
    client.clock.now_s = 70.0
    client.feed(b"GET /echo")
    client.connection.look(79.9)
    assert client.statuses == [200]
    client.connection.look(80.0)
    assert client.statuses == [200, 408]


def test_a_client_that_takes_nothing_pauses_its_source_and_is_cut_in_time() -> None:
    client = Held(timeouts=HttpTimeouts(send_s=60)).feed(GET)
    told: list[str] = []
    responder = client.responders[0]
    responder.on_pause = lambda: told.append("pause")
    responder.on_resume = lambda: told.append("resume")
    responder.start(200)
    client.connection.look(1e6)  # an answer may take its time
    client.connection.pause_writing()
    assert responder.paused
    client.connection.resume_writing()
    assert told == ["pause", "resume"]
    client.connection.look(1e6)
    assert not client.wire.closed
    client.connection.pause_writing()
    client.connection.look(60.0)
    assert client.wire.aborted


def test_a_client_that_takes_nothing_is_not_answered_again() -> None:
    client = Held().feed(GET + GET)
    client.connection.pause_writing()
    client.responders[0].send(200)
    assert len(client.requests) == 1
    client.connection.resume_writing()
    assert len(client.requests) == 2


def test_a_client_that_stays_after_the_last_answer_is_left() -> None:
    client = Client().feed(b"nonsense")
    client.feed(b"more of it")
    client.connection.look(1.9)
    assert not client.wire.closed
    client.wire.unsent = 5
    client.connection.look(2.0)
    assert not client.wire.closed
    client.wire.unsent = 0
    client.connection.look(2.0)
    assert client.wire.aborted


def test_a_gate_refuses_before_the_body_comes() -> None:
    def closed(head: RequestHead) -> None:
        raise HttpError(401, "who is there?", [(b"www-authenticate", b"Bearer")])

    client = Client()
    client.site._gate = closed
    client.feed(post(b"Content-Length: 1000\r\n"))
    assert client.statuses == [401]
    assert b"www-authenticate: Bearer\r\n" in client.wire.written


def test_an_answer_is_written_between_its_start_and_its_end() -> None:
    client = Held().feed(GET)
    responder = client.responders[0]
    with pytest.raises(RuntimeError, match="between its start and its end"):
        responder.write(b"a")
    responder.start(200, length=1)
    with pytest.raises(RuntimeError, match="starts once"):
        responder.start(200)
    with pytest.raises(RuntimeError, match="longer than it says"):
        responder.write(b"ab")


def test_who_answers_is_not_told_that_the_client_has_reset_the_connection() -> None:
    class Reset(Wire):
        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    client = Held()
    client.connection.connection_made(wire := Reset())
    client.feed(GET.replace(b"1.1", b"1.0"))
    client.responders[0].send(200, b"a")  # then this side ends
    assert answers(wire.written) == [(200, b"a")]


def test_nothing_is_written_to_what_is_closing() -> None:
    client = Held().feed(GET)
    responder = client.responders[0]
    responder.start(200)
    client.wire.closed = True
    responder.write(b"a")
    assert client.wire.written == b""
