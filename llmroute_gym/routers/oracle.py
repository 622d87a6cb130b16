"""An upper bound: it looks ahead with true output lengths."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.rule import Source
from llmroute_gym.sim.content import Content, recorded_content
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.workload import Workload

CLOSE = 1e-9
"""Relative difference of latencies below which two replicas are equally good."""


class Oracle(Router):
    """The replica on which the request adds least to the summed end-to-end latency.

    It simulates each replica ahead to the end, with and without the request, from what was placed
    there, true output lengths included; of later requests it knows nothing, so it is greedy. What
    it adds is its own latency and the delay of those that are there. Ties go to the lowest index.
    No router can know this: it is a bound to draw apart, and no rule to be beaten.

    A replica is simulated from when it was last idle, or from the start where its prefix cache
    remembers: a decision costs about a microsecond per request since then and replica.
    """

    name = "oracle"
    upper_bound = True
    source = Source("ours, an upper bound", "-", "2026-11")

    def __init__(self) -> None:
        self._run: Run | None = None

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Forgets the run that it attended."""
        self._run = None

    def attend(self, run: Run) -> None:
        """Takes the run to look into."""
        self._run = run
        self._replicas = [_Ahead(run, replica) for replica in run.cluster]
        self._noted = np.zeros(len(run.workload), dtype=np.bool_)
        self._decisions = 0

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the allowed replica with the least added latency.

        Raises:
            InputError: it attends no run.
        """
        run = self._run
        if run is None:
            raise InputError(
                "router 'oracle' knows no run to look ahead in; use it in simulate or evaluate, "
                "or call attend(run) after reset"
            )
        allowed = np.flatnonzero(mask)
        if not run.fits()[allowed].any():
            return int(allowed[0])  # whoever gets it rejects it
        if run.decision != self._decisions:
            self._note_others(run)
        added = np.array([self._replicas[r].added_s(run.request, run.now_s) for r in allowed])
        least = added.min()
        chosen = int(allowed[np.argmax(added <= least + CLOSE * abs(least))])
        self._replicas[chosen].place_it(run.request, run.now_s)
        self._noted[run.request] = True
        self._decisions = run.decision + 1
        return chosen

    def possible(
        self, rows: FloatArray, mask: BoolArray, rng: np.random.Generator, *, ordered: bool = True
    ) -> FloatArray:
        """Returns that all are alike to one who sees the rows only."""
        shares: FloatArray = mask / mask.sum()
        return shares

    def _note_others(self, run: Run) -> None:
        """Notes what was placed without asking it."""
        so_far = run.outcome()
        new = np.flatnonzero((so_far.replica >= 0) & ~self._noted)
        for request in new[np.argsort(so_far.arrived_at_s[new], kind="stable")].tolist():
            ahead = self._replicas[so_far.replica[request]]
            ahead.note(request, float(so_far.arrived_at_s[request]))
        self._noted[new] = True


class _Ahead:
    """A replica and what was placed on it since it was last as good as new.

    Args:
        run: that it is part of.
        replica: the replica.
    """

    def __init__(self, run: Run, replica: Replica) -> None:
        self._workload = run.workload
        self._alone = Cluster((replica,))
        self._start = _engine(run, self._alone)
        self._remembers = replica.prefix_caching and run.workload.content is not None
        self._placed: list[tuple[int, float]] = []
        self._end: _End | None = _End(0.0, -np.inf)
        self._end_with_it = self._end

    def added_s(self, request: int, now_s: float) -> float:
        """Returns what a request that arrives now adds to the latencies, seconds, summed."""
        if self._end is None:
            self._end = self._end_of(self._placed)
        if self._end.idle_from_s < now_s and not self._remembers:
            self._placed, self._end = [], _End(0.0, -np.inf)
        self._end_with_it = self._end_of([*self._placed, (request, now_s)])
        return self._end_with_it.total_s - self._end.total_s

    def place_it(self, request: int, now_s: float) -> None:
        """Puts the request that `added_s` was asked about last on the replica."""
        self.note(request, now_s)
        self._end = self._end_with_it

    def note(self, request: int, arrived_at_s: float) -> None:
        """Puts a request on the replica."""
        self._placed.append((request, arrived_at_s))
        self._end = None

    def _end_of(self, placed: Sequence[tuple[int, float]]) -> "_End":
        """Simulates the replica with some requests until it has none."""
        workload, content = self._workload, self._workload.content
        requests = np.array([request for request, _ in placed])
        part = Workload(
            np.array([arrived_at_s for _, arrived_at_s in placed]),
            workload.prompt_tokens[requests],
            workload.output_tokens[requests],
            content=None if content is None else _content_of(content, requests),
        )
        run = self._start(part, self._alone)
        run.replay(np.zeros(len(part), dtype=np.int64))
        outcome = run.outcome()
        return _End(float(outcome.e2e_s.sum()), float(outcome.finished_at_s.max()))


class _End(NamedTuple):
    """What comes of a replica to which no further request is sent."""

    total_s: float
    """End-to-end latencies of its requests, summed."""
    idle_from_s: float
    """When the last of them ends."""


def _engine(run: Run, cluster: Cluster) -> Callable[..., Run]:
    """Returns the fast engine where it runs the cluster, else that of the run."""
    try:
        ENGINES["compiled"](Workload(*np.ones((3, 1), dtype=np.int64)), cluster)
    except InputError:
        return type(run)
    return ENGINES["compiled"]


def _content_of(content: Content, requests: IntArray) -> Content:
    """Returns the content of some requests, in their order."""
    order = np.argsort(requests, kind="stable")
    rising = requests[order]
    pieces = content.offsets[rising + 1] - content.offsets[rising]
    starts = np.repeat(content.offsets[rising] - np.cumsum(pieces) + pieces, pieces)
    places = starts + np.arange(int(pieces.sum()))
    part = recorded_content(pieces, content.streams[places], content.lengths[places], rising)
    if (order[1:] > order[:-1]).all():
        return part
    return part.ordered(np.argsort(order)).without_later_outputs()
