"""Downloads against a local server: whole, resumed, wrong, absent."""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim import fetch
from llmroute_gym.sim.traces import load_trace

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"".join(
    b"2023-11-16 18:%02d:%02d.5000000,%d,%d\n" % (i // 60, i % 60, 100 + i, 10 + i)
    for i in range(3000)
)
NAME = "azure_conv_2023"
FILE = "AzureLLMInferenceTrace_conv.csv"


class Published:
    """What the server holds and how it behaves; requests are recorded."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.die_after: int | None = None  # bytes sent per connection
        self.wrong_range = False
        self.requested: list[str | None] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, published: Published, *arguments: object) -> None:
        self.published = published
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        published = self.published
        published.requested.append(self.headers.get("Range"))
        if not self.path.endswith(FILE):
            self.send_error(404)
            return
        start = 0
        same = published.etag is not None and self.headers.get("If-Range") == published.etag
        if published.ranges and self.headers.get("Range") and same:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(published.content):
                self.send_error(416)
                return
            self.send_response(206)
            shown = start + 1 if published.wrong_range else start
            last, size = len(published.content) - 1, len(published.content)
            self.send_header("Content-Range", f"bytes {shown}-{last}/{size}")
        else:
            self.send_response(200)
        body = published.content[start:]
        self.send_header("Content-Length", str(len(body)))
        if published.etag:
            self.send_header("ETag", published.etag)
        self.end_headers()
        self.wfile.write(body[: published.die_after])


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Published()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state))
    state.url = f"http://127.0.0.1:{server.server_port}/{FILE}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(published: Published, out: Path) -> Path:
    return fetch.fetch_trace(NAME, out, url=published.url, timeout_s=5, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def with_checksum(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    known = fetch.PublicTrace(fetch.PUBLIC_TRACES[NAME].url, "test", sha256)
    monkeypatch.setitem(fetch.PUBLIC_TRACES, NAME, known)


def test_download_is_whole_recorded_and_readable(published: Published, tmp_path: Path) -> None:
    path = fetched(published, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [FILE, f"{FILE}.sha256"]
    record = (path.parent / f"{FILE}.sha256").read_text()
    assert record == f"{hashlib.sha256(CONTENT).hexdigest()}  {FILE}\n"
    assert len(load_trace(path)) == 3000


def test_file_at_hand_is_verified_not_downloaded(published: Published, tmp_path: Path) -> None:
    fetched(published, tmp_path)
    fetched(published, tmp_path)
    assert len(published.requested) == 1
    (tmp_path / FILE).write_bytes(b"changed")
    with pytest.raises(InputError, match=r"has the sha256 \w+, expected \w+; delete it"):
        fetched(published, tmp_path)


def test_broken_connection_is_resumed(published: Published, tmp_path: Path) -> None:
    published.die_after = 50_000
    assert fetched(published, tmp_path).read_bytes() == CONTENT
    assert published.requested == [None, "bytes=50000-", "bytes=100000-"]
    assert names(tmp_path) == [FILE, f"{FILE}.sha256"]


def test_part_of_an_earlier_run_is_resumed(published: Published, tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(CONTENT[:1234])
    (tmp_path / f"{FILE}.tag.part").write_text('"v1"')
    assert fetched(published, tmp_path).read_bytes() == CONTENT
    assert published.requested == ["bytes=1234-"]


@pytest.mark.parametrize("change", ["new version", "no ranges", "no tag", "beyond the end"])
def test_download_restarts_where_it_cannot_resume(
    published: Published, tmp_path: Path, change: str
) -> None:
    stale = b"x" * (len(CONTENT) if change == "beyond the end" else 1234)
    (tmp_path / f"{FILE}.part").write_bytes(stale)
    if change != "no tag":
        (tmp_path / f"{FILE}.tag.part").write_text('"v0"' if change == "new version" else '"v1"')
    published.ranges = change != "no ranges"
    assert fetched(published, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == [FILE, f"{FILE}.sha256"]


def test_wrong_range_is_not_appended(published: Published, tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(CONTENT[:1234])
    (tmp_path / f"{FILE}.tag.part").write_text('"v1"')
    published.wrong_range = True
    assert fetched(published, tmp_path).read_bytes() == CONTENT


def test_server_that_always_dies_is_given_up(published: Published, tmp_path: Path) -> None:
    published.die_after, published.ranges = 500, False
    with pytest.raises(InputError, match=r"broke off: 500 of \d+ bytes arrived; run the command"):
        fetched(published, tmp_path)
    assert len(published.requested) == 1 + fetch.ATTEMPTS
    assert not (tmp_path / FILE).exists()
    assert (tmp_path / f"{FILE}.part").read_bytes() == CONTENT[:500]


def test_right_checksum_passes(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_checksum(monkeypatch, hashlib.sha256(CONTENT).hexdigest())
    assert fetched(published, tmp_path).read_bytes() == CONTENT


def test_wrong_checksum_discards_the_download(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_checksum(monkeypatch, "0" * 64)
    with pytest.raises(InputError, match=r"expected 0000.* discarded"):
        fetched(published, tmp_path)
    assert names(tmp_path) == []


def test_second_download_is_held_to_the_recorded_checksum(
    published: Published, tmp_path: Path
) -> None:
    fetched(published, tmp_path).unlink()
    published.content = CONTENT.replace(b"100,10", b"999,10")
    with pytest.raises(InputError, match="discarded; try again, or delete"):
        fetched(published, tmp_path)
    assert names(tmp_path) == [f"{FILE}.sha256"]


def test_damaged_record_is_named(published: Published, tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.sha256").write_text("nonsense\n")
    with pytest.raises(InputError, match="does not hold a sha256"):
        fetched(published, tmp_path)


def test_missing_file_names_status_and_address(published: Published, tmp_path: Path) -> None:
    url = published.url + ".gone"
    with pytest.raises(InputError, match=r"answered HTTP 404 .*download it by hand from http"):
        fetch.fetch_trace(NAME, tmp_path, url=url, progress=False)
    assert names(tmp_path) == []


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port  # free again, and silent, once the block ends
    url = f"http://127.0.0.1:{port}/{FILE}"
    expected = rf"could not reach 127.0.0.1:{port}: .* by hand from {url} and pass workload.path="
    with pytest.raises(InputError, match=expected):
        fetch.fetch_trace(NAME, tmp_path, url=url, progress=False)


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://host/x", "host/x", "http://", ""])
def test_only_http_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="url must begin with http"):
        fetch.fetch_trace(NAME, tmp_path, url=url)


def test_folder_that_is_a_file(published: Published, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        fetched(published, tmp_path / "file")


def test_command_prints_the_path(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch.main([NAME, "--out", str(tmp_path), "--url", published.url]) == 0
    assert capsys.readouterr().out == f"{tmp_path / FILE}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["azure_conv"], "unknown trace 'azure_conv'"),
        ([], "NAME"),
        ([NAME, "--nope"], "--nope"),
        ([NAME, "--url", "nope"], "url must begin with http"),
    ],
)
def test_command_ends_with_2_and_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status: Callable[[], int] = functools.partial(fetch.main, words)
    try:
        code: object = status()
    except SystemExit as ended:
        code = ended.code
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert expected in message


def test_every_public_trace_has_its_own_file_at_its_publisher() -> None:
    traces = fetch.PUBLIC_TRACES.values()
    assert len({trace.file_name for trace in traces}) == len(traces)
    for trace in traces:
        assert trace.url.startswith(("https://raw.githubusercontent.com/", "https://github.com/"))
        assert trace.licence
