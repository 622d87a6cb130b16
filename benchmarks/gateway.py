"""What the gateway adds to a request, beside no router at all and beside smg and vllm-router.

Mock engines stream 20 events, 10 ms apart. In every round each router gets the same requests, one
router after the other. A round counts if the requests that go to the engines directly have a TTFT
P99 within 1.5 ms of their P50: else something else was running. All numbers are medians over such
rounds. Routers other than ours are measured where their venv has them (`--venv`), such as one with
``pip install smg==1.13.0 vllm-router==0.1.17``.
"""

import argparse
import asyncio
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvloop
import yaml
from gateway_load import Target, closed_loop, many_streams, open_loop
from measuring import ROOT, load_average, origin, table, write_section

RATES = (50, 200, 500)
STEADY_S = 0.0015
"""What P99 of the direct TTFT may be above its P50."""
USERS, BURSTS = 32, 3000
STREAMS, STREAM_STEP_S = 150, 0.005
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
DIRECT, OURS = "direct", "llmroute_gym"
START_S = 60.0


@dataclass
class Found:
    """What one round found of one router; the mappings go by rate, times are in seconds."""

    p50_s: dict[int, float] = field(default_factory=dict)
    """Of TTFT, as the next one."""
    p99_s: dict[int, float] = field(default_factory=dict)
    e2e_p99_s: dict[int, float] = field(default_factory=dict)
    cores: dict[int, float] = field(default_factory=dict)
    closed_rps: float = 0.0
    closed_us: float = 0.0
    """CPU per request."""
    events_per_core: float = 0.0
    """Per second."""


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Returns the processor time of a process with all of its threads, 0 for no process."""
    if pid == 0:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


@contextmanager
def running(command: Sequence[str], folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process until the block ends."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until completions are answered there."""
    ask = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            client.sendall(ask)
            client.settimeout(2)
            if b" 200 " in client.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit(f"a router does not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


def our_command(engines: Sequence[int], port: int, policy: str, folder: Path) -> list[str]:
    """Returns how our router is started, whose settings are written to the folder."""
    chosen = {"mode": "learned", "policy": policy} if policy.endswith(".npz") else {"rule": policy}
    settings = {
        "listen": f"127.0.0.1:{port}",
        "admin": f"127.0.0.1:{free_port()}",
        "backends": [
            {"name": f"engine{index}", "url": f"http://127.0.0.1:{engine}"}
            for index, engine in enumerate(engines)
        ],
        "policy": chosen,
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [sys.executable, "-m", "llmroute_gym.serve", str(path)]


def their_command(program: Path, engines: Sequence[int], port: int) -> list[str]:
    """Returns how another router is started."""
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    command = [str(program)]
    if program.name == "smg":
        command += ["launch", "--disable-tokenizer-autoload", "--log-level", "warn"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*command, "--worker-urls", *urls]


Result = TypeVar("Result")


def spent(
    runner: asyncio.Runner, pid: int, story: Coroutine[Any, Any, Result]
) -> tuple[Result, float, float]:
    """Returns what a story gives, what the process spent on it, and how long it took."""
    before_s, start_s = cpu_s(pid), time.perf_counter()
    found = runner.run(story)
    return found, cpu_s(pid) - before_s, time.perf_counter() - start_s


def measure(target: Target, pid: int, options: argparse.Namespace, seed: int) -> Found:
    """Measures one router once."""
    found = Found()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(open_loop(target, RATES[0], min(1.0, options.seconds), seed))
        for rate in options.rates:
            story = open_loop(target, rate, options.seconds, seed)
            times, cpu, took_s = spent(runner, pid, story)
            ttft_s = [one.ttft_s for one in times]
            found.p50_s[rate] = float(np.percentile(ttft_s, 50))
            found.p99_s[rate] = float(np.percentile(ttft_s, 99))
            found.e2e_p99_s[rate] = float(np.percentile([one.e2e_s for one in times], 99))
            found.cores[rate] = cpu / took_s
        burst_s, cpu, _ = spent(runner, pid, closed_loop(target, USERS, options.bursts))
        found.closed_rps = options.bursts / burst_s
        found.closed_us = 1e6 * cpu / options.bursts
        events = round(options.seconds / STREAM_STEP_S)
        story = many_streams(target, STREAMS, events, STREAM_STEP_S)
        _, cpu, _ = spent(runner, pid, story)
        found.events_per_core = STREAMS * events / cpu if cpu else 0.0
        target.close()
    return found


def rounds(options: argparse.Namespace, folder: Path) -> list[dict[str, Found]]:
    """Runs all routers and measures them in turn."""
    with ExitStack() as stack:
        engines, targets = [free_port() for _ in range(options.engines)], {}
        mock = str(ROOT / "benchmarks" / "gateway_load.py")
        for index, port in enumerate(engines):
            command = [sys.executable, mock, str(port)]
            process = stack.enter_context(running(command, folder, f"engine{index}"))
            wait_for(port, process, folder / f"engine{index}.log")
        targets[DIRECT] = (engines, 0)
        ports = {name: free_port() for name in (OURS, *options.routers)}
        commands = {OURS: our_command(engines, ports[OURS], options.policy, folder)}
        for name in options.routers:
            program = Path(options.venv) / "bin" / name
            if program.exists():
                commands[name] = their_command(program, engines, ports[name])
            else:
                print(f"{name} is not measured: there is no {program}", file=sys.stderr)
        for name, command in commands.items():
            process = stack.enter_context(running(command, folder, name))
            wait_for(ports[name], process, folder / f"{name}.log")
            targets[name] = ([ports[name]], process.pid)
        found = []
        for number in range(options.rounds):
            one = {}
            for name, (where, pid) in targets.items():
                one[name] = measure(Target(where), pid, options, number)
                print(number, name, one[name], flush=True)
            found.append(one)
        return found


def steady(one: dict[str, Found]) -> bool:
    """Returns whether nothing else disturbed a round."""
    direct = one[DIRECT]
    return all(direct.p99_s[rate] - direct.p50_s[rate] <= STEADY_S for rate in direct.p50_s)


def added_ms(found: Sequence[dict[str, Found]], name: str, kind: str, rate: int) -> float:
    """Returns the median over rounds of what a router adds to a percentile.

    Args:
        found: round by round.
        name: of the router.
        kind: the field of `Found`.
        rate: requests per second.
    """
    times = ((getattr(one[name], kind)[rate], getattr(one[DIRECT], kind)[rate]) for one in found)
    return 1e3 * statistics.median(mine - direct for mine, direct in times)


def summary(found: Sequence[dict[str, Found]], rates: Sequence[int]) -> str:
    """Returns the tables: medians over rounds of what each router adds and costs."""
    names = [name for name in found[0] if name != DIRECT]
    rows: list[list[object]] = []
    for rate in rates:
        for name in names:
            added = (added_ms(found, name, kind, rate) for kind in ("p50_s", "p99_s", "e2e_p99_s"))
            cores = statistics.median(one[name].cores[rate] for one in found)
            rows.append([name, rate, *(f"{ms:+.2f}" for ms in added), f"{cores:.2f}"])
    first = table(["router", "req/s", "TTFT P50, ms", "P99", "E2E P99", "cores"], rows)
    rows = []
    for name in names:
        medians = (
            statistics.median(getattr(one[name], kind) for one in found)
            for kind in ("closed_rps", "closed_us", "events_per_core")
        )
        rows.append([name, *(f"{number:.0f}" for number in medians)])
    most = table(["router", "req/s", "CPU us/request", "events/s per core"], rows)
    return f"{first}\n\nClosed loop of {USERS}, events in one piece; {STREAMS} streams:\n\n{most}\n"


def _command(arguments: Sequence[str]) -> str:
    """Returns the command as one may repeat it, files without the folders they are in."""
    names = (Path(one).name if os.sep in one else one for one in arguments)
    return shlex.join(["python", "benchmarks/gateway.py", *names])


def main() -> None:
    """Measures and prints, or writes the section of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--policy", default="lor", help="a rule, or an exported policy")
    parser.add_argument("--venv", default=".venv_routers", help="of the other routers")
    parser.add_argument("--routers", nargs="*", default=["smg", "vllm-router"])
    parser.add_argument("--write", action="store_true", help="to benchmarks/README.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        found = rounds(options, Path(folder))
    good = [one for one in found if steady(one)]
    if not good:
        print("no round was steady, so all of them are shown", file=sys.stderr)
    text = f"## The gateway\n\n{origin(_command(sys.argv[1:]), load)}\n\n"
    text += f"Added to direct requests, medians over {len(good)} steady of {len(found)} rounds; "
    learned = "an exported policy (replica_set, `observation=router`)"
    chosen = learned if options.policy.endswith(".npz") else f"the rule `{options.policy}`"
    text += f"{options.engines} mock engines, our router by {chosen}.\n\n"
    text += summary(good or found, options.rates)
    if options.write:
        write_section("gateway", text)
    else:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
