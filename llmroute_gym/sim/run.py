"""What every engine offers: a run that stops at each routing decision."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.checks import array, positive
from llmroute_gym.sim.identities import identities
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.submission import (
    check_some_available,
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

    A decision is not a request: the next arrival is taken from those that are known by now, and a
    request that waits for another one (`Workload.after`) has its time only once that has finished.

    At a decision at time T everything before T has happened, and nothing at T except that the
    requests that arrived at T before this one have been placed. So an arrival precedes a batch end
    at the same instant, and a batch that starts at an instant sees all arrivals of that instant.

    Which replica could ever hold a request is fixed (`fits`); whether a replica takes requests now
    may change (`available`). The mask is both.

    Args:
        workload: the requests.
        cluster: the replicas.
        observation: what the rows tell, and how late.
        predicted_output_tokens: (n_requests,) guesses >= 0 that the rows show, or None.
        late_after_s: age from which a request counts as late, seconds, > 0.

    Attributes:
        decision: how many requests have been placed so far.
        request: the request to place, an index of the workload; the number of requests once all
            are placed.
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
        self.observation = observation.validate() if observation else ObservationConfig()
        self.late_after_s = positive("late_after_s", late_after_s)
        if predicted_output_tokens is None:
            self.predicted_output_tokens = np.zeros(len(workload))
        else:
            self.predicted_output_tokens = array("predicted_output_tokens", predicted_output_tokens)
        if len(self.predicted_output_tokens) != len(workload):
            raise InputError(
                f"predicted_output_tokens must be one number per request, {len(workload)}; got "
                f"{len(self.predicted_output_tokens)}"
            )
        self.decision = 0
        self.request = 0
        self.now_s = float(workload.arrived_at_s[0])
        self._fits = fitting(workload, cluster)
        self._choosable = None if self._fits is None else choosable(self._fits, cluster)
        self._all = np.ones(len(cluster), dtype=np.bool_)
        self._all.flags.writeable = False
        self._available = self._all

    @property
    def done(self) -> bool:
        """Whether every request has been placed and all are finished."""
        return self.decision >= len(self.workload)

    @property
    def gateway(self) -> int:
        """Which router takes the decision at hand, 0 to gateways - 1: they take turns."""
        return self.decision % self.observation.gateways

    @cached_property
    def identities(self) -> FloatArray:
        """Session and prompt head of each request, (n_requests, 2), see `identities`."""
        return identities(self.workload)

    def fits(self) -> BoolArray:
        """Returns which replicas could ever hold the request at hand, (n_replicas,), read-only."""
        if self._fits is None or self.done:
            return self._all
        fits: BoolArray = self._fits[self.request]
        return fits

    def available(self) -> BoolArray:
        """Returns which replicas take requests now, shape (n_replicas,), read-only."""
        return self._available

    def mask(self) -> BoolArray:
        """Returns which replicas may take the request at hand, shape (n_replicas,), read-only.

        Those that take requests now and can hold it; where none can hold it, those that reject it.
        """
        if self._choosable is None or self.done:
            return self._available
        mask: BoolArray = self._choosable[self.request] & self._available
        mask.flags.writeable = False
        return mask

    def set_available(self, replica: int, available: bool) -> None:
        """Says whether a replica takes requests from now on; those that it has go on.

        Args:
            replica: its index.
            available: whether it does.

        Raises:
            InputError: the index is wrong, or no replica would take requests any more.
        """
        index = self._index(replica)
        changed = self._available.copy()
        changed[index] = available
        check_some_available(changed, index)
        changed.flags.writeable = False
        self._available = changed

    def place(self, replica: int) -> Interval:
        """Sends the request at hand to a replica and runs to the following arrival.

        Args:
            replica: its index, an integer of Python or NumPy.

        Raises:
            InputError: all requests are placed, the index is wrong or no integer, or the replica
                takes no requests, or can never run this one and does not reject it.
        """
        if self.done:
            raise InputError(f"all {len(self.workload)} requests are placed; start a new run")
        index = self._index(replica)
        if self._available is not self._all and not self._available[index]:
            raise InputError(
                f"replica {index} takes no requests now, got it for request {self.request}; choose "
                f"one of {np.flatnonzero(self.mask()).tolist()}"
            )
        interval = self._place(index, self._rejects(self.request, index))
        self.decision += 1
        return interval

    def replay(self, assignment: npt.ArrayLike) -> None:
        """Places all requests at given replicas and runs until all is drained.

        Args:
            assignment: (n_requests,) replica indices.

        Raises:
            InputError: the run has begun, the assignment has the wrong shape or type or an index
                outside the cluster, or a replica can never run its request and does not reject it.
        """
        if self.decision:
            raise InputError(
                f"cannot replay an assignment: {self.decision} of {len(self.workload)} "
                "requests are placed already; start a new run"
            )
        replicas = checked_assignment(assignment, self.workload, self.cluster)
        rejected = None
        if self._fits is not None:
            placed = enumerate(replicas.tolist())
            rejected = np.array([self._rejects(request, replica) for request, replica in placed])
        if self.workload.after is None:
            self._replay(replicas, rejected)
            self.decision = self.request = len(self.workload)
        while not self.done:
            self.place(int(replicas[self.request]))

    def _index(self, replica: object) -> int:
        index = replica_index(replica, len(self.cluster))
        if index is None:
            raise InputError(
                f"replica must be an integer from 0 to {len(self.cluster) - 1}, got "
                f"{shown(replica)} for request {self.request}"
            )
        return index

    def _rejects(self, request: int, replica: int) -> bool:
        if self._fits is None or self._fits[request, replica]:
            return False
        if self.cluster.replicas[replica].oversize == "raise":
            raise oversize_error(self.workload, self.cluster, request, replica)
        return True

    def decided(self) -> IntArray:
        """Returns which request each decision so far was about, shape (decision,)."""
        if self.workload.after is None:
            return np.arange(self.decision)
        return self._decided()

    @abstractmethod
    def _decided(self) -> IntArray:
        """Returns the same where requests wait for each other."""

    @abstractmethod
    def _place(self, replica: int, rejected: bool) -> Interval:
        """Places the request at hand (or drops it); sets `request` and `now_s` to the next."""

    @abstractmethod
    def _replay(self, replicas: IntArray, rejected: BoolArray | None) -> None:
        """Places all requests, none of which waits for another one, and runs to the end.

        Args:
            replicas: (n_requests,) indices.
            rejected: (n_requests,) which requests their replicas reject, None for none.
        """

    @abstractmethod
    def rows(self) -> FloatArray:
        """Returns what a router knows now, shape (n_replicas, N_SIGNALS), physical units."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Returns what became of every request; complete once `done`."""


def _check_type(name: str, value: object, kind: type, mend: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, got {shown(value)}; {mend}")
