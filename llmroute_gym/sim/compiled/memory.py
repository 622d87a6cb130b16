"""The block of memory of a run: laid out here, worked on by the kernels."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import N_SIGNALS
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.caches import Caches
from llmroute_gym.sim.compiled.limits import fill_limits
from llmroute_gym.sim.compiled.models import FlatModels
from llmroute_gym.sim.compiled.observing import write_rows
from llmroute_gym.sim.compiled.runs import NoNodesError
from llmroute_gym.sim.compiled.starting import (
    read_arrivals,
    read_requests,
    write_cluster,
    write_replicas,
    write_requests,
)
from llmroute_gym.sim.compiled.stepping import place
from llmroute_gym.sim.compiled.stores import WORDS_PER_LINE, aligned
from llmroute_gym.sim.compiled.waiting import decided, pop_arrival, write_waits
from llmroute_gym.sim.identities import identities
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Interval
from llmroute_gym.sim.submission import output_of
from llmroute_gym.sim.workload import Workload

Number = TypeVar("Number", bound=np.generic)
ONES = np.ones(N_SIGNALS)
UNBOUNDED = np.full(N_SIGNALS, np.inf)
"""Scale and bound of rows in physical units, see `observing.write_rows`."""

INFORMATION = {
    "engine": at.ENGINE,
    "router": at.ROUTER,
    "oracle": at.ORACLE,
    "metrics": at.METRICS,
}


class Memory:
    """Clusters, their replicas and requests, the models of batch time, in this order.

    Args:
        cluster: the replicas of one environment.
        n_environments: how many environments.
        n_requests: requests per environment.
        longest_request: most prompt and output tokens of a request.
        observation: what a row tells.
        late_after_s: age from which a request counts as late, seconds.
        weighs: whether rows tell apart what was cached of the requests in flight; if not, all
            their tokens count as uncached.

    Raises:
        InputError: there are more requests than it can hold.

    Attributes:
        ints: all words as int64.
        floats: the same memory as float64.
        clusters: (n_environments,) word of each cluster.
        stores: what kernels are told of schedulers, see `layout.Stores`.
    """

    def __init__(
        self,
        cluster: Cluster,
        n_environments: int,
        n_requests: int,
        longest_request: int,
        observation: ObservationConfig,
        late_after_s: float,
        weighs: bool = True,
    ) -> None:
        self._weighs = weighs
        self._cluster = cluster
        self._n_requests = n_requests
        self._observation = observation
        self._late_after_s = late_after_s
        self._longest_request = 0
        replicas = cluster.replicas
        block_size = max(replica.block_size for replica in replicas)
        max_batch = max(replica.max_batch for replica in replicas)
        several = observation.gateways if observation.gateways > 1 else 0
        self._words_behind = max_batch + 1 + several * at.COUNT_WORDS
        self._replica_words = at.HISTOGRAM + block_size + 2 * max_batch + 2 + self._words_behind
        self.clusters = np.arange(n_environments) * at.CLUSTER_WORDS
        self._first_replica = n_environments * at.CLUSTER_WORDS
        per_environment = len(replicas) * self._replica_words
        self._first_request = self._first_replica + n_environments * per_environment
        n_all = n_environments * n_requests
        self._first_gate = self._first_request + n_all * at.REQUEST_WORDS
        first_store = aligned(self._first_gate + n_environments * several * at.GATE_WORDS)
        self._caches = Caches(cluster, observation, n_environments, n_requests, first_store)
        self.stores: at.Stores = 0 if self._caches.exist else None
        self._first_slowdown = self._caches.end
        self._wait_words = self._name_words = 0
        self._predicted: list[FloatArray] = [np.zeros(0)] * n_environments
        if first_store > at.REQUEST_MASK:
            raise InputError(
                f"{n_environments} x {n_requests} requests on {len(replicas)} replicas are more "
                "than the compiled engine holds at once, about "
                f"{at.REQUEST_MASK // at.REQUEST_WORDS:,}; run them in parts"
            )
        pairs = [pair for replica in replicas for pair in replica.slowdowns]
        slowdowns = np.array(pairs, dtype=np.float64).ravel()
        self._used_words = self._first_slowdown + len(slowdowns)
        longest_request = min(longest_request, cluster.longest_request)
        models = self._flat_models(longest_request)
        # What is never touched takes no memory.
        spare = len(models.words) + WORDS_PER_LINE + self._caches.spare_words
        self.ints = np.zeros(self._used_words + spare, dtype=np.int64)
        self.floats: FloatArray = self.ints.view(np.float64)
        self.floats[self._first_slowdown : self._used_words] = slowdowns
        self._add_models(models, longest_request)

    def start(self, index: int, workload: Workload, predicted_output_tokens: FloatArray) -> None:
        """Puts a workload into environment `index`, at its first arrival, with idle replicas.

        Args:
            index: the environment.
            workload: at most as many requests as every environment has room for.
            predicted_output_tokens: (n_requests,).
        """
        n_requests, waiting = len(workload), workload.after is not None
        if n_requests > self._n_requests:
            raise InputError(
                f"the source gave {n_requests} requests where {self._n_requests} were asked for; "
                "give as many or fewer"
            )
        longest_request = min(workload.longest_request, self._cluster.longest_request)
        if longest_request > self._longest_request:
            longest_request = min(2 * longest_request, self._cluster.longest_request)
            self._add_models(self._flat_models(longest_request), longest_request)
        if waiting and self._wait_words == 0:
            self._wait_words = 1 + (2 + at.WAIT_WORDS) * self._n_requests
            self._first_wait = self.append(len(self.clusters) * self._wait_words)
        self._predicted[index] = predicted_output_tokens
        first_replica = self._first_replica + index * self._template.size
        first_request = self.first_request(index)
        write_replicas(first_replica, self._template, self._words_behind, self.ints)
        write_requests(
            first_request,
            workload.arrived_at_s,
            workload.prompt_tokens,
            workload.output_tokens,
            predicted_output_tokens,
            self.ints,
            self.floats,
        )
        write_cluster(
            index * at.CLUSTER_WORDS,
            first_replica,
            first_replica + self._template.size,
            self._replica_words,
            first_request,
            first_request + n_requests * at.REQUEST_WORDS,
            INFORMATION[self._observation.information],
            float(workload.arrived_at_s[0]),
            float(self._late_after_s),
            float(self._observation.signal_interval_s),
            self._first_wait + index * self._wait_words if waiting else -1,
            self._observation.gateways,
            self._gate(index) - at.E2E_WEIGHT,
            self._counts(0) - at.SILENT,
            self._weighs,
            self.ints,
            self.floats,
        )
        if workload.after is not None and workload.gap_s is not None:
            # Copies: Numba would compile other kernels for arrays that are read-only.
            after, gap_s = workload.after.copy(), workload.gap_s.copy()
            cluster = index * at.CLUSTER_WORDS
            write_waits(cluster, after, gap_s, self.ints, self.floats)
            pop_arrival(cluster, self.ints, self.floats)
        self._caches.start(self, index, workload)
        if self._name_words:
            self._write_names(index, workload)

    def show_names(self, index: int, workload: Workload) -> None:
        """Shows sessions and heads of prompts, if there are any, in the rows from now on.

        Args:
            index: the environment.
            workload: what it was started with.
        """
        named = workload.session is not None or workload.content is not None
        if named and self.ints[index * at.CLUSTER_WORDS + at.NAMES] < 0:
            self._write_names(index, workload)

    def _write_names(self, index: int, workload: Workload) -> None:
        if self._name_words == 0:
            self._name_words = at.NAME_WORDS * self._n_requests
            self._first_name = self.append(len(self.clusters) * self._name_words)
        first = self._first_name + index * self._name_words
        names = identities(workload)
        self.floats[first : first + names.size] = names.ravel()
        self.ints[index * at.CLUSTER_WORDS + at.NAMES] = first

    def place(self, index: int, replica: int, workload: Workload, n_decisions: int) -> Interval:
        """Places the request that an environment has at hand, see `stepping.place`.

        Args:
            index: the environment.
            replica: its index, -1 drops the request.
            workload: what the environment was started with.
            n_decisions: placed before.
        """
        interval = None
        while interval is None:
            try:
                interval = Interval(
                    *place(self.clusters[index], replica, self.stores, self.ints, self.floats)
                )
            except NoNodesError:
                self.repeat(index, workload, n_decisions)
        return interval

    def repeat(self, index: int, workload: Workload, n_decisions: int) -> None:
        """Takes an environment, whose arena was used up, back to a decision, with more room.

        Args:
            index: the environment.
            workload: what it was started with.
            n_decisions: placed before that decision.
        """
        cluster = index * at.CLUSTER_WORDS
        words = self.first_request(index) + self.decided(index, n_decisions) * at.REQUEST_WORDS
        replicas = np.maximum(self.ints[words + at.REPLICA], -1)
        repeated = False
        while not repeated:
            self._caches.add_room(self, index)
            self.start(index, workload, self._predicted[index])
            with suppress(NoNodesError):
                for replica in replicas.tolist():
                    place(cluster, replica, self.stores, self.ints, self.floats)
                repeated = True

    def decided(self, index: int, n_decisions: int) -> IntArray:
        """Returns which requests an environment's first decisions were about, (n_decisions,)."""
        cluster = index * at.CLUSTER_WORDS
        words = [decided(cluster, number, self.ints) for number in range(n_decisions)]
        first = self.first_request(index)
        return (np.array(words, dtype=np.int64) - first) // at.REQUEST_WORDS

    def request(self, index: int) -> int:
        """Returns which request an environment has at hand, as many as it has once all are done."""
        word = self.ints[index * at.CLUSTER_WORDS + at.NEXT_REQUEST]
        return int(word - self.first_request(index)) // at.REQUEST_WORDS

    def now_s(self, index: int) -> float:
        """Returns the time of an environment's decision, seconds."""
        return float(self.floats[index * at.CLUSTER_WORDS + at.NOW])

    def replicas(self, index: int) -> IntArray:
        """Returns the words of an environment's replicas, shape (n_replicas,)."""
        n = len(self._cluster)
        return self._first_replica + (index * n + np.arange(n)) * self._replica_words

    def rows(self, index: int, workload: Workload, n_decisions: int) -> FloatArray:
        """Returns an environment's rows in physical units, shape (n_replicas, N_SIGNALS).

        Every replica is said to take requests, and to be able to hold the one at hand.

        Args:
            index: the environment.
            workload: what it was started with.
            n_decisions: placed before.
        """
        self.show_names(index, workload)
        rows, cluster = np.zeros((len(self._cluster), N_SIGNALS)), index * at.CLUSTER_WORDS
        while True:
            try:
                write_rows(cluster, ONES, UNBOUNDED, rows, self.stores, self.ints, self.floats)
            except NoNodesError:  # late events take room as they become known
                self.repeat(index, workload, n_decisions)
            else:
                return rows

    def outcomes(self, indices: IntArray, workloads: Sequence[Workload]) -> Outcome:
        """Returns what became of the workloads that environments were started with.

        Args:
            indices: (n_runs,) the environments.
            workloads: theirs, all equally long.

        Returns:
            Arrays of shape (n_runs, n_requests).
        """
        shape = len(indices), len(workloads[0])
        arrived_at_s = _stacked([one.arrived_at_s for one in workloads])
        scheduled_at_s, first_token_at_s, finished_at_s = (np.empty(shape) for _ in range(3))
        replica, preemptions = (np.empty(shape, dtype=np.int64) for _ in range(2))
        for run, index in enumerate(indices.tolist()):
            if workloads[run].after is not None:
                if not arrived_at_s.flags.writeable:
                    arrived_at_s = arrived_at_s.copy()
                read_arrivals(self.first_request(index), arrived_at_s[run], self.floats)
            read_requests(
                self.first_request(index),
                scheduled_at_s[run],
                first_token_at_s[run],
                finished_at_s[run],
                replica[run],
                preemptions[run],
                self.ints,
                self.floats,
            )
        return Outcome(
            arrived_at_s=arrived_at_s,
            scheduled_at_s=scheduled_at_s,
            first_token_at_s=first_token_at_s,
            finished_at_s=finished_at_s,
            replica=replica,
            **self._caches.read(self, indices, shape),
            prompt_tokens=_stacked([one.prompt_tokens for one in workloads]),
            output_tokens=_stacked(
                [
                    output_of(one, self._cluster, placed)
                    for one, placed in zip(workloads, replica, strict=True)
                ]
            ),
            preemptions=preemptions,
        )

    def outcome(self, index: int, workload: Workload) -> Outcome:
        """Returns the same of one environment, arrays of shape (n_requests,)."""
        one = self.outcomes(np.array([index]), [workload])
        return Outcome(*(getattr(one, field.name)[0] for field in fields(one)))

    def first_request(self, index: int) -> int:
        """Returns the word of an environment's first request."""
        return self._first_request + index * self._n_requests * at.REQUEST_WORDS

    def append(self, n_words: int) -> int:
        """Makes the memory longer; returns where the new words start, on a cache line."""
        first = aligned(self._used_words)
        self._used_words, before = first + n_words, self._used_words
        if self._used_words > len(self.ints):
            kept = self.ints
            self.ints = np.zeros(2 * self._used_words, dtype=np.int64)
            self.ints[:before] = kept[:before]
            self.floats = self.ints.view(np.float64)
        return first

    def _gate(self, index: int) -> int:
        """Returns the word of the first of what an environment's routers count of the cluster."""
        gateways = self._observation.gateways
        if gateways == 1:
            return index * at.CLUSTER_WORDS + at.E2E_WEIGHT
        return self._first_gate + index * gateways * at.GATE_WORDS

    def _counts(self, gateway: int) -> int:
        """Returns where in a replica's row that stands which a router counts of it."""
        gateways = self._observation.gateways
        if gateways == 1:
            return at.SILENT
        return self._replica_words - (gateways - gateway) * at.COUNT_WORDS

    def _flat_models(self, longest_request: int) -> FlatModels:
        """Returns models that reach up to `longest_request` tokens, to be appended next."""
        replicas = self._cluster.replicas
        # Tables are remembered by their size: a power of two serves many.
        most_at_once = 1 << (self._n_requests - 1).bit_length()
        return FlatModels(
            [replica.batch_time for replica in replicas],
            first_word=aligned(self._used_words),
            max_tokens=max(replica.largest_batch(longest_request) for replica in replicas),
            max_context=longest_request,
            max_batch=min(max(replica.max_batch for replica in replicas), most_at_once),
        )

    def _add_models(self, models: FlatModels, longest_request: int) -> None:
        """Writes models, which all replicas have from now on."""
        self._longest_request = longest_request
        first = self.append(len(models.words))
        self.ints[first : self._used_words] = models.words
        self._template = self._idle_replicas(models, self._first_slowdown)
        for index in range(len(self.clusters)):
            self.ints[self.replicas(index) + at.MODEL] = self._template[:, at.MODEL]

    def _idle_replicas(self, models: FlatModels, first_slowdown: int) -> IntArray:
        """Returns the rows of idle replicas, shape (n_replicas, replica words)."""
        replicas = self._cluster.replicas
        rows = np.zeros((len(replicas), self._replica_words), dtype=np.int64)
        filled: dict[int, int] = {}
        for index, replica in enumerate(replicas):
            alike = filled.setdefault(id(replica), index)
            if alike == index:
                fill_limits(rows[index], replica)
            else:
                rows[index, : at.HISTOGRAM] = rows[alike, : at.HISTOGRAM]
        rows[:, at.MODEL] = models.word_of
        ends = first_slowdown + 2 * np.cumsum([len(replica.slowdowns) for replica in replicas])
        rows[0, at.SLOWDOWN], rows[1:, at.SLOWDOWN] = first_slowdown, ends[:-1]
        rows[:, at.SLOWDOWN_END] = ends
        if self._observation.speed_hidden:
            rows.view(np.float64)[:, at.TOLD_SPEED] = 1.0
        gateways = self._observation.gateways
        before_all = (np.arange(len(replicas)) - len(replicas)) * gateways
        idle = rows[:, at.SILENT : at.HISTOGRAM].copy()
        for gateway in range(gateways):
            first = self._counts(gateway)
            rows[:, first : first + at.COUNT_WORDS] = idle
            moved = first - at.SILENT
            rows[:, moved + at.CHOSEN_AT] = before_all + gateway
            rows[:, moved + at.GATEWAY] = gateway
        return rows


def _stacked(rows: Sequence[npt.NDArray[Number]]) -> npt.NDArray[Number]:
    """Returns rows as one array; a single one is not copied, which takes as long as reading it."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
