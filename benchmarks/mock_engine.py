"""How punctual the mock engine is, and what it costs: many streams of steps of equal length.

python benchmarks/mock_engine.py [--rounds N] [--seconds S] [--write]
"""

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, cast
from urllib.request import urlopen

import uvloop
from measuring import load_average, origin, table, write_section

from llmroute_gym.sim import FormulaBatchTime, Replica
from llmroute_gym.sim.profile_time import LIMITS, Profile
from llmroute_gym.sim.profile_writer import write_profile

CASES = ((100, 0.010), (128, 0.010), (100, 0.020))
"""Streams, seconds per step; the bars are for the first."""
LATE_S, SHARE, CORES, DRIFT = 0.002, 0.99, 0.25, 0.001
"""Bars: so late at the most, in such a share of the steps; cores; relative error of a step."""
SIZES = {"max_batch": 256, "chunk_size": 4096, "num_blocks": 10_000}


class Round(NamedTuple):
    """What one round of one case gave."""

    late_p50_s: float
    late_p99_s: float
    in_time: float
    """Share of the steps that end at most 2 ms late."""
    cores: float
    chunks_per_s: float
    drift: float
    """Mean relative error of the steps that clients saw."""


class Stream(asyncio.Protocol):
    """A client that notes when the first and the last token came."""

    def __init__(self, request: bytes, tokens: int) -> None:
        self._request = request
        self._left = tokens
        self.first_s = self.last_s = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks."""
        # uvloop's transports are of no class of asyncio's.
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Counts tokens."""
        tokens = data.count(b'"text":')
        if tokens:
            self.last_s = time.perf_counter()
            self.first_s = self.first_s or self.last_s
            self._left -= tokens
        if data.endswith(b"0\r\n\r\n"):
            self.done.set_result(self._left)


def histogram(metrics: str, name: str) -> list[tuple[float, int]]:
    """Returns upper bounds and how many values lie below each."""
    lines = re.findall(rf'^{name}_bucket{{.*le="(.+?)"}} (\d+)$', metrics, re.MULTILINE)
    return [(float(bound), int(count)) for bound, count in lines]


def quantile(buckets: list[tuple[float, int]], share: float) -> float:
    """Returns a quantile, straight lines within buckets."""
    wanted, low, below = share * buckets[-1][1], 0.0, 0
    for bound, count in buckets:
        if count >= wanted and count > below:
            high = bound if bound < float("inf") else low
            return low + (high - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def cpu_s(process: int) -> float:
    """Returns the processor time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def streams(port: int, number: int, tokens: int) -> list[Stream]:
    """Has so many streams served at a time."""
    fields = {"prompt": [1, 2, 3], "max_tokens": tokens, "stream": True}
    body = json.dumps(fields).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
    loop = asyncio.get_running_loop()

    def client() -> Stream:
        return Stream(request % (len(body), body), tokens)

    opened = [await loop.create_connection(client, "127.0.0.1", port) for _ in range(number)]
    for transport, stream in opened:
        if left := await stream.done:
            raise RuntimeError(f"a stream lacks {left} tokens")
        transport.close()
    return [stream for _, stream in opened]


def measured(number: int, step_s: float, seconds: float) -> Round:
    """Runs one round of one case on an engine of its own."""
    with socket.socket() as one, tempfile.TemporaryDirectory() as folder:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        one.close()
        file = Path(folder) / "steps.yaml"
        model = FormulaBatchTime(c0=step_s, c1=0.0, n0=0.0, c2=0.0, c3=0.0)
        replica = Replica(model, **SIZES)
        limits = {name: getattr(replica, name) for name in LIMITS}
        write_profile(
            Profile(
                "steps", model, limits, model="none", hardware="none", description="equal steps"
            ),
            file,
        )
        command = [sys.executable, "-m", "llmroute_gym.mock_engine", f"profile={file}"]
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, f"port={port}"], stdout=pipe, cwd=folder) as process:
            try:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise SystemExit("the engine did not start")
                uvloop.run(streams(port, number, 20))
                used_s, began_s = cpu_s(process.pid), time.perf_counter()
                tokens = round(seconds / step_s)
                served = uvloop.run(streams(port, number, tokens))
                used_s, took_s = cpu_s(process.pid) - used_s, time.perf_counter() - began_s
                with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    late = histogram(answer.read().decode(), "mock:step_lateness_seconds")
            finally:
                process.terminate()
    steps = [(one.last_s - one.first_s) / (tokens - 1) for one in served]
    return Round(
        quantile(late, 0.5),
        quantile(late, 0.99),
        dict(late)[LATE_S] / late[-1][1],
        used_s / took_s,
        number * tokens / took_s,
        statistics.mean(steps) / step_s - 1,
    )


def main() -> None:
    """Measures, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    options = parser.parse_args()
    load = load_average()
    rows, met = [], False
    for number, step_s in CASES:
        rounds = [measured(number, step_s, options.seconds) for _ in range(options.rounds)]
        one = Round(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        if (number, step_s) == CASES[0]:
            met = one.in_time >= SHARE and one.cores <= CORES and abs(one.drift) <= DRIFT
        rows.append(
            [
                f"{number} x {step_s * 1e3:g} ms",
                f"{one.chunks_per_s:,.0f}",
                f"{one.cores:.2f}",
                f"{one.late_p50_s * 1e3:.2f}",
                f"{one.late_p99_s * 1e3:.2f}",
                f"{one.in_time:.2%}",
                f"{one.drift:+.3%}",
            ]
        )
    columns = ["streams x step", "chunks/s", "cores", "late P50 (ms)", "late P99 (ms)"]
    text = "\n\n".join(
        [
            "## Mock engine",
            origin("python benchmarks/mock_engine.py", load),
            f"Medians of {options.rounds} rounds of {options.seconds:g} s. Late is how long after "
            "its time a step ends; drift is how much longer than asked a step takes, as clients "
            f"see it. Bars for the first line: P99 at most {LATE_S * 1e3:g} ms, {CORES} core, "
            f"drift {DRIFT:.1%}: {'met' if met else '**missed**'}.",
            table([*columns, "at most 2 ms late", "drift"], rows),
        ]
    )
    print(text)
    if options.write:
        write_section("mock-engine", text)


if __name__ == "__main__":
    main()
