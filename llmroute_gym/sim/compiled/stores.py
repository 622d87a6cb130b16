"""What replicas of `vllm_v1` and their requests look like before a run's first decision."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import kernel
from llmroute_gym.sim.compiled.paths import Paths
from llmroute_gym.sim.replica import Replica

_FEWEST_BUCKETS, _MOST_BUCKETS = 16, 512
NOBODY: Final = -3
"""No replica that a request could be placed on."""
WORDS_PER_LINE = 8
"""Of the processor's cache."""


def aligned(words: int) -> int:
    """Returns the next word that starts a cache line."""
    return -(-words // WORDS_PER_LINE) * WORDS_PER_LINE


def _buckets(replica: Replica) -> int:
    wanted = min(max(replica.num_blocks // 8, _FEWEST_BUCKETS), _MOST_BUCKETS)
    return 1 << (wanted - 1).bit_length()


def store_words(replicas: Sequence[Replica]) -> int:
    """Returns the words of the largest store among replicas."""
    return aligned(kv.HEADS + max(map(_buckets, replicas)))


def idle_stores(replicas: Sequence[Replica], words: int) -> IntArray:
    """Returns the rows of idle replicas' stores, but for the words of other rows."""
    masks = mask_words(len(replicas))
    return np.stack([_idle(replica, i, masks, words) for i, replica in enumerate(replicas)])


def _idle(replica: Replica, index: int, masks: int, words: int) -> IntArray:
    row = np.full(words, -1, dtype=np.int64)
    row[: kv.HEADS] = 0
    row[[kv.OLDEST, kv.YOUNGEST, kv.FIRST_JOB, kv.LAST_JOB, kv.CHAIN, kv.CHAIN_END]] = -1
    row[kv.USABLE] = row[kv.FREE] = row[kv.BLANK] = replica.room_blocks
    row[kv.BUDGET] = replica.max_batched_tokens
    row[kv.LONG_PREFILL] = replica.long_prefill_tokens
    row[kv.CHUNKING] = replica.chunked_prefill
    row[kv.WHOLE_SEQUENCE] = replica.admission == "sequence"
    row[kv.RESERVE] = int(replica.watermark * replica.num_blocks)
    row[kv.CACHING] = replica.prefix_caching
    row[kv.LONGEST] = replica.max_model_len or 0
    row[kv.SHARED_READS] = np.float64(replica.shared_reads).view(np.int64)
    row[kv.INDEX] = row[kv.WRITES] = index
    row[[kv.TREE, kv.LOG, kv.LOG_END]] = -1
    row[kv.MASK_AT] = kv.HOLDERS
    row[kv.BUCKET_MASK] = _buckets(replica) - 1
    row[kv.MASKS] = masks
    return row


def mask_words(n_replicas: int) -> int:
    """Returns how many words hold a bit per replica."""
    return -(-n_replicas // 64)


def paths_words(paths: Paths, masks: int) -> int:
    """Returns the words that hold the paths of a workload's requests.

    Args:
        paths: of the requests.
        masks: words of one mask, times how many pairs of masks an edge has.
    """
    edges = len(paths.first) * (kv.HOLDERS + 2 * masks)
    return edges + len(paths.edges) + len(paths.private) * kv.TREE_WORDS


@kernel
def write_stores(
    first: int,
    idle: IntArray,
    replicas: IntArray,
    arena: int,
    first_request: int,
    results: int,
    ints: IntArray,
) -> None:
    """Fills the stores of idle replicas, one after the other from word `first` on.

    Args:
        first: word of the first one.
        idle: (n_replicas, words) their rows.
        replicas: (n_replicas,) the replicas' words.
        arena: word of the arena.
        first_request: word of the first request.
        results: word of the first row of results.
        ints: memory.
    """
    for r in range(idle.shape[0]):
        store = first + r * idle.shape[1]
        for column in range(idle.shape[1]):
            ints[store + column] = idle[r, column]
        ints[store + kv.ARENA] = arena
        ints[store + kv.REPLICA] = replicas[r]
        ints[store + kv.FIRST_REQUEST] = first_request
        ints[store + kv.RESULTS] = results
        ints[replicas[r] + at.STORE] = store


@kernel
def write_copies(
    first: int, n_replicas: int, words: int, copies: int, tree_blocks: int, ints: IntArray
) -> None:
    """Makes stores for routers, which follow those of the replicas.

    Args:
        first: word of the first replica's store.
        n_replicas: how many there are.
        words: of a store.
        copies: how many of each replica's: one per router, or one for all.
        tree_blocks: the size of a router's tree, -1 if it is told of the caches' changes.
        ints: memory.
    """
    for c in range(n_replicas * copies):
        store = first + (c % n_replicas) * words
        copy = first + (n_replicas + c) * words
        for column in range(words):
            ints[copy + column] = ints[store + column]
        ints[copy + kv.WRITES] = NOBODY
        ints[copy + kv.MASK_AT] = kv.HOLDERS + 2 * ints[store + kv.MASKS] * (1 + c // n_replicas)
        if tree_blocks >= 0:
            ints[copy + kv.USABLE] = ints[copy + kv.FREE] = ints[copy + kv.BLANK] = tree_blocks
            arena = ints[store + kv.ARENA]
            ints[copy + kv.SCRATCH] = ints[arena + kv.NEXT_JOB]
            ints[arena + kv.NEXT_JOB] += kv.JOB_WORDS
        else:
            ints[store + kv.LOGGED] = ints[store + kv.CACHING]


@kernel
def show_stores(
    first: int, replicas: IntArray, words: int, copies: int, cluster: int, ints: IntArray
) -> None:
    """Says which stores the routers of a cluster see.

    Args:
        first: word of the first replica's store.
        replicas: (n_replicas,) the replicas' words.
        words: of a store.
        copies: how many follow of each replica's; with none routers see the caches themselves.
        cluster: its word.
        ints: memory.
    """
    n_replicas = len(replicas)
    for g in range(ints[cluster + at.GATEWAYS]):
        copy = min(1 + g, copies)
        counts = ints[cluster + at.FIRST_COUNTS] + g * at.COUNT_WORDS
        for r in range(n_replicas):
            seen = first + (copy * n_replicas + r) * words
            ints[replicas[r] + counts + at.SEEN_STORE] = seen
            if g == 0:
                ints[replicas[r] + at.SEEN_STORE] = seen


@kernel
def write_paths(first: int, masks: int, paths: Paths, first_request: int, ints: IntArray) -> int:
    """Writes edges from word `first` on, then paths, and where each request's path is.

    Args:
        first: word of the first edge.
        masks: as of `paths_words`.
        paths: of the requests.
        first_request: word of the first request.
        ints: memory.

    Returns:
        The word of the table of the latter.
    """
    words = kv.HOLDERS + 2 * masks
    for i in range(len(paths.first)):
        edge = first + i * words
        ints[edge + kv.FIRST] = paths.first[i]
        ints[edge + kv.LAST] = paths.last[i]
        writer = paths.writer[i]
        word = first_request + writer * at.REQUEST_WORDS
        ints[edge + kv.WRITER] = word if writer >= 0 else -1
        for word in range(edge + kv.HOLDERS, edge + words):
            ints[word] = 0
    listed = first + len(paths.first) * words
    for i in range(len(paths.edges)):
        ints[listed + i] = first + paths.edges[i] * words
    table = listed + len(paths.edges)
    for i in range(len(paths.private)):
        row = table + i * kv.TREE_WORDS
        ints[row + kv.TREE_PATH] = listed + paths.offsets[i]
        ints[row + kv.TREE_PATH_END] = listed + paths.offsets[i + 1]
        ints[row + kv.TREE_PRIVATE] = paths.private[i]
    return table


@kernel
def read_results(first: int, cached: IntArray, recached: IntArray, ints: IntArray) -> None:
    """Copies rows of results from word `first` on, shape (n_requests,)."""
    for i in range(len(cached)):
        cached[i] = ints[first + i * kv.RESULT_WORDS + kv.CACHED]
        recached[i] = ints[first + i * kv.RESULT_WORDS + kv.RECACHED]
