"""Rules in service against the simulator: the same requests, on the replicas that the rules chose.

Four mock engines stand behind the gateway; requests of Azure's lengths come at Poisson times,
whether answered or not. What was served is the gateway's request log; `simulate` then takes the
log's arrivals, sizes and backends.

python benchmarks/served_order.py [--rules RULE ...] [--requests N] [--speed X] [--write]
"""

import argparse
import asyncio
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, cast

import numpy as np
import uvloop
import yaml
from gateway import free_port, running, wait_for
from gateway_load import DONE, LAST
from measuring import load_average, origin, table, write_section

from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.sim import PoissonArrivals, SyntheticWorkload, azure_conv
from llmroute_gym.sim.request_log import SERVED, LoggedRequest, read_request_log

RULES = ("frontier", "lor", "round_robin")
PROFILE, QPS = "a100-internlm-20b", 4.5
"""At speed 1 such four engines take some 5 requests/s."""
BACKENDS = ("a", "b", "c", "d")
SCRAPE_S = 0.25
PATIENCE_S = 10.0
"""With a busy machine, whose engines are well however late they say so."""
BAR = 0.05
"""Most that P99 of the end-to-end latency may differ."""


class Found(NamedTuple):
    """What one rule gave; P99 of end-to-end latencies, in seconds."""

    served_s: float
    same_routes_s: float
    """Simulated, on the replicas that served."""
    own_routes_s: float
    """Simulated, where the rule decides anew."""
    shares: list[float]
    """Of the requests, by backend."""

    @property
    def error(self) -> float:
        """Returns how much longer serving took than simulated."""
        return self.served_s / self.same_routes_s - 1


