"""The command: its settings file, its start, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from llmroute_gym.config import ServeConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.config_file import read_settings

TWO = [{"name": "a", "url": "http://127.0.0.1:1"}, {"name": "b", "url": "http://127.0.0.1:2"}]


def written(folder: Path, **settings: object) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump({"backends": TWO, **settings}), encoding="utf-8")
    return path


def test_a_file_and_keys_on_top_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, listen="127.0.0.1:9000", policy={"rule": "lor_hybrid:a=0.7"})
    settings = read_settings(ServeConfig, path, ["policy.rule=round_robin", "retry.others=1"])
    assert settings.listen == "127.0.0.1:9000"
    assert settings.policy.rule == "round_robin"
    assert settings.retry.others == 1
    assert [one.name for one in settings.backends] == ["a", "b"]
    assert settings.observation.information == "router"


def test_a_policy_is_switched_on_and_back_by_the_mode_alone(tmp_path: Path) -> None:
    policy = {"mode": "shadow", "rule": "round_robin", "policy": "out.npz"}
    path = written(tmp_path, policy=policy)
    for mode in ("shadow", "learned", "shadow"):
        settings = read_settings(ServeConfig, path, [f"policy.mode={mode}"])
        assert settings.policy.mode == mode


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lisen": "127.0.0.1:1"}, "unknown key lisen; did you mean listen?"),
        ({"limits": {"headers": 0}}, "limits.headers must be >= 8, got 0"),
        ({"limits": {"headrs": 9}}, "unknown key limits.headrs; did you mean limits.headers?"),
        ({"timeouts": {"head_s": "soon"}}, "wrong value for timeouts.head_s"),
        ({"listen": "127.0.0.1"}, "listen must be HOST:PORT, such as 127.0.0.1:8080"),
        ({"listen": "127.0.0.1:70000"}, "listen must be HOST:PORT"),
        ({"listen": "::1:8080"}, "listen must be HOST:PORT"),
        ({"listen": "0.0.0.0:8080"}, "listen=0.0.0.0:8080 can be reached from other machines; set"),
        ({"admin": "10.0.0.1:8081"}, "admin=10.0.0.1:8081 can be reached from other machines"),
        ({"admin": "127.0.0.1:8080"}, "listen and admin are both 127.0.0.1:8080; give"),
        ({"backends": []}, "backends is empty; name at least one"),
        ({"backends": [TWO[0], TWO[0]]}, "backends names a twice"),
        (
            {"backends": [TWO[0], {"name": "b", "url": TWO[0]["url"] + "/"}]},
            "backends names http://127.0.0.1:1 twice",
        ),
        ({"backends": [{"name": "a b", "url": "http://a"}]}, "backends[0].name must be letters"),
        ({"backends": [{"name": "a"}]}, "backends[0].url must be http://HOST:PORT, got ''"),
        ({"backends": [{"name": "a", "url": "ftp://x"}]}, "backends[0].url must be http://HOST"),
        (
            {"backends": [{"name": "a", "url": "https://x"}]},
            "for TLS put a proxy",
        ),
        ({"backends": [{"name": "a", "url": "http://u:p@x"}]}, "it has no user, query or fragment"),
        ({"backends": [{"name": "a", "url": "http://x:99999"}]}, "must be http://HOST:PORT"),
        ({"backends": [{"name": "a", "url": "http://x/v1"}]}, "leave /v1 out, it is added"),
        ({"backends": [{"name": "a", "url": "http://x y"}]}, "must be http://HOST:PORT"),
        ({"backends": [{"name": "a", "url": "http://x", "speed": 0}]}, "backends[0].speed must be"),
        ({"policy": {"mode": "learned"}}, "policy.policy is missing: policy.mode=learned needs"),
        ({"policy": {"mode": "other"}}, "unknown policy.mode 'other'"),
        (
            {"policy": {"policy": "lor"}},
            "policy.policy=lor would not be read with",
        ),
        ({"observation": {"information": "engine"}}, "is more than any gateway can know"),
        ({"observation": {"information": "metrics"}}, "needs the engines' metrics; set"),
        ({"observation": {"prefix_view": "events"}}, "choose tree"),
        ({"observation": {"gateways": 2}}, "observation.gateways=2 would not be read"),
        ({"scrape": {"interval_s": 0.1}}, "scrape.interval_s must be >= 0.25, got 0.1"),
        ({"health": {"path": "health"}}, "health.path must be a path that begins with /"),
        ({"timeouts": {"grace_s": -1}}, "timeouts.grace_s must be >= 0, got -1"),
        ({"breaker": {"after": 0}}, "breaker.after must be >= 1, got 0"),
        ({"breaker": {"after": 2.5}}, "wrong value for breaker.after"),
        ({"breaker": {"first_s": 0}}, "breaker.first_s must be > 0, got 0"),
        (
            {"breaker": {"first_s": 60}},
            "breaker.longest_s must be >= breaker.first_s=60, got 30",
        ),
        ({"session_header": "a b"}, "session_header must be the name of a header"),
        ({"key_env": "a-b"}, "key_env must name an environment variable"),
    ],
)
def test_wrong_settings_are_one_sentence(
    given: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(ServeConfig, written(tmp_path, **given))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "must hold keys and values, got ['a', 'b']"),
        ("a: [1\nb: 2\n", "gateway.yaml, line 2: "),
        ("", "must hold keys and values, got None"),
        ("\xff", "must hold keys and values"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_settings(ServeConfig, path)
    assert words in str(caught.value)
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        read_settings(ServeConfig, tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_settings(ServeConfig, tmp_path)


class _Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(10):
            time.sleep(0.05)
            self.wfile.write(b"8\r\ndata: 1\n\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def started(path: Path, *typed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmroute_gym.serve", str(path), *typed]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.cli
def test_it_serves_drains_and_ends(engine: str, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        backends=[{"name": "a", "url": engine}],
        log=str(tmp_path / "log.csv"),
    )
    with started(path) as process:
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        port, admin = int(ports[3].strip(",")), int(ports[6])
        loaded = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        assert "torch" not in loaded
        assert b"OMP_NUM_THREADS=" in Path(f"/proc/{process.pid}/environ").read_bytes()
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as got:
            assert b"llmroute_backend_up" in got.read()
        with socket.create_connection(("127.0.0.1", port)) as client:
            body = b'{"prompt": "a", "stream": true}'
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % len(body) + body)
            client.settimeout(10)
            got_bytes = client.recv(65_536)
            process.send_signal(signal.SIGTERM)
            while piece := client.recv(65_536):
                got_bytes += piece
        assert got_bytes.endswith(b"0\r\n\r\n")
        assert process.wait(10) == 0
    lines = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert ",ok," in lines[1]


@pytest.mark.cli
def test_it_is_not_ready_for_a_while_before_it_ends(engine: str, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        listen="127.0.0.1:0",
        admin=None,
        backends=[{"name": "a", "url": engine}],
        timeouts={"grace_s": 60},
    )
    with started(path) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().split()[3].strip(',')}"
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as got:
            assert got.status == 200
        process.send_signal(signal.SIGTERM)
        code = 200
        while code == 200:
            code = ready(url)
        assert code == 503
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def ready(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.cli
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["polcy.mode=rule"], "unknown key polcy"),
        (["policy.rule=lorr"], "unknown router 'lorr'"),
        (["policy.rule=frontier"], "set scrape.interval_s=1 to read them"),
        (
            ["policy.mode=learned", "policy.policy=no.npz"],
            "the policy no.npz does not exist",
        ),
        (["policy.mode=shadow", "policy.policy=model.zip"], "llmroute_gym.export model.zip"),
        (
            ["policy.mode=learned", "policy.policy=/tmp"],
            "llmroute_gym.export /tmp policy",
        ),
        (["policy.rule"], "cannot read policy.rule; write key=value after the file"),
        (["policy.rule=oracle"], "only a simulator knows"),
        (["key_env=NOT_THERE"], "that environment variable holds no key"),
        (["log=/proc/nothing/log.csv"], "cannot write log=/proc/nothing/log.csv"),
        (["listen=127.0.0.1:1"], "cannot listen on 127.0.0.1:1: "),
    ],
)
def test_wrong_input_ends_with_2_and_one_sentence(
    typed: list[str], words: str, tmp_path: Path
) -> None:
    if os.geteuid() == 0 and typed == ["listen=127.0.0.1:1"]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = ended(written(tmp_path), f"listen=127.0.0.1:{port}", "admin=127.0.0.1:0")
        words = f"cannot listen on 127.0.0.1:{port}: "
    else:
        done = ended(written(tmp_path), *typed, "admin=127.0.0.1:0")
    code, _, said = done
    assert code == 2
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said


def ended(path: Path, *typed: str) -> tuple[int, str, str]:
    with started(path, *typed) as process:
        out, said = process.communicate(timeout=60)
        return process.returncode, out, said


@pytest.mark.cli
def test_without_a_file_it_says_how_it_is_called(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmroute_gym.serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "FILE" in done.stderr
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "FILE" in done.stdout
    assert json.dumps(done.stderr) == '""'
