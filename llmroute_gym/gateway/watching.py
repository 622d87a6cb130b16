"""What is asked of each backend again and again: whether it is well, and what it measures."""

import asyncio
import math
import re
from time import perf_counter
from typing import NamedTuple

from llmroute_gym.config import HealthConfig, ScrapeConfig
from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.choosing import Chooser
from llmroute_gym.gateway.fetching import fetch

WAITING = ("vllm:num_requests_waiting",)
RUNNING = ("vllm:num_requests_running",)
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")

BETWEEN = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")

_LINE = re.compile(rb"^(vllm:\w+)(?:\{[^\n]*\})? ([0-9.eE+-]+)(?: \d+)?$", re.MULTILINE)


class Published(NamedTuple):
    """What an engine publishes; what several behind one port do is added, KV usage averaged."""

    waiting: float
    running: float
    kv_usage: float
    hit_rate: float
    """Since the engine's start."""
    gaps: float
    """Times between tokens so far."""
    gaps_s: float
    """Their sum."""


def read_metrics(text: bytes) -> Published | None:
    """Returns what an engine publishes, None where queue, batch or KV usage are missing.

    Args:
        text: as vLLM writes it for Prometheus.
    """
    found: dict[str, list[float]] = {}
    for name, number in _LINE.findall(text):
        try:
            found.setdefault(name.decode("ascii"), []).append(float(number))
        except ValueError:
            return None

    def named(names: tuple[str, ...], suffix: str = "") -> list[float]:
        return next((found[one + suffix] for one in names if one + suffix in found), [])

    waiting, running, usage = named(WAITING), named(RUNNING), named(KV_USAGE)
    if not (waiting and running and usage):
        return None
    asked = sum(named(QUERIES))
    published = Published(
        sum(waiting),
        sum(running),
        sum(usage) / len(usage),
        sum(named(HITS)) / asked if asked > 0 else 0.0,
        sum(named(BETWEEN, "_count")),
        sum(named(BETWEEN, "_sum")),
    )
    return published if all(map(math.isfinite, published)) else None


async def is_well(backend: Backend, health: HealthConfig) -> bool | None:
    """Returns whether a backend says that it is well, None if it does not answer."""
    answer = await fetch(backend, health.path, health.timeout_s)
    return None if answer is None else 200 <= answer[0] < 300


async def probe(backend: Backend, health: HealthConfig) -> None:
    """Probes a backend for ever."""
    while True:
        await asyncio.sleep(health.interval_s)
        backend.probed(good=await is_well(backend, health))


async def scrape(backend: Backend, settings: ScrapeConfig, chooser: Chooser) -> None:
    """Reads what an engine measures for ever, in even steps."""
    assert settings.interval_s is not None
    due_s = perf_counter()
    last: Published | None = None
    batch_time_s = 0.0
    while True:
        asked_s = perf_counter()
        answer = await fetch(backend, settings.path, max(1.0, settings.interval_s))
        now = read_metrics(answer[1]) if answer is not None and answer[0] == 200 else None
        if now is not None:
            if last is not None and now.gaps > last.gaps:
                batch_time_s = (now.gaps_s - last.gaps_s) / (now.gaps - last.gaps)
            last = now
            chooser.read(backend.index, *now[:4], asked_s, batch_time_s)
        due_s = max(due_s + settings.interval_s, perf_counter())
        await asyncio.sleep(due_s - perf_counter())
