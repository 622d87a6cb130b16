"""What a router sees of prefix caches: as they are, as they were, or what it sent where.

The latter two are stores of their own beside those of the engine, with the same books.
"""

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel, lowest_bit
from llmroute_gym.sim.compiled.prefix import (
    fill_job,
    give_back,
    hits_of,
    look_up,
    reach_on,
    row_of,
    settle,
    use_hits,
)
from llmroute_gym.sim.compiled.runs import (
    add_run,
    discard,
    first_on,
    mark,
    mask_word,
    recycle,
    take,
    unmark,
)

_FULL_MASK = 64


@inlined
def _grow(store: int, blocks: int, ints: IntArray) -> None:
    """Counts blocks that are new in a router's tree, which forgets as many once it is full."""
    ints[store + kv.KEPT] = min(ints[store + kv.KEPT] + blocks, ints[store + kv.USABLE])


@kernel
def touch(cluster: int, replica: int, request: int, ints: IntArray) -> None:
    """Notes in a router's tree, if it has one, that it sends a request to a replica."""
    assume(cluster >= 0)
    assume(replica >= 0)
    if ints[cluster + at.VIEW] != at.TREE_VIEW:
        return
    store = ints[replica + ints[cluster + at.COUNTS] + at.SEEN_STORE]
    if ints[replica + at.SCHEDULER] != at.VLLM_V1 or ints[store + kv.CACHING] == 0:
        return
    block_size = ints[replica + at.BLOCK_SIZE]
    blocks = min(ints[request + at.ORIGINAL_PROMPT] // block_size, ints[store + kv.USABLE])
    if ints[store + kv.TREE] < 0:
        _grow(store, blocks, ints)
        return
    job = ints[store + kv.SCRATCH]
    assume(job >= 0)
    fill_job(store, job, request, ints)
    hits, _ = look_up(store, job, blocks, 0, ints)
    _grow(store, blocks - hits, ints)
    use_hits(store, job, hits, ints)
    take(store, blocks - hits, ints)
    settle(store, job, blocks, ints)
    give_back(store, job, blocks * block_size, True, ints)


@inlined
def kept_tokens(cluster: int, replica: int, counted: int, ints: IntArray) -> int:
    """Returns the tokens in a router's tree of a replica, 0 if it has none.

    Args:
        cluster: its word.
        replica: its word.
        counted: the word that the router's counts of it are added to.
        ints: memory.
    """
    tokens = 0
    if ints[cluster + at.VIEW] == at.TREE_VIEW and ints[replica + at.SCHEDULER] == at.VLLM_V1:
        kept = ints[ints[counted + at.SEEN_STORE] + kv.KEPT]
        tokens = kept * ints[replica + at.BLOCK_SIZE]
    return tokens


@kernel
def catch_up(replica: int, until: float, lag: float, ints: IntArray, floats: FloatArray) -> None:
    """Shows a router the changes of a replica's cache that were made before `until - lag`."""
    assume(replica >= 0)
    store, seen = ints[replica + at.STORE], ints[replica + at.SEEN_STORE]
    if ints[replica + at.SCHEDULER] != at.VLLM_V1 or ints[store + kv.LOGGED] == 0:
        return
    change = ints[store + kv.LOG]
    while change >= 0 and floats[change + kv.CHANGED_AT] + lag < until:
        edge, reach = ints[change + kv.CHANGED_EDGE], ints[change + kv.REACH]
        assume(edge >= 0)
        first = ints[edge + kv.FIRST]
        run = first_on(seen, edge, ints)
        unmark(seen, edge, ints)
        if reach == first:
            if run >= 0:
                discard(seen, run, ints)
        elif run < 0:
            add_run(seen, edge, first, reach, 1, ints)
        else:
            ints[run + kv.HIGH] = reach
            mark(seen, edge, reach == ints[edge + kv.LAST], ints)
        following = ints[change + kv.NEXT_CHANGE]
        recycle(store, change, ints)
        change = following
    ints[store + kv.LOG] = change
    if change < 0:
        ints[store + kv.LOG_END] = -1


@kernel
def tokens_seen(
    cluster: int, replica: int, request: int, ints: IntArray, floats: FloatArray
) -> int:
    """Returns the leading tokens of the request at hand that its router sees in a prefix cache."""
    assume(cluster >= 0)
    assume(replica >= 0)
    view = ints[cluster + at.VIEW]
    if view == at.NO_VIEW or ints[replica + at.SCHEDULER] != at.VLLM_V1:
        return 0
    store = ints[replica + ints[cluster + at.COUNTS] + at.SEEN_STORE]
    if ints[store + kv.CACHING] == 0:
        return 0
    if view == at.LATE_VIEW:
        catch_up(replica, floats[cluster + at.NOW], floats[cluster + at.LAG], ints, floats)
    block_size = ints[replica + at.BLOCK_SIZE]
    most = (ints[request + at.ORIGINAL_PROMPT] - 1) // block_size
    return hits_of(store, request, most, ints[replica + at.STEP], ints) * block_size


@inlined
def _share(blocks: int, block_size: int, prompt: int) -> float:
    return blocks * block_size / prompt


@kernel
def write_cached(
    cluster: int,
    request: int,
    column: int,
    out: npt.NDArray[np.floating],
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Writes which share of a request's prompt a router sees in each replica's prefix cache.

    Args:
        cluster: its word.
        request: its word.
        column: of `out`.
        out: (n_replicas, n_columns); zeros are left.
        ints: memory.
        floats: the same memory.
    """
    assume(cluster >= 0)
    n_replicas = out.shape[0]
    view = ints[cluster + at.VIEW]
    if view == at.NO_VIEW or request >= ints[cluster + at.LAST_REQUEST]:
        return
    first, words = ints[cluster + at.FIRST_REPLICA], ints[cluster + at.REPLICA_WORDS]
    assume(first >= 0)
    counts = ints[cluster + at.COUNTS]
    if view == at.LATE_VIEW:
        for r in range(n_replicas):
            catch_up(
                first + r * words, floats[cluster + at.NOW], floats[cluster + at.LAG], ints, floats
            )
    if ints[cluster + at.TREE] >= 0:
        _write_by_masks(cluster, request, column, out, ints)
        return
    prompt = ints[request + at.ORIGINAL_PROMPT]
    for r in range(n_replicas):
        replica = first + r * words
        assume(replica >= 0)
        store = ints[replica + counts + at.SEEN_STORE]
        if ints[replica + at.SCHEDULER] == at.VLLM_V1 and ints[store + kv.CACHING] == 1:
            block_size = ints[replica + at.BLOCK_SIZE]
            step = ints[replica + at.STEP]
            hits = hits_of(store, request, (prompt - 1) // block_size, step, ints)
            out[r, column] = _share(hits, block_size, prompt)


@kernel
def _write_by_masks(
    cluster: int, request: int, column: int, out: npt.NDArray[np.floating], ints: IntArray
) -> None:
    """The same for at most 64 replicas with the same paths, all that have an edge whole at once."""
    n_replicas = out.shape[0]
    first, words = ints[cluster + at.FIRST_REPLICA], ints[cluster + at.REPLICA_WORDS]
    assume(first >= 0)
    prompt = ints[request + at.ORIGINAL_PROMPT]
    block_size = ints[first + at.BLOCK_SIZE]
    most = (prompt - 1) // block_size
    counts = ints[cluster + at.COUNTS]
    store = ints[first + counts + at.SEEN_STORE]
    row = ints[cluster + at.TREE] + row_of(store, request, ints) * kv.TREE_WORDS
    place, end = ints[row + kv.TREE_PATH], ints[row + kv.TREE_PATH_END]
    going = -1 if n_replicas == _FULL_MASK else (1 << n_replicas) - 1
    block = 0
    while place < end and block < most and going != 0:
        edge = ints[place]
        assume(edge >= 0)
        last = min(ints[edge + kv.LAST], most)
        word = mask_word(store, edge, ints)
        some = ints[word]
        whole = ints[word + ints[store + kv.MASKS]]
        writer = ints[edge + kv.WRITER]
        if writer >= 0 and ints[store + kv.WRITES] >= 0 and ints[writer + at.REPLICA] >= 0:
            some |= 1 << ints[writer + at.REPLICA]
        looked_at = going & some & ~whole
        here = block
        gone = going & ~some & ~whole
        going ^= gone
        while gone != 0 and here > 0:
            r = lowest_bit(gone)
            gone &= gone - 1
            out[r, column] = _share(here, block_size, prompt)
        while looked_at != 0:
            r = lowest_bit(looked_at)
            looked_at &= looked_at - 1
            replica = first + r * words
            assume(replica >= 0)
            step = ints[replica + at.STEP]
            seen = ints[replica + counts + at.SEEN_STORE]
            reach = reach_on(seen, edge, here, last, step, ints)
            if reach < last:
                going &= ~(1 << r)
                out[r, column] = _share(reach, block_size, prompt)
        block = last
        place += 1
    while going != 0 and block > 0:
        r = lowest_bit(going)
        going &= going - 1
        out[r, column] = _share(block, block_size, prompt)
