"""Processes that measure rules."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import Thread
from types import TracebackType
from typing import Self

from llmroute_gym.compare.search.measuring import Batch, Measuring
from llmroute_gym.compare.search.pools import Pool
from llmroute_gym.config import SearchingConfig
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import Router


class Workers:
    """Measures in this process, or within `with` in several; the numbers are the same.

    Args:
        pools: the scenarios.
        settings: the metric, how much is measured, and the number of processes.
    """

    def __init__(self, pools: Sequence[Pool], settings: SearchingConfig) -> None:
        self.measuring = Measuring(pools, settings)
        self._number = settings.workers or _cores()
        self._shared = (pools, settings)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Starts the processes."""
        if self._number > 1:
            # Forking a process that runs threads may lock up.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._number, context, initializer=_share, initargs=self._shared
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends them; what they have not begun is left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def measured(self, rules: Iterable[Router], batch: Batch) -> Iterator[FloatArray]:
        """Yields what `Measuring.measured` gives for each rule, in order."""
        if self._pool is None:
            return (self.measuring.measured(rule, batch) for rule in rules)
        return self._pool.map(_measure, [(rule, batch) for rule in rules])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_measuring: Measuring
"""Of a worker process; workloads stay in it for all candidates of a generation."""


def _share(pools: Sequence[Pool], settings: SearchingConfig) -> None:
    global _measuring
    # Ctrl-C is for the one who started it; and a process that it leaves behind, killed, ends too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _measuring = Measuring(pools, settings)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(task: tuple[Router, Batch]) -> FloatArray:
    return _measuring.measured(*task)
