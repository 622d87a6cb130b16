"""Watching the reference engine's schedulers at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.reference import batches
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import Batch, Chunked, PrefillFirst, Scheduler, VllmV1
from llmroute_gym.sim.replica import Replica


class BatchRecord(NamedTuple):
    """A batch as it starts."""

    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    sums: BatchSums
    blocks_used: int
    waiting: int
    running: int
    restarted: tuple[int, ...]


@dataclass
class ReplicaLog:
    """What a watched scheduler did, in order.

    Attributes:
        batches: each batch that was started.
        ended_at_s: when each of them ended.
        admissions: request indices, a request again after each restart.
        restarts: request indices.
        tokens_kept: by request, tokens processed since its latest restart.
        final_blocks: blocks in use after the latest batch.
    """

    batches: list[BatchRecord] = field(default_factory=list)
    ended_at_s: list[float] = field(default_factory=list)
    admissions: list[int] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    tokens_kept: dict[int, int] = field(default_factory=dict)
    final_blocks: int = 0


class _Watched(Scheduler):
    log: ReplicaLog

    def start_batch(self) -> Batch:
        before, n_restarts = {r.index for r in self.admitted()}, len(self.log.restarts)
        batch = super().start_batch()
        self.log.admissions += [
            r.index for r in batch.requests if r.done == 0 or r.index not in before
        ]
        self._check_memory()
        self._check_limits(batch)
        self.log.batches.append(
            BatchRecord(
                tuple(request.index for request in batch.requests),
                tuple(batch.tokens),
                batch.sums(),
                self._used(),
                len(self.waiting),
                len(self.running),
                tuple(self.log.restarts[n_restarts:]),
            )
        )
        return batch

    def end_batch(self, now_s: float) -> list[Request]:
        for request, tokens in zip(self.batch.requests, self.batch.tokens, strict=True):
            kept = self.log.tokens_kept.get(request.index, 0)
            self.log.tokens_kept[request.index] = kept + tokens
        finished = super().end_batch(now_s)
        self._check_memory()
        self.log.final_blocks = self._used()
        self.log.ended_at_s.append(now_s)
        return finished

    def _restart(self, request: Request) -> None:
        assert request.index not in {r.index for r in self.batch.requests}
        super()._restart(request)
        self.log.restarts.append(request.index)
        self.log.tokens_kept[request.index] = 0

    def _used(self) -> int:
        return self.pool.used

    def _check_memory(self) -> None:
        pool, admitted = self.pool, self.admitted()
        assert 0 <= pool.used <= self.replica.num_blocks
        assert pool.used == sum(request.blocks for request in admitted)
        assert pool.holders == len(admitted) <= self.replica.max_batch
        for request in admitted:
            assert request.blocks > 0
            # The newest token of a prefilled request gets its KV in the next step.
            in_kv = request.done - 1 if request.prefilled else request.done
            assert in_kv <= request.blocks * self.replica.block_size
        assert not any(request.blocks or request.done for request in self.waiting)

    def _check_limits(self, batch: Batch) -> None:
        assert 0 < len(batch) <= self.replica.max_batch
        assert len({request.index for request in batch.requests}) == len(batch)
        assert min(batch.tokens) >= 1
        sums = batch.sums()
        if self.replica.scheduler == "chunked":
            assert batch.total_tokens <= max(self.replica.chunk_size, sums.decodes)
            return
        assert 0 in (sums.decodes, sums.prefills)
        if sums.prefills > 1 or (sums.prefills and not batch.requests[0].preemptions):
            assert sums.prefills * max(batch.tokens) <= self.replica.max_batched_tokens


class _WatchedPrefillFirst(_Watched, PrefillFirst):
    pass


class _WatchedChunked(_Watched, Chunked):
    pass


class _WatchedVllmV1(_Watched, VllmV1):
    def _used(self) -> int:
        return self.pool.usable - self.pool.free_blocks

    def _check_memory(self) -> None:
        pool, admitted = self.pool, self.admitted()
        assert pool.holders == len(admitted) <= self.replica.max_batch
        held = [request.blocks for request in admitted]
        assert max(held, default=0) <= self._used() <= min(sum(held), pool.usable)
        if not self.replica.prefix_caching:
            assert self._used() == sum(held)
            assert not pool.remembered
        for request in admitted:
            assert request.computed_tokens <= request.blocks * self.replica.block_size
        assert not any(request.blocks or request.done for request in self.waiting)

    def _check_limits(self, batch: Batch) -> None:
        assert 0 < len(batch) <= self.replica.max_batch
        assert len({request.index for request in batch.requests}) == len(batch)
        assert min(batch.tokens) >= 1
        assert batch.total_tokens <= self.replica.max_batched_tokens


def watched_scheduler(replica: Replica) -> _Watched:
    """Returns the replica's scheduler, which checks each batch and logs it."""
    kinds = {
        "prefill_first": _WatchedPrefillFirst,
        "chunked": _WatchedChunked,
        "vllm_v1": _WatchedVllmV1,
    }
    scheduler = kinds[replica.scheduler](replica)
    scheduler.log = ReplicaLog()
    return scheduler


@contextmanager
def watched_schedulers() -> Iterator[list[ReplicaLog]]:
    """Lets reference runs that start inside check each batch and log it, one log per replica."""
    logs: list[ReplicaLog] = []

    def make(replica: Replica) -> Scheduler:
        scheduler = watched_scheduler(replica)
        logs.append(scheduler.log)
        return scheduler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "make_scheduler", make)
        yield logs
