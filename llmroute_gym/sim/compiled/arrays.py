"""The arrays that the kernels work on, made from clusters and workloads."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.models import FlatModels
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.signals import N_ENGINE_SIGNALS
from llmroute_gym.sim.workload import Workload

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class FlatCluster:
    """The replicas of a cluster as rows of arrays, once for each environment.

    Args:
        cluster: the replicas.
        n_environments: copies of the cluster.
        longest_request: most prompt and output tokens of a request.

    Attributes:
        replica_int: (n_environments * n_replicas, N_REPLICA_INT), see `layout`.
        replica_float: likewise.
        keys: (n_rows, 2 * max_batch + 2).
        histogram: (n_rows, block size).
        model_int: batch-time models.
        table: batch-time models.
        slowdowns: (n, 2) start and factor, of all replicas in a row.
    """

    def __init__(self, cluster: Cluster, n_environments: int, longest_request: int) -> None:
        replicas = cluster.replicas
        self.n_replicas = len(replicas)
        self.longest_request = longest_request
        max_batch = max(replica.max_batch for replica in replicas)
        largest = max(_largest_batch(replica, longest_request) for replica in replicas)
        models = FlatModels(
            [replica.batch_time for replica in replicas], largest, longest_request, max_batch
        )
        self.model_int, self.table = models.offsets, models.table
        pairs = [pair for replica in replicas for pair in replica.slowdowns]
        self.slowdowns = np.array(pairs or [(math.inf, 1.0)], dtype=np.float64)
        self._int = np.zeros((len(replicas), at.N_REPLICA_INT), dtype=np.int64)
        self._float = np.zeros((len(replicas), at.N_REPLICA_FLOAT))
        first_slowdown = 0
        for row, replica in enumerate(replicas):
            _fill_limits(self._int[row], replica)
            self._int[row, at.CHOSEN_AT] = row - len(replicas)
            self._int[row, at.MODEL] = models.row_of[row]
            self._int[row, at.SLOWDOWN] = first_slowdown
            first_slowdown += len(replica.slowdowns)
            self._int[row, at.SLOWDOWN_END] = first_slowdown
            _fill_idle(self._float[row], replica)
        self.replica_int = np.tile(self._int, (n_environments, 1))
        self.replica_float = np.tile(self._float, (n_environments, 1))
        n_rows = n_environments * len(replicas)
        self.keys = np.zeros((n_rows, 2 * max_batch + 2), dtype=np.int64)
        block_size = max(replica.block_size for replica in replicas)
        self.histogram = np.zeros((n_rows, block_size), dtype=np.int64)

    def reset(self, environment: int) -> None:
        """Makes the replicas of one environment idle and empty."""
        rows = slice(environment * self.n_replicas, (environment + 1) * self.n_replicas)
        self.replica_int[rows] = self._int
        self.replica_float[rows] = self._float
        self.histogram[rows] = 0

    def state(
        self, request_int: IntArray, request_float: FloatArray, first_requests: Sequence[int]
    ) -> at.State:
        """Returns all arrays of a run, its clusters at time 0.

        Args:
            request_int: rows as `request_arrays` makes them, all environments in a row.
            request_float: likewise.
            first_requests: (n_environments,) row of each environment's request 0.
        """
        n_environments = len(first_requests)
        cluster_int = np.zeros((n_environments, at.N_CLUSTER_INT), dtype=np.int64)
        cluster_int[:, at.FIRST_REQUEST] = first_requests
        return at.State(
            replica_int=self.replica_int,
            replica_float=self.replica_float,
            keys=self.keys,
            histogram=self.histogram,
            request_int=request_int,
            request_float=request_float,
            cluster_int=cluster_int,
            cluster_float=np.zeros((n_environments, at.N_CLUSTER_FLOAT)),
            seen=np.zeros((n_environments * self.n_replicas, N_ENGINE_SIGNALS)),
            model_int=self.model_int,
            table=self.table,
            slowdowns=self.slowdowns,
        )


def _largest_batch(replica: Replica, longest_request: int) -> int:
    """Most tokens that one batch can hold, a restarted prompt that outgrew its limit included."""
    if replica.scheduler == "chunked":
        return replica.chunk_size + replica.max_batch
    return max(replica.max_batched_tokens, longest_request, replica.max_batch)


def _fill_limits(row: IntArray, replica: Replica) -> None:
    row[[at.HEAD, at.TAIL, at.PARTIAL, at.CHAIN, at.CHAIN_END]] = -1
    row[[at.FIRST_PLACED, at.LAST_PLACED]] = -1
    row[at.PREFILL_FIRST] = replica.scheduler == "prefill_first"
    row[at.MAX_BATCH] = replica.max_batch
    row[at.MAX_BATCHED_TOKENS] = replica.max_batched_tokens
    row[at.CHUNK_SIZE] = replica.chunk_size
    row[at.BLOCK_SIZE] = replica.block_size
    row[at.NUM_BLOCKS] = replica.num_blocks
    row[at.WATERMARK] = replica.watermark_blocks
    row[at.KEEP_PROMPT] = replica.restart == "recompute"


def _fill_idle(row: FloatArray, replica: Replica) -> None:
    row[at.BATCH_END] = math.inf
    row[at.SPEED] = replica.speed
    row[at.SCALE] = 1.0 / replica.speed
    row[at.NEXT_SLOWDOWN] = replica.slowdowns[0][0] if replica.slowdowns else math.inf


def request_arrays(workload: Workload) -> tuple[IntArray, FloatArray]:
    """Returns the requests as rows, not yet placed: request_int and request_float of `layout`."""
    integers = np.zeros((len(workload), at.N_REQUEST_INT), dtype=np.int64)
    integers[:, at.PROMPT] = integers[:, at.ORIGINAL_PROMPT] = workload.prompt_tokens
    integers[:, at.OUTPUT] = workload.output_tokens
    integers[:, at.NEXT] = integers[:, at.NEXT_PLACED] = integers[:, at.REPLICA] = -1
    floats = np.full((len(workload), at.N_REQUEST_FLOAT), np.nan)
    floats[:, at.ARRIVED] = workload.arrived_at_s
    return integers, floats


def outcome_of(workload: Workload, integers: IntArray, floats: FloatArray) -> Outcome:
    """Returns what became of the requests in rows as `request_arrays` made them."""
    replica = integers[:, at.REPLICA].copy()
    rejected = replica < 0

    def times(column: int) -> FloatArray:
        return np.where(rejected, np.inf, floats[:, column])

    return Outcome(
        arrived_at_s=workload.arrived_at_s,
        scheduled_at_s=times(at.SCHEDULED),
        first_token_at_s=times(at.FIRST_TOKEN),
        finished_at_s=times(at.FINISHED),
        replica=replica,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        preemptions=integers[:, at.PREEMPTIONS].copy(),
    )


def start_cluster(
    state: at.State, environment: int, workload: Workload, late_after_s: float, interval_s: float
) -> None:
    """Sets an environment's clock and counters to the first arrival of a workload.

    Args:
        state: all arrays; the environment's replicas are idle.
        environment: its row.
        workload: the requests, which stand in the request arrays.
        late_after_s: age from which a request counts as late, seconds.
        interval_s: how often the engines' signals are read, seconds; 0 is always.
    """
    first_request = state.cluster_int[environment, at.FIRST_REQUEST]
    state.cluster_int[environment] = 0
    state.cluster_int[environment, at.FIRST_REQUEST] = first_request
    state.cluster_int[environment, at.N_REQUESTS] = len(workload)
    floats = state.cluster_float[environment]
    now_s = workload.arrived_at_s[0]
    floats[:] = 0.0
    floats[[at.NOW, at.E2E_AT, at.ARRIVAL_AT, at.PREVIOUS_ARRIVAL, at.READ_AT]] = now_s
    floats[at.LATE_AFTER] = late_after_s
    floats[at.SIGNAL_INTERVAL] = interval_s
