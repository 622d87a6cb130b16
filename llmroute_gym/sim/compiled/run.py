"""A run on the compiled engine."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.memory import ONES, UNBOUNDED, Memory
from llmroute_gym.sim.compiled.routing import (
    pairs_of,
    serve_assigned,
    serve_better_of_two,
    serve_least,
    serve_least_in_flight,
)
from llmroute_gym.sim.compiled.runs import NoNodesError
from llmroute_gym.sim.compiled.serving import serve_by
from llmroute_gym.sim.compiled.tournament import tournament
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.run import Interval, Run


class CompiledRun(Run):
    """A run on the Numba kernels: the numbers of `ReferenceRun`, thousands of times faster."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = Memory(
            self.cluster,
            n_environments=1,
            n_requests=len(self.workload),
            longest_request=self.workload.longest_request,
            observation=self.observation,
            late_after_s=self.late_after_s,
        )
        self._memory.start(0, self.workload, self.predicted_output_tokens)

    def rewind(self) -> None:
        """Goes back to where nothing has happened, faster than a new run is begun."""
        self._memory.start(0, self.workload, self.predicted_output_tokens)
        self.decision = self.request = 0
        self.now_s = float(self.workload.arrived_at_s[0])
        self._available = self._all

    def _place(self, replica: int, rejected: bool) -> Interval:
        memory = self._memory
        index = -1 if rejected else replica
        interval = memory.place(0, index, self.workload, self.decision)
        self.request = self.request + 1 if self.workload.after is None else memory.request(0)
        self.now_s = float(memory.floats[at.NOW])
        return interval

    def _replay(self, replicas: IntArray, rejected: BoolArray | None) -> None:
        placed = replicas if rejected is None else np.where(rejected, -1, replicas)
        self._serve(lambda *arrays: serve_assigned(placed, *arrays))

    def _serve(
        self, serve: Callable[[IntArray, int, at.Stores, IntArray, FloatArray], None]
    ) -> None:
        """Serves all requests in one kernel call, again with more room where that ran out."""
        memory = self._memory
        while not self.done:
            try:
                serve(
                    memory.replicas(0),
                    0,
                    memory.stores,
                    memory.ints,
                    memory.floats,
                )
            except NoNodesError:
                memory.repeat(0, self.workload, 0)
            else:
                self.decision = self.request = len(self.workload)

    def serve_least(self, rule: int, *, lazily: bool) -> None:
        """Places all requests by a rule of `routing`, in one kernel call.

        Args:
            rule: what it minimises.
            lazily: whether the score changes only when a request arrives or finishes.
        """
        n = len(self.cluster)
        if lazily:
            self._serve(
                lambda *arrays: serve_least_in_flight(rule, tournament(n), tournament(n), *arrays)
            )
        else:
            self._serve(lambda *arrays: serve_least(rule, *arrays))

    def serve_better_of_two(self, draws: FloatArray) -> None:
        """Places all requests on the better of two replicas, in one kernel call.

        Args:
            draws: (n_requests, 2) uniform numbers that choose the two.
        """
        pairs = pairs_of(draws, len(self.cluster))
        self._serve(lambda *arrays: serve_better_of_two(pairs, *arrays))

    def serve_by(
        self,
        choose: Any,
        draws: FloatArray,
        constants: FloatArray,
        memory: FloatArray,
        *,
        until: int | None = None,
    ) -> int | None:
        """Takes decisions by a rule, in one kernel call.

        Args:
            choose: see `serving.serve_by`.
            draws: (n_gateways, n_requests, n_draws) uniform numbers for each decision of a gateway.
            constants: (n_constants,).
            memory: (n_gateways, size) the rule's memories, changed.
            until: the decision before which to stop; None takes all that are left.

        Returns:
            None, or what the rule chose but may not choose for the request at hand.
        """
        n_replicas, begun = len(self.cluster), self.decision
        end = len(self.workload) if until is None else min(until, len(self.workload))
        none = np.zeros((0, n_replicas), dtype=np.bool_)
        # Copies: Numba would compile another kernel for arrays that are read-only.
        fits = none if self._fits is None else self._fits.copy()
        choosable = none if self._choosable is None else self._choosable.copy()
        available = self._available.copy()
        rows, mask = np.zeros((n_replicas, N_SIGNALS)), np.empty(n_replicas, dtype=np.bool_)
        before, room = memory.copy(), self._memory
        room.show_names(0, self.workload)
        while True:
            try:
                stopped, choice = serve_by(
                    choose,
                    0,
                    end,
                    draws,
                    constants,
                    memory,
                    fits,
                    choosable,
                    available,
                    ONES,
                    UNBOUNDED,
                    rows,
                    mask,
                    room.stores,
                    room.ints,
                    room.floats,
                )
            except NoNodesError:
                memory[:] = before
                room.repeat(0, self.workload, begun)
            else:
                break
        self.decision = int(room.ints[at.DECISION])
        self.request = room.request(0)
        self.now_s = room.now_s(0)
        return int(choice) if stopped else None

    @property
    def plain(self) -> bool:
        """Whether a rule may serve it whole: every replica takes every request, none waits."""
        return self._fits is None and self.workload.after is None and bool(self.available().all())

    def _decided(self) -> IntArray:
        return self._memory.decided(0, self.decision)

    def rows(self) -> FloatArray:
        """Returns what a router knows now, shape (n_replicas, N_SIGNALS), physical units."""
        rows = self._memory.rows(0, self.workload, self.decision)
        if self._fits is not None:
            rows[:, Signal.FITS] = self.fits()
        if self._available is not self._all:
            rows[:, Signal.AVAILABLE] = self._available
        return rows

    def outcome(self) -> Outcome:
        """Returns what became of every request; complete once `done`."""
        return self._memory.outcome(0, self.workload)
