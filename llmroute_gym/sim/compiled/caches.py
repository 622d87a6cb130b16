"""The part of a memory that replicas of `vllm_v1` need: stores, jobs, paths, and an arena."""

from typing import Protocol

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.limits import kernel_of
from llmroute_gym.sim.compiled.paths import paths_of
from llmroute_gym.sim.compiled.stores import (
    idle_stores,
    mask_words,
    paths_words,
    read_results,
    show_stores,
    store_words,
    write_copies,
    write_paths,
    write_stores,
)
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.workload import Workload

FEWEST_NODES, MOST_NODES = 2048, 1 << 16
"""Of an arena at first; it grows."""
_PATH_WORDS = 16
"""Kept per request at first; there may be more."""
_BITS = 64
"""Of a word."""


class Words(Protocol):
    """The memory that this is a part of."""

    ints: IntArray
    floats: FloatArray

    def append(self, n_words: int) -> int:
        """Makes the memory longer; returns where the new words start."""

    def first_request(self, index: int) -> int:
        """Returns the word of an environment's first request."""

    def replicas(self, index: int) -> IntArray:
        """Returns the words of an environment's replicas."""


class Caches:
    """Where the stores, arenas, jobs and results of all environments stand; what fills them.

    Args:
        cluster: the replicas of one environment.
        observation: what a row tells of prefix caches.
        n_environments: how many environments.
        n_requests: requests per environment.
        first: word of the first store.

    Attributes:
        exist: whether a replica is of `vllm_v1`; if not, nothing takes any room.
        end: one past the last word.
        spare_words: what paths and arenas will take at first, appended when they are needed.
    """

    def __init__(
        self,
        cluster: Cluster,
        observation: ObservationConfig,
        n_environments: int,
        n_requests: int,
        first: int,
    ) -> None:
        self._cluster = cluster
        self._observation = observation
        self._view = _view(cluster, observation)
        self.exist = any(kernel_of(replica.scheduler) == at.VLLM_V1 for replica in cluster)
        n_replicas = len(cluster)
        self._copies = {at.TREE_VIEW: observation.gateways, at.LATE_VIEW: 1}.get(self._view, 0)
        """Stores that are kept of each replica's for routers."""
        self._n_stores = n_replicas * (1 + self._copies)
        self._store_words = store_words(cluster.replicas) if self.exist else 0
        self._job_words = self.exist * (n_requests + n_replicas * self._copies) * kv.JOB_WORDS
        caching = [replica for replica in cluster if replica.prefix_caching]
        self._result_words = bool(caching) * n_requests * kv.RESULT_WORDS
        self._block_sizes = list({replica.block_size: None for replica in caching})
        self._first_store = first
        self._first_arena = first + n_environments * self._n_stores * self._store_words
        self._first_job = self._first_arena + self.exist * n_environments * kv.ARENA_WORDS
        self._first_result = self._first_job + n_environments * self._job_words
        self.end = self._first_result + n_environments * self._result_words
        nodes = kv.NODE_WORDS * MOST_NODES
        self.spare_words = self.exist * n_environments * (_PATH_WORDS * n_requests + nodes)
        if self.exist:
            self._idle = idle_stores(cluster.replicas, self._store_words)
        # Per environment where they are, and how many words or nodes.
        self._path_room = [(0, 0)] * n_environments
        self._node_room = [(0, 0)] * n_environments

    def start(self, memory: Words, index: int, workload: Workload) -> None:
        """Empties an environment's stores, and says what its requests are made of."""
        if not self.exist:
            return
        replicas, arena = memory.replicas(index), self._arena(index)
        if self._node_room[index][1] == 0:
            n_nodes = min(max(FEWEST_NODES, 8 * len(workload)), MOST_NODES)
            self._add_nodes(memory, index, n_nodes)
        first_node, n_nodes = self._node_room[index]
        results = self._first_result + index * self._result_words
        memory.ints[results : results + self._result_words] = 0
        memory.ints[arena + kv.FREE_NODE] = memory.ints[arena + kv.FREE_JOB] = -1
        memory.ints[arena + kv.NEXT_NODE] = first_node
        memory.ints[arena + kv.END_NODE] = first_node + n_nodes * kv.NODE_WORDS
        memory.ints[arena + kv.NEXT_JOB] = self._first_job + index * self._job_words
        first_store = self._first_store + index * self._n_stores * self._store_words
        first_request = memory.first_request(index)
        write_stores(first_store, self._idle, replicas, arena, first_request, results, memory.ints)
        # Without contents nobody finds anything of another's, but a router's tree grows.
        shared = workload.content is not None and bool(self._block_sizes)
        n_replicas, words = len(self._cluster), self._store_words
        grows = self._view == at.TREE_VIEW
        copies = self._copies if shared or grows else 0
        if copies:
            tree_blocks = self._observation.tree_blocks if grows else -1
            write_copies(first_store, n_replicas, words, copies, tree_blocks, memory.ints)
        cluster = index * at.CLUSTER_WORDS
        show_stores(first_store, replicas, words, copies, cluster, memory.ints)
        memory.ints[cluster + at.TREE] = -1
        memory.floats[cluster + at.LAG] = self._observation.events_lag_s
        memory.ints[cluster + at.VIEW] = self._view if shared or grows else at.NO_VIEW
        if shared:
            self._write_paths(memory, index, workload)

    def _write_paths(self, memory: Words, index: int, workload: Workload) -> None:
        n_replicas, replicas = len(self._cluster), memory.replicas(index)
        masks = mask_words(n_replicas) * (1 + self._copies)
        trees = [paths_of(workload, block_size) for block_size in self._block_sizes]
        n_words = sum(paths_words(paths, masks) for paths in trees)
        if n_words > self._path_room[index][1]:
            self._path_room[index] = memory.append(2 * n_words), 2 * n_words
        first_word = self._path_room[index][0]
        for block_size, paths in zip(self._block_sizes, trees, strict=True):
            table = write_paths(first_word, masks, paths, memory.first_request(index), memory.ints)
            first_word += paths_words(paths, masks)
            for replica, row in zip(self._cluster, replicas.tolist(), strict=True):
                if replica.prefix_caching and replica.block_size == block_size:
                    store = memory.ints[row + at.STORE] + kv.TREE
                    for copy in range(1 + self._copies):
                        memory.ints[store + copy * n_replicas * self._store_words] = table
        alike = all(replica.prefix_caching for replica in self._cluster) and len(trees) == 1
        if alike and n_replicas <= _BITS:
            memory.ints[index * at.CLUSTER_WORDS + at.TREE] = table

    def add_room(self, memory: Words, index: int) -> None:
        """Gives an environment's arena four times the nodes that it got last."""
        self._add_nodes(memory, index, 4 * self._node_room[index][1])

    def _add_nodes(self, memory: Words, index: int, n_nodes: int) -> None:
        self._node_room[index] = memory.append(n_nodes * kv.NODE_WORDS), n_nodes

    def read(self, memory: Words, indices: IntArray, shape: tuple[int, int]) -> dict[str, IntArray]:
        """Returns what requests found in caches, fields of `Outcome`; none where there are none.

        Args:
            memory: that this is a part of.
            indices: (n_runs,) the environments.
            shape: (n_runs, n_requests).
        """
        if not self._result_words:
            return {}
        cached, recached = np.zeros((2, *shape), dtype=np.int64)
        for run, index in enumerate(indices.tolist()):
            results = self._first_result + index * self._result_words
            read_results(results, cached[run], recached[run], memory.ints)
        return {"cached_tokens": cached, "recached_tokens": recached}

    def _arena(self, index: int) -> int:
        return self._first_arena + index * kv.ARENA_WORDS


def _view(cluster: Cluster, observation: ObservationConfig) -> int:
    """Returns what of prefix caches a router sees."""
    if not any(replica.prefix_caching for replica in cluster):
        return at.NO_VIEW
    if observation.prefix_view == "tree":
        return at.TREE_VIEW
    return at.LATE_VIEW if observation.events_lag_s > 0 else at.EVENTS_VIEW
