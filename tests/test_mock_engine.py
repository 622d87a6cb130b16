"""The command that stands in for vLLM servers."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from llmroute_gym.mock_engine import main

pytestmark = pytest.mark.cli


def free_port() -> int:
    """A port after which some are free too, very likely."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(int(one.getsockname()[1]), 65_000)


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs the command with settings that it refuses; returns what it says."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*overrides: str) -> str:
        monkeypatch.setattr("sys.argv", ["mock_engine", *overrides])
        with pytest.raises(SystemExit) as ended:
            main()
        out, said = capfd.readouterr()
        assert (ended.value.code, out, len(said.splitlines())) == (2, "", 1)
        assert folder.is_dir()
        assert not list(folder.iterdir())
        return said

    return run


def test_it_serves_engines_until_it_is_told_to_end(tmp_path: Path) -> None:
    port = free_port()
    settings = ("profile=h100-llama-3.1-8b", f"port={port}", f"ctl_port={port + 2}", "replicas=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "llmroute_gym.mock_engine", *settings, "speed=10"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    try:
        assert process.stdout is not None
        for index in range(2):
            assert process.stdout.readline() == (
                f"mock (h100-llama-3.1-8b, vllm_v1) at http://127.0.0.1:{port + index}, faults at "
                f"http://127.0.0.1:{port + 2 + index}/ctl\n"
            )
            fields = {"prompt": "Once", "max_tokens": 3, "model": "mock"}
            url = f"http://127.0.0.1:{port + index}/v1/completions"
            with urlopen(Request(url, json.dumps(fields).encode()), timeout=10) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
    assert not list(tmp_path.iterdir())


def test_it_takes_free_ports_and_says_which(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmroute_gym.mock_engine", "profile=h100-llama-3.1-8b"]
    with subprocess.Popen(
        [*command, "port=0", "replicas=2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    ) as process:
        try:
            assert process.stdout is not None
            urls = [process.stdout.readline().split()[-1] for _ in range(2)]
            assert urls[0] != urls[1]
            for url in urls:
                with urlopen(f"{url}/health", timeout=10) as answer:
                    assert answer.status == 200
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["profile=none"], "unknown profile 'none'"),
        (["port=-1"], "port must be >= 0 and <= 65535, got -1"),
        (["port=65535", "replicas=2"], "port must be at most 65534 for 2 engines, got 65535"),
        (["ctl_port=8001", "replicas=2"], "ctl_port=8001 falls on a port of an API"),
        (["oversize=reject"], "oversize=reject would not be read"),
        (["served_model_name="], "served_model_name is empty"),
        (["mean_output_tokens=0.5"], "mean_output_tokens must be >= 1, got 0.5"),
        (["scheduler=fifo"], "unknown scheduler 'fifo'"),
        (["prot=8000"], "prot"),
        (["host=256.0.0.1"], "cannot listen on 256.0.0.1:8000"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(
    refused: Callable[..., str], overrides: list[str], words: str
) -> None:
    assert words in refused(*overrides)


def test_a_port_that_is_taken_is_named(refused: Callable[..., str]) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused(f"port={port}")


def test_what_is_not_installed_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str, package: Any = None) -> None:
        return None

    monkeypatch.setattr("llmroute_gym.mock_engine.find_spec", absent)
    assert "pip install 'llmroute-gym[serve]'" in refused("port=8000")
