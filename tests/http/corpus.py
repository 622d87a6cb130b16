"""Requests that must not be taken, each with the status it gets."""

HOST = b"Host: x\r\n"


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


SMUGGLED = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"

MALFORMED: dict[str, tuple[int, bytes]] = {
    "length and chunks": (
        400,
        post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    ),
    "chunks and length": (
        400,
        post(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n" + SMUGGLED),
    ),
    "two lengths": (400, post(b"Content-Length: 3\r\nContent-Length: 5\r\n", b"abcde")),
    "the same length twice": (400, post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc")),
    "a list of lengths": (400, post(b"Content-Length: 3, 3\r\n", b"abc")),
    "a signed length": (400, post(b"Content-Length: +3\r\n", b"abc")),
    "a negative length": (400, post(b"Content-Length: -3\r\n", b"abc")),
    "a hexadecimal length": (400, post(b"Content-Length: 0x3\r\n", b"abc")),
    "no digits": (400, post(b"Content-Length: \r\n", b"abc")),
    "a length that overflows": (400, post(b"Content-Length: 18446744073709551619\r\n", b"abc")),
    "two codings": (
        400,
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ),
    "an unknown coding": (501, post(b"Transfer-Encoding: gzip\r\n", b"")),
    "chunks twice": (400, post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n")),
    "a coding after chunks": (501, post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n")),
    "a misspelt coding": (501, post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n")),
    "chunks in HTTP/1.0": (
        400,
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a folded header": (400, post(b"Content-Length: 3\r\nA: b\r\n c\r\n", b"abc")),
    "a folded length": (400, post(b"Content-Length:\r\n 3\r\n", b"abc")),
    "a bare LF in the head": (400, b"POST /echo HTTP/1.1\nHost: x\r\nContent-Length: 0\r\n\r\n"),
    "a head of bare LFs": (400, b"GET /echo HTTP/1.1\nHost: x\n\n"),
    "a bare CR": (400, b"GET /echo HTTP/1.1\r\nHost: x\rA: b\r\n\r\n"),
    "a space before the colon": (400, post(b"Content-Length : 3\r\n", b"abc")),
    "a header without a name": (400, post(b": 3\r\nContent-Length: 0\r\n")),
    "a header without a colon": (400, post(b"Content-Length\r\n")),
    "a NUL in a name": (400, post(b"Content\x00-Length: 3\r\n", b"abc")),
    "a NUL in a value": (400, post(b"Content-Length: 3\r\nA: b\x00c\r\n", b"abc")),
    "an absolute target": (400, b"GET http://other/echo HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target of another host": (400, b"CONNECT other:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a star": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a fragment": (400, b"GET /echo#a HTTP/1.1\r\nHost: x\r\n\r\n"),
    "bytes beyond ASCII": (400, b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two spaces": (400, b"GET  /echo HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a space in the target": (400, b"GET /ec ho HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a tab": (400, b"GET\t/echo HTTP/1.1\r\nHost: x\r\n\r\n"),
    "no version": (400, b"GET /echo\r\n\r\n"),
    "no host": (400, b"GET /echo HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET /echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    "another protocol": (400, b"GET /echo RTSP/1.0\r\nHost: x\r\n\r\n"),
    "a handshake of TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a method in lower case": (400, b"get /echo HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an unknown method": (501, b"BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET /echo HTTP/1.2\r\nHost: x\r\n\r\n"),
    "an expectation": (417, post(b"Content-Length: 3\r\nExpect: 200-ok\r\n", b"abc")),
    "no length": (411, post(b"")),
    "too long a body": (413, post(b"Content-Length: 1001\r\n", b"")),
    "too long a body in chunks": (
        413,
        post(b"Transfer-Encoding: chunked\r\n", b"1f4\r\n" + b"a" * 500 + b"\r\n1f5\r\n"),
    ),
    "too long a line": (414, b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "too long a head": (431, post(b"A: " + b"b" * 2000 + b"\r\nContent-Length: 0\r\n")),
    "a head without an end": (431, b"GET /echo HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 2000),
    "too many headers": (431, post(b"a:b\r\n" * 20 + b"Content-Length: 0\r\n")),
    "no size of a chunk": (400, post(b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n")),
    "a signed size": (400, post(b"Transfer-Encoding: chunked\r\n", b"+1\r\na\r\n0\r\n\r\n")),
    "a prefixed size": (400, post(b"Transfer-Encoding: chunked\r\n", b"0x1\r\na\r\n0\r\n\r\n")),
    "a size that overflows": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"f" * 17 + b"\r\na\r\n0\r\n\r\n"),
    ),
    "a chunk that is longer": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"1\r\nab\r\n0\r\n\r\n"),
    ),
    "a chunk that ends with LF": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"1\r\na\n0\r\n\r\n"),
    ),
    "a size that ends with LF": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"1\na\r\n0\r\n\r\n"),
    ),
    "an extension that hides a line end": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"1;a\rb\r\na\r\n0\r\n\r\n"),
    ),
    "an extension without an end": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"1;" + b"a" * 300),
    ),
    "a folded trailer": (
        400,
        post(b"Transfer-Encoding: chunked\r\n", b"0\r\nA: b\r\n c\r\n\r\n"),
    ),
}
"""Name to status and bytes; limits as in `LIMITS`."""

GOOD: dict[str, tuple[bytes, list[bytes]]] = {
    "a GET": (b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", [b""]),
    "a POST": (post(b"Content-Length: 3\r\n", b"abc"), [b"abc"]),
    "an empty POST": (post(b"Content-Length: 0\r\n"), [b""]),
    "chunks": (
        post(b"Transfer-Encoding: chunked\r\n", b"2\r\nab\r\n001;x=y\r\nc\r\n0\r\nA: b\r\n\r\n"),
        [b"abc"],
    ),
    "a coding in capitals": (
        post(b"Transfer-Encoding: Chunked\r\n", b"A\r\n0123456789\r\n0\r\n\r\n"),
        [b"0123456789"],
    ),
    "several in a row": (
        post(b"Content-Length: 3\r\n", b"abc")
        + b"\r\n"
        + post(b"Transfer-Encoding: chunked\r\n", b"2\r\n\r\n\r\n0\r\n\r\n")
        + b"GET /echo?q HTTP/1.1\r\nHost: x\r\n\r\n"
        + post(b"Content-Length: 1\r\n", b"d"),
        [b"abc", b"\r\n", b"", b"d"],
    ),
    "an upgrade that is not offered": (
        post(b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"abc"),
        [b"abc"],
    ),
    "a body that looks like a request": (
        post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
        [SMUGGLED],
    ),
    "HTTP/1.0": (b"POST /echo HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", [b"abc"]),
}
"""Name to bytes, and the bodies that arrive."""
