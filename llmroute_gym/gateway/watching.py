"""What is asked of each backend again and again: whether it is well, and what it measures."""

import asyncio
import math
import re
from time import perf_counter

from llmroute_gym.config import HealthConfig, ScrapeConfig
from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.choosing import Chooser
from llmroute_gym.gateway.fetching import fetch

WAITING = ("vllm:num_requests_waiting",)
RUNNING = ("vllm:num_requests_running",)
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")

_LINE = re.compile(rb"^(vllm:\w+)(?:\{[^\n]*\})? ([0-9.eE+-]+)(?: \d+)?$", re.MULTILINE)


def read_metrics(text: bytes) -> tuple[float, float, float, float] | None:
    """Returns waiting, running, KV usage and hit rate of an engine, None where one is missing.

    Those of several engines behind one port are added, their KV usage averaged.

    Args:
        text: what vLLM publishes for Prometheus.
    """
    found: dict[str, list[float]] = {}
    for name, number in _LINE.findall(text):
        try:
            found.setdefault(name.decode("ascii"), []).append(float(number))
        except ValueError:
            return None
    waiting, running, usage, queries, hits = (
        next((found[one] for one in names if one in found), None)
        for names in (WAITING, RUNNING, KV_USAGE, QUERIES, HITS)
    )
    if waiting is None or running is None or usage is None:
        return None
    asked = sum(queries or ())
    rate = sum(hits or ()) / asked if asked > 0 else 0.0
    read = (sum(waiting), sum(running), sum(usage) / len(usage), rate)
    return read if all(math.isfinite(one) for one in read) else None


async def is_well(backend: Backend, health: HealthConfig) -> bool:
    """Returns whether a backend says that it is well."""
    answer = await fetch(backend, health.path, health.timeout_s)
    return answer is not None and 200 <= answer[0] < 300


async def probe(backend: Backend, health: HealthConfig) -> None:
    """Probes a backend for ever."""
    while True:
        await asyncio.sleep(health.interval_s)
        backend.probed(good=await is_well(backend, health))


async def scrape(backend: Backend, settings: ScrapeConfig, chooser: Chooser) -> None:
    """Reads what an engine measures for ever, in even steps."""
    assert settings.interval_s is not None
    due_s = perf_counter()
    while True:
        asked_s = perf_counter()
        answer = await fetch(backend, settings.path, max(1.0, settings.interval_s))
        if answer is not None and answer[0] == 200:
            read = read_metrics(answer[1])
            if read is not None:
                chooser.read(backend.index, *read, asked_s)
        due_s = max(due_s + settings.interval_s, perf_counter())
        await asyncio.sleep(due_s - perf_counter())
