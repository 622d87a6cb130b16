"""The state of many environments, and what steps them together."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.arrays import FlatCluster, outcome_of, request_arrays, start_cluster
from llmroute_gym.sim.compiled.run import INFORMATION
from llmroute_gym.sim.compiled.stepping import write_rows
from llmroute_gym.sim.compiled.stepping_all import observe_all, step_all
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import BoolArray, FloatArray, IntArray, Interval
from llmroute_gym.sim.signals import N_SIGNALS
from llmroute_gym.sim.workload import Workload


class VectorState:
    """Environments with the same cluster and the same number of requests.

    Args:
        cluster: the replicas of one environment.
        num_envs: how many environments.
        n_requests: requests per episode.
        observation: what a row tells.
        late_after_s: age from which a request counts as late, seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        num_envs: int,
        n_requests: int,
        observation: ObservationConfig,
        late_after_s: float,
    ) -> None:
        self._cluster = cluster
        self._n_requests = n_requests
        self._late_after_s = late_after_s
        self._interval_s = observation.signal_interval_s
        self._information = INFORMATION[observation.information]
        self._longest = 4096
        self._flat = FlatCluster(cluster, num_envs, self._longest)
        n_rows = num_envs * n_requests
        self._state = self._flat.state(
            np.zeros((n_rows, at.N_REQUEST_INT), dtype=np.int64),
            np.zeros((n_rows, at.N_REQUEST_FLOAT)),
            [index * n_requests for index in range(num_envs)],
        )
        self._predicted = np.zeros(n_rows)
        self._rows = np.zeros((len(cluster), N_SIGNALS))
        self._intervals = np.zeros((num_envs, len(Interval._fields)))

    @property
    def now_s(self) -> FloatArray:
        """Time of each environment's decision, seconds, shape (num_envs,); a view."""
        return self._state.cluster_float[:, at.NOW]

    @property
    def next_request(self) -> IntArray:
        """Number of each environment's request at hand, shape (num_envs,); a view."""
        return self._state.cluster_int[:, at.NEXT_REQUEST]

    def start(self, index: int, workload: Workload, predicted: FloatArray) -> None:
        """Puts a new episode into environment `index`, its replicas idle.

        Args:
            index: the environment.
            workload: as many requests as every episode has.
            predicted: (n_requests,) predicted output tokens.
        """
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        if longest > self._longest:
            self._longest = 2 * longest
            models = FlatCluster(self._cluster, 1, self._longest)
            self._state = self._state._replace(model_int=models.model_int, table=models.table)
        integers, floats = request_arrays(workload)
        first = index * self._n_requests
        rows = slice(first, first + self._n_requests)
        self._state.request_int[rows], self._state.request_float[rows] = integers, floats
        self._predicted[rows] = predicted
        self._flat.reset(index)
        start_cluster(self._state, index, workload, self._late_after_s, self._interval_s)

    def step(
        self,
        actions: IntArray,
        rejected: BoolArray,
        masks: BoolArray,
        scale: FloatArray,
        high: FloatArray,
        out: npt.NDArray[np.float32],
    ) -> FloatArray:
        """Places one request per environment and observes.

        Args:
            actions: (num_envs,) replicas.
            rejected: (num_envs,) whether the replica rejects the request.
            masks: (num_envs, n_replicas) of the requests that come next.
            scale: (N_SIGNALS,) factors of the observation.
            high: (N_SIGNALS,) its upper bounds.
            out: (num_envs, n_replicas, N_SIGNALS) is filled.

        Returns:
            (num_envs, 5), the fields of `Interval`; overwritten by the next call.
        """
        step_all(
            actions,
            rejected,
            self._information,
            masks,
            self._predicted,
            scale,
            high,
            self._rows,
            out,
            self._intervals,
            self._state,
        )
        return self._intervals

    def observe(
        self,
        masks: BoolArray,
        scale: FloatArray,
        high: FloatArray,
        out: npt.NDArray[np.float32],
    ) -> None:
        """Fills `out` with all observations; arguments as in `step`."""
        observe_all(
            self._information, masks, self._predicted, scale, high, self._rows, out, self._state
        )

    def rows(self, index: int, masks: BoolArray) -> FloatArray:
        """Returns the unscaled rows of one environment, shape (n_replicas, N_SIGNALS)."""
        rows = np.empty_like(self._rows)
        write_rows(
            index,
            len(self._cluster),
            self._information,
            masks[index],
            self._predicted,
            rows,
            self._state,
        )
        return rows

    def outcome(self, index: int, workload: Workload) -> Outcome:
        """Returns what became of one environment's requests, which `workload` are."""
        first = index * self._n_requests
        rows = slice(first, first + self._n_requests)
        return outcome_of(workload, self._state.request_int[rows], self._state.request_float[rows])
