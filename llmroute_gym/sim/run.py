"""What every engine offers: a run that stops at each routing decision."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.checks import array, positive
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.submission import (
    checked_assignment,
    choosable,
    fitting,
    oversize_error,
    replica_index,
)
from llmroute_gym.sim.workload import Workload


class Interval(NamedTuple):
    """What happened from one decision to the next (after the last: until all is drained).

    The integrals are exact and sum over a run to the totals over its requests.
    """

    duration_s: float
    request_seconds: float
    """Integral of the number of requests in the system."""
    late_request_seconds: float
    """Integral of the number of requests older than `late_after_s`."""
    completion_rate_rps: float
    """Completions of the cluster per second, exponential average at the interval's end."""
    imbalance: float
    """Coefficient of variation of (true remaining tokens / speed) over replicas, right after the
    decision."""


class Run(ABC):
    """One workload on one cluster, stopped at the arrival of each request.

    At a decision at time T everything before T has happened, and nothing at T except that the
    requests that arrived at T before this one have been placed. So an arrival precedes a batch end
    at the same instant, and a batch that starts at an instant sees all arrivals of that instant.

    Args:
        workload: the requests.
        cluster: the replicas.
        observation: what the rows tell, and how late.
        predicted_output_tokens: (n_requests,) guesses >= 0 that the rows show, or None.
        late_after_s: age from which a request counts as late, seconds, > 0.

    Attributes:
        next_request: the request to place; equals the number of requests once all are.
        now_s: time of the decision, or the end of the run, seconds.

    Raises:
        InputError: an argument is of the wrong type, shape or range, or a request can run on no
            replica and none rejects it.
    """

    def __init__(
        self,
        workload: Workload,
        cluster: Cluster,
        *,
        observation: ObservationConfig | None = None,
        predicted_output_tokens: FloatArray | None = None,
        late_after_s: float = 6.0,
    ) -> None:
        _check_type("workload", workload, Workload, "build one with Workload(...) or load_trace")
        _check_type("cluster", cluster, Cluster, "build one with Cluster(...) or from_profile")
        self.workload = workload
        self.cluster = cluster
        self.observation = observation or ObservationConfig()
        self.observation.validate()
        self.late_after_s = positive("late_after_s", late_after_s)
        if predicted_output_tokens is None:
            predicted_output_tokens = np.zeros(len(workload))
        self.predicted_output_tokens = array("predicted_output_tokens", predicted_output_tokens)
        if len(self.predicted_output_tokens) != len(workload):
            raise InputError(
                f"predicted_output_tokens must be one number per request, {len(workload)}; got "
                f"{len(self.predicted_output_tokens)}"
            )
        self.next_request = 0
        self.now_s = float(workload.arrived_at_s[0])
        self._fits = fitting(workload, cluster)
        self._masks = None if self._fits is None else choosable(self._fits, cluster)
        self._all = np.ones(len(cluster), dtype=np.bool_)
        self._all.flags.writeable = False

    @property
    def done(self) -> bool:
        """Whether every request has been placed and all are finished."""
        return self.next_request >= len(self.workload)

    def mask(self) -> BoolArray:
        """Returns which replicas may take the next request, shape (n_replicas,), read-only.

        Where none can hold it, those that will reject it.
        """
        if self._masks is None or self.done:
            return self._all
        mask: BoolArray = self._masks[self.next_request]
        return mask

    def place(self, replica: int) -> Interval:
        """Sends the next request to a replica and runs to the following arrival.

        Args:
            replica: its index, an integer of Python or NumPy.

        Raises:
            InputError: all requests are placed, the index is wrong or no integer, or the replica
                can never run the request and does not reject it.
        """
        if self.done:
            raise InputError(f"all {len(self.workload)} requests are placed; start a new run")
        index = replica_index(replica, len(self.cluster))
        if index is None:
            raise InputError(
                f"replica must be an integer from 0 to {len(self.cluster) - 1}, got "
                f"{shown(replica)} for request {self.next_request}"
            )
        return self._place(index, self._rejects(self.next_request, index))

    def replay(self, assignment: npt.ArrayLike) -> None:
        """Places all requests at given replicas and runs until all is drained.

        Args:
            assignment: (n_requests,) replica indices.

        Raises:
            InputError: the run has begun, the assignment has the wrong shape or type or an index
                outside the cluster, or a replica can never run its request and does not reject it.
        """
        if self.next_request:
            raise InputError(
                f"cannot replay an assignment: {self.next_request} of {len(self.workload)} "
                "requests are placed already; start a new run"
            )
        self._replay(checked_assignment(assignment, self.workload, self.cluster))

    def _rejects(self, request: int, replica: int) -> bool:
        if self._fits is None or self._fits[request, replica]:
            return False
        if self.cluster.replicas[replica].oversize == "raise":
            raise oversize_error(self.workload, self.cluster, request, replica)
        return True

    @abstractmethod
    def _place(self, replica: int, rejected: bool) -> Interval:
        """Places the next request (or drops it), advances `next_request` and `now_s`."""

    @abstractmethod
    def _replay(self, assignment: IntArray) -> None:
        """Does what `replay` says; first of all asks `_rejects` about each request."""

    @abstractmethod
    def rows(self) -> FloatArray:
        """Returns what a router knows now, shape (n_replicas, N_SIGNALS), physical units."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Returns what became of every request; complete once `done`."""


def _check_type(name: str, value: object, kind: type, mend: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, got {shown(value)}; {mend}")
