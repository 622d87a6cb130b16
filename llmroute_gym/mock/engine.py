"""An engine that generates in the time of a clock."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from llmroute_gym.mock.generations import Generation, Terms
from llmroute_gym.mock.metrics import Metrics
from llmroute_gym.mock.replica import LiveReplica
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import Batch

log = logging.getLogger(__name__)


class Timer(Protocol):
    """What was arranged for later."""

    def cancel(self) -> None:
        """Makes it not happen."""


class Clock(Protocol):
    """What tells the time, and does things at their times."""

    def now_s(self) -> float:
        """Returns the time in seconds, from any moment on."""

    def call_at(self, time_s: float, callback: Callable[[], None]) -> Timer:
        """Arranges a call; a time that has passed is at once, but not before this returns."""


class LoopClock:
    """The real time of a running loop.

    A loop's own time may be whole milliseconds, as uvloop's is, so this one is finer.

    Args:
        loop: that calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Returns seconds of a clock that is never set back."""
        return time.perf_counter()

    def call_at(self, time_s: float, callback: Callable[[], None]) -> Timer:
        """Arranges a call."""
        return self._loop.call_later(max(time_s - self.now_s(), 0.0), callback)


@dataclass(slots=True)
class Work:
    """A generation at work.

    Attributes:
        generation: what is wanted.
        request: as the replica sees it.
        on_tokens: called with the numbers of output tokens before and now.
        told: output tokens that it was told of.
        told_at_s: when.
    """

    generation: Generation
    request: Request
    on_tokens: Callable[[int, int], None]
    told: int = 0
    told_at_s: float = math.nan


class Engine:
    """A replica at work for whoever submits to it, and what it publishes.

    Args:
        terms: its replica and the name of its model.
        clock: whose time it generates in.
    """

    def __init__(self, terms: Terms, clock: Clock) -> None:
        self._terms = terms
        self._clock = clock
        self._live = LiveReplica(terms.replica, self._on_batch)
        self._metrics = Metrics()
        self._numbers = count()
        self._works: dict[int, Work] = {}
        self._timer: Timer | None = None
        self._timed_s = math.inf

    def __len__(self) -> int:
        """Returns how many generations are under way."""
        return len(self._works)

    def submit(self, generation: Generation, on_tokens: Callable[[int, int], None]) -> Work:
        """Begins a generation.

        Args:
            generation: what is wanted.
            on_tokens: called as tokens come out, with their number before and now.
        """
        prompt = generation.prompt
        request = Request(
            next(self._numbers),
            self._clock.now_s(),
            prompt.tokens,
            generation.output_tokens,
            prompt,
        )
        work = self._works[request.index] = Work(generation, request, on_tokens)
        self._live.submit(request)
        self._arrange()
        return work

    def abort(self, work: Work) -> None:
        """Drops a generation, if it is still under way."""
        if self._works.pop(work.request.index, None) is not None:
            self._live.abort(work.request, self._clock.now_s())
            self._count_end(work, "abort")
            self._arrange()

    def slow_down(self, factor: float) -> None:
        """Makes all steps from the next on take so many times as long as usual."""
        usual = self._terms.replica
        self._live.replica = replace(usual, speed=usual.speed / factor)

    def close(self) -> None:
        """Lets time pass without it."""
        if self._timer is not None:
            self._timer.cancel()

    def metrics(self) -> str:
        """Returns what it publishes, in Prometheus' text format."""
        self._live.run_before(self._clock.now_s())
        self._arrange()
        live, replica = self._live, self._terms.replica
        labels = f'engine="0",model_name={json.dumps(self._terms.model)}'
        gauges = {
            "vllm:num_requests_running": len(live.scheduler.admitted()),
            "vllm:num_requests_waiting": len(live.scheduler.waiting),
            "vllm:kv_cache_usage_perc": live.scheduler.pool.usage,
        }
        counters = {
            "vllm:prefix_cache_queries": live.admitted_tokens,
            "vllm:prefix_cache_hits": live.found_tokens,
        }
        blocks = f'block_size="{replica.block_size}",num_gpu_blocks="{replica.num_blocks}"'
        return (
            "# TYPE vllm:cache_config_info gauge\n"
            f'vllm:cache_config_info{{{blocks},engine="0"}} 1\n'
            + self._metrics.text(labels, gauges, counters)
        )

    def _arrange(self) -> None:
        """Sets the timer to when something happens next."""
        if self._timed_s == self._live.next_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed_s, self._timer = self._live.next_s, None
        if self._timed_s < math.inf:
            self._timer = self._clock.call_at(self._timed_s, self._go_on)

    def _go_on(self) -> None:
        self._timed_s, self._timer = math.inf, None
        self._live.run_through(self._clock.now_s())
        self._arrange()

    def _on_batch(self, batch: Batch, ended_at_s: float) -> None:
        """Tells of each request in a batch what came out."""
        histograms = self._metrics.histograms
        lateness_s = max(self._clock.now_s() - ended_at_s, 0.0)
        histograms["mock:step_lateness_seconds"].add(lateness_s)
        histograms["vllm:iteration_tokens_total"].add(batch.total_tokens)
        for request in batch.requests:
            work = self._works.get(request.index)
            if work is None:  # it was aborted
                continue
            tokens = request.known_tokens - work.generation.prompt.tokens
            if tokens > work.told:
                self._count_tokens(work, tokens, ended_at_s)
                told, work.told = work.told, tokens
                if request.finished:
                    del self._works[request.index]
                    self._count_end(work, "stop" if work.generation.stopped else "length")
                try:
                    work.on_tokens(told, tokens)
                except Exception:  # of one answer, which must not hold up the others
                    log.exception("an answer failed")

    def _count_tokens(self, work: Work, tokens: int, now_s: float) -> None:
        histograms, request = self._metrics.histograms, work.request
        if work.told:
            histograms["vllm:inter_token_latency_seconds"].add(now_s - work.told_at_s)
        else:
            waited_s = request.scheduled_at_s - request.arrived_at_s
            histograms["vllm:request_queue_time_seconds"].add(waited_s)
            histograms["vllm:time_to_first_token_seconds"].add(now_s - request.arrived_at_s)
            self._metrics.prompt_tokens += work.generation.prompt.tokens
        self._metrics.output_tokens += tokens - work.told
        work.told_at_s = now_s

    def _count_end(self, work: Work, how: str) -> None:
        self._metrics.ended[how] += 1
        self._metrics.preemptions += work.request.preemptions
        if how != "abort":
            histograms, request = self._metrics.histograms, work.request
            e2e_s = request.finished_at_s - request.arrived_at_s
            histograms["vllm:e2e_request_latency_seconds"].add(e2e_s)
            histograms["vllm:request_prompt_tokens"].add(work.generation.prompt.tokens)
            histograms["vllm:request_generation_tokens"].add(work.generation.output_tokens)
