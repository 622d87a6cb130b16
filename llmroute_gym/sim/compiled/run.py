"""A run on the compiled engine."""

from typing import Any

import numpy as np

from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.arrays import FlatCluster, outcome_of, request_arrays, start_cluster
from llmroute_gym.sim.compiled.routing import serve_assigned
from llmroute_gym.sim.compiled.stepping import ENGINE, ORACLE, ROUTER, place, write_rows
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.run import FloatArray, IntArray, Interval, Run
from llmroute_gym.sim.signals import N_SIGNALS

INFORMATION = {"engine": ENGINE, "router": ROUTER, "oracle": ORACLE}


class CompiledRun(Run):
    """A run on the Numba kernels: the numbers of `ReferenceRun`, thousands of times faster."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        longest = int((self.workload.prompt_tokens + self.workload.output_tokens).max())
        flat = FlatCluster(self.cluster, 1, longest)
        self._state = flat.state(*request_arrays(self.workload), [0])
        start_cluster(
            self._state,
            0,
            self.workload,
            self.late_after_s,
            self.observation.signal_interval_s,
        )
        self._information = INFORMATION[self.observation.information]

    def _place(self, replica: int, rejected: bool) -> Interval:
        interval = Interval(*place(0, len(self.cluster), -1 if rejected else replica, self._state))
        self.next_request += 1
        self.now_s = float(self._state.cluster_float[0, at.NOW])
        return interval

    def replay(self, assignment: IntArray) -> None:
        """Places all requests at given replicas and runs until all is drained."""
        placed = assignment.copy()
        if self._fits is not None:
            for request, replica in enumerate(assignment.tolist()):
                if self._rejects(request, replica):
                    placed[request] = -1
        self._state.request_int[:, at.REPLICA] = placed
        order = np.argsort(placed, kind="stable")
        starts = np.searchsorted(placed[order], np.arange(len(self.cluster) + 1))
        serve_assigned(order, starts, self._state)
        self.next_request = len(self.workload)

    def rows(self) -> FloatArray:
        """Returns what a router knows now, shape (n_replicas, N_SIGNALS), physical units."""
        rows = np.empty((len(self.cluster), N_SIGNALS))
        write_rows(
            0,
            len(self.cluster),
            self._information,
            self.mask(),
            self.predicted_output_tokens,
            rows,
            self._state,
        )
        return rows

    def outcome(self) -> Outcome:
        """Returns what became of every request; complete once `done`."""
        return outcome_of(self.workload, self._state.request_int, self._state.request_float)