class Client(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, request: bytes) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._request, self._tail = request, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks."""
        # uvloop's transports are of no class of asyncio's.
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keeps the end; the connection is closed after it."""
        self._tail = (self._tail + data)[-64:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells whether the answer was whole."""
        self.done.set_result(DONE in self._tail and self._tail.endswith(LAST))


def request_bytes(port: int, prompt: Sequence[int], output_tokens: int) -> bytes:
    """Returns a request; prompts of token ids are counted exactly."""
    tokens = ",".join(map(str, prompt))
    body = f'{{"prompt":[{tokens}],"max_tokens":{output_tokens},"stream":true}}'.encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def send(port: int, workload: Workload, rng: np.random.Generator) -> None:
    """Sends the requests at their times and waits for all answers."""
    loop, clients = asyncio.get_running_loop(), []
    sizes = zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    # Random prompts: none begins like another one.
    requests = [
        request_bytes(port, rng.integers(100_000, size=prompt).tolist(), output)
        for prompt, output in sizes
    ]
    start_s = perf_counter()
    for due_s, request in zip(workload.arrived_at_s.tolist(), requests, strict=True):
        if (wait_s := start_s + due_s - perf_counter()) > 0:
            await asyncio.sleep(wait_s)

        def client(request: bytes = request) -> Client:
            return Client(request)

        clients.append((await loop.create_connection(client, "127.0.0.1", port))[1])
    whole = await asyncio.gather(*(one.done for one in clients))
    if not all(whole):
        raise SystemExit(f"{whole.count(False)} of {len(whole)} answers are not whole")


def free_ports(count: int) -> int:
    """Returns the first of so many free ports in a row."""
    while True:
        with ExitStack() as stack:
            first = free_port()
            try:
                for port in range(first, first + count):
                    found = stack.enter_context(closing(socket.socket()))
                    found.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return first


def serve(rule: str, workload: Workload, speed: float, folder: Path) -> list[LoggedRequest]:
    """Serves the requests and returns the gateway's log."""
    first, port, log = free_ports(len(BACKENDS)), free_port(), folder / f"{rule}.csv"
    settings = {
        "listen": f"127.0.0.1:{port}",
        "admin": None,
        "backends": [
            {"name": name, "url": f"http://127.0.0.1:{first + index}"}
            for index, name in enumerate(BACKENDS)
        ],
        "policy": {"rule": rule},
        "scrape": {"interval_s": SCRAPE_S},
        "health": {"timeout_s": PATIENCE_S},
        "log": str(log),
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    engines = [f"profile={PROFILE}", f"speed={speed:g}", f"port={first}"]
    started = (
        ("mock_engine", [*engines, f"replicas={len(BACKENDS)}"], first + len(BACKENDS) - 1),
        ("serve", [str(path)], port),
    )
    with ExitStack() as stack:
        for name, words, opened in started:
            command = [sys.executable, "-m", f"llmroute_gym.{name}", *words]
            process = stack.enter_context(running(command, folder, name))
            wait_for(opened, process, folder / f"{name}.log")
        uvloop.run(send(port, workload, np.random.default_rng(0)))
    return read_request_log(log)


def compared(log: Sequence[LoggedRequest], rule: str, cluster: Cluster) -> Found:
    """Returns what was served beside what is simulated of the same requests."""
    if lost := [one for one in log if one.outcome != SERVED]:
        raise SystemExit(f"{len(lost)} of {len(log)} requests were not served")
    log = sorted(log, key=lambda one: one.arrived_at_s)
    arrived_s = np.array([one.arrived_at_s for one in log])
    workload = Workload(
        arrived_at_s=arrived_s - arrived_s[0],
        prompt_tokens=np.array([one.prompt_tokens for one in log]),
        output_tokens=np.array([one.output_tokens for one in log]),
    )
    routes = np.array([BACKENDS.index(one.backend) for one in log])
    e2e_s = np.array([one.ended_at_s for one in log]) - arrived_s
    runs = (simulate(workload, cluster, router, seed=0) for router in (routes, rule))
    p99_s = [float(np.percentile(one, 99)) for one in (e2e_s, *(run.e2e_s for run in runs))]
    shares = np.bincount(routes, minlength=len(BACKENDS)) / len(routes)
    return Found(*p99_s, shares.tolist())


def summary(found: dict[str, Found]) -> str:
    """Returns the table and whether the bar is met."""
    rows = [
        [
            f"`{rule}`",
            f"{one.served_s:.3f}",
            f"{one.same_routes_s:.3f}",
            f"{one.error:+.1%}",
            f"{one.own_routes_s:.3f}",
            " ".join(f"{share:.0%}" for share in one.shares),
        ]
        for rule, one in found.items()
    ]
    columns = ["rule", "served (s)", "same routes (s)", "difference", "own routes (s)", "shares"]
    met = all(abs(one.error) <= BAR for one in found.values())
    verdict = f"Bar: a difference of at most {BAR:.0%}: {'met' if met else '**missed**'}."
    return f"{verdict}\n\n{table(columns, rows)}"


def main() -> None:
    """Measures, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--requests", type=int, default=2250)
    parser.add_argument("--speed", type=float, default=8.0, help="of engines and arrivals")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    options = parser.parse_args()
    load, qps = load_average(), QPS * options.speed
    source = SyntheticWorkload(azure_conv(), PoissonArrivals(), qps=qps)
    workload = source.sample(options.requests, np.random.default_rng(0))
    cluster = Cluster.from_profile(PROFILE, len(BACKENDS), speed=options.speed)
    found = {}
    for rule in options.rules:
        with tempfile.TemporaryDirectory() as folder:
            log = serve(rule, workload, options.speed, Path(folder))
        found[rule] = compared(log, rule, cluster)
        print(f"{rule}: {found[rule]}", flush=True)
    text = "\n\n".join(
        [
            "## Served and simulated",
            origin("python benchmarks/served_order.py", load),
            f"P99 of the end-to-end latency of {options.requests} requests at {qps:g} requests/s "
            f"on {len(BACKENDS)} mock engines of `{PROFILE}` at speed {options.speed:g} behind the "
            "gateway, by its request log; simulated of the same arrivals and sizes on the replicas "
            "that served (same routes), and where the rule decides anew (own routes).",
            summary(found),
        ]
    )
    print(text)
    if options.write:
        write_section("served-order", text)


if __name__ == "__main__":
    main()
