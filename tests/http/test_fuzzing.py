"""Any bytes, split anyhow: nothing breaks, and two readers agree on what the requests are."""

from contextlib import suppress
from typing import Any

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from llmroute_gym.http.bodies import ChunkedBody
from llmroute_gym.http.heads import HttpError, parse_answer
from tests.http.corpus import GOOD, MALFORMED
from tests.http.test_connection import LIMITS
from tests.http.wires import Client, answers, split

WHOLE = [whole for _, whole in MALFORMED.values()] + [whole for whole, _ in GOOD.values()]
SCRAPS = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"0", b"ffffffff", b"-1", b";", b"\xff"),
    *(b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: x\r\n", b"\r\n\r\n"),
    *(
        b"GET /echo HTTP/1.1\r\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
    ),
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Draws good and bad requests in a row, with pieces dropped, repeated or put in."""
    whole = b"".join(draw(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(whole)))
        end = draw(st.integers(start, min(len(whole), start + 20)))
        scrap = draw(
            st.sampled_from(SCRAPS) | st.binary(max_size=3) | st.just(whole[start:end] * 2)
        )
        whole = whole[:start] + scrap + whole[end:]
    return whole


class Reader:
    """What llhttp alone takes the requests to be, to the first that it refuses."""

    def __init__(self, whole: bytes) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.url = b""
        self.parser = httptools.HttpRequestParser(self)
        with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.parser.feed_data(whole)

    def on_url(self, url: bytes) -> None:
        self.url, self.parts = url, []

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.requests.append((self.url, b"".join(self.parts)))


@settings(max_examples=400, deadline=None)
@given(mangled() | st.binary(max_size=200), st.data())
def test_whatever_comes_is_answered_alike_however_it_is_split(whole: bytes, data: Any) -> None:
    client = Client(LIMITS).feed(whole)
    statuses = [status for status, _ in answers(client.wire.written)]
    assert all(status in (200, 404, 405) for status in statuses[:-1])
    assert client.wire.ended or all(status < 406 for status in statuses)
    assert client.site.held_bytes == sum(map(len, client.connection._parts))
    places = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    again = Client(LIMITS).feed(*split(whole, *places))
    assert answers(again.wire.written) == answers(client.wire.written)
    assert again.wire.ended == client.wire.ended
    assert [body for _, body in again.requests] == [body for _, body in client.requests]


@settings(max_examples=400, deadline=None)
@given(mangled())
def test_what_is_taken_is_what_llhttp_takes(whole: bytes) -> None:
    client = Client(LIMITS).feed(whole)
    taken = [(head.target, body) for head, body in client.requests]
    if b"pgrade" in whole:
        return  # llhttp stops there
    found = [request for request in Reader(whole).requests if request[0].split(b"?")[0] == b"/echo"]
    assert taken == found[: len(taken)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.binary(max_size=9), st.data())
def test_chunks_of_any_content_are_put_together(
    parts: list[bytes], after: bytes, data: Any
) -> None:
    whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    body, content, rest = ChunkedBody(data.draw(st.sampled_from((None, 10_000)))), b"", b""
    places = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    for piece in split(whole + after, *places):
        if body.done:
            rest += piece
        else:
            mine, rest = body.take(piece)
            content += mine
    assert body.done
    assert (content, rest) == (b"".join(parts), after)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n")
        )
        | st.sampled_from(SCRAPS)
        | st.binary(max_size=5),
        max_size=6,
    )
)
def test_a_head_of_an_answer_is_taken_apart_or_refused(scraps: list[bytes]) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(scraps) + b"\r\n\r\n"
    try:
        answer = parse_answer(head)
    except HttpError:
        return
    assert not (answer.chunked and answer.length is not None)
    assert sum(name == b"content-length" for name, _ in answer.headers) <= 1


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from((*SCRAPS, b"3\r\nabc\r\n", b"1\r\n\n\r\n")), max_size=8))
def test_quick_and_careful_readers_of_chunks_agree(scraps: list[bytes]) -> None:
    """A body with a limit is read line by line, one without it by whole chunks first."""

    def read(limit: int | None) -> object:
        body = ChunkedBody(limit)
        try:
            content, rest = body.take(b"".join(scraps))
        except HttpError as error:
            return error.message
        return content, rest, body.done

    assert read(None) == read(2**60)
