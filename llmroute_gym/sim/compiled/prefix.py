"""What a request finds in a replica's prefix cache, takes from it and leaves there.

A job's blocks are, in this order: those that it uses as runs (hit or registered, up to SETTLED),
those of its private tail that it has registered, which are a bare number until they are released,
and a partly filled one. What a decoding job writes onto a shared edge is settled only when somebody
looks.
"""

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.runs import (
    add_run,
    bury,
    drop_entries,
    enqueue,
    extend,
    find,
    mask_word,
    use,
)


@inlined
def row_of(store: int, request: int, ints: IntArray) -> int:
    """Returns the index of a request among those of its cluster."""
    return (request - ints[store + kv.FIRST_REQUEST]) // at.REQUEST_WORDS


@inlined
def fill_job(store: int, job: int, request: int, ints: IntArray) -> None:
    """Fills the job of a request that uses nothing yet with what its blocks are."""
    ints[job + kv.STATE] = kv.WAITING
    ints[job + kv.REQUEST] = request
    ints[job + kv.ENTRIES] = 0
    ints[job + kv.SETTLED] = 0
    ints[job + kv.PRIVATE] = 0
    ints[job + kv.PATH] = ints[job + kv.PATH_AT] = ints[job + kv.PATH_END] = 0
    tree = ints[store + kv.TREE]
    if tree >= 0:
        row = tree + row_of(store, request, ints) * kv.TREE_WORDS
        if ints[row + kv.TREE_PRIVATE] > 0:
            ints[job + kv.STATE] = kv.KNOWN
            ints[job + kv.PATH] = ints[job + kv.PATH_AT] = ints[row + kv.TREE_PATH]
            ints[job + kv.PATH_END] = ints[row + kv.TREE_PATH_END]
            ints[job + kv.PRIVATE] = ints[row + kv.TREE_PRIVATE]


@inlined
def known_tokens(job: int, step: int, ints: IntArray) -> int:
    """Returns the prompt and output tokens of a job so far, as of the last step's end."""
    request = ints[job + kv.REQUEST]
    known = ints[request + at.PROMPT] + ints[job + kv.GENERATED]
    if ints[job + kv.STATE] & kv.STATES == kv.DECODING:
        known += ints[request + at.OUTPUT] - 2 * ints[job + kv.GENERATED] + step
    return known


@kernel
def settle(store: int, job: int, upto: int, ints: IntArray) -> None:
    """Registers a job's blocks on shared edges, up to a block."""
    assume(store >= 0)
    assume(job >= 0)
    settled = ints[job + kv.SETTLED]
    upto = min(upto, ints[job + kv.PRIVATE])
    if settled >= upto:
        return
    place = ints[job + kv.PATH_AT]
    while settled < upto:
        assume(place >= 0)
        edge = ints[place]
        assume(edge >= 0)
        last = ints[edge + kv.LAST]
        if last <= settled:
            place += 1
            continue
        until = min(last, upto)
        extend(store, job, edge, settled, until, ints)
        settled = until
    ints[job + kv.SETTLED] = settled
    ints[job + kv.PATH_AT] = place


@kernel
def written_blocks(store: int, edge: int, step: int, before: int, ints: IntArray) -> int:
    """Returns how many leading blocks the request has that decodes here and writes an edge.

    Args:
        store: of the replica.
        edge: its word.
        step: decode steps that have ended; the one being built or in flight counts as well,
        before: unless the request was admitted after so many.
        ints: memory.

    Returns:
        -1 if nobody does.
    """
    assume(edge >= 0)
    request = ints[edge + kv.WRITER]
    if request < 0 or ints[request + at.REPLICA] != ints[store + kv.WRITES]:
        return -1
    job = ints[request + at.ORDER]
    if job < 0:
        return -1
    state = ints[job + kv.STATE] & kv.STATES
    if state != kv.DECODING and state != kv.STALLED_JOB:
        return -1
    known = known_tokens(job, step, ints)
    if state == kv.STALLED_JOB or ints[job + kv.NUMBER] > before:
        known -= 1
    return known // ints[ints[store + kv.REPLICA] + at.BLOCK_SIZE]


@kernel
def settle_writer(store: int, edge: int, step: int, before: int, ints: IntArray) -> bool:
    """Registers what a request that decodes here has written onto an edge; returns if one does.

    Args: as those of `written_blocks`.
    """
    blocks = written_blocks(store, edge, step, before, ints)
    if blocks >= 0:
        settle(store, ints[ints[edge + kv.WRITER] + at.ORDER], blocks, ints)
    return blocks >= 0


@kernel
def settle_all(store: int, step: int, ints: IntArray) -> None:
    """Registers what the decoding requests write in the step being built."""
    job = ints[store + kv.FIRST_JOB]
    while job >= 0:
        if ints[job + kv.STATE] == kv.KNOWN + kv.DECODING:
            blocks = known_tokens(job, step, ints)
            settle(store, job, blocks // ints[ints[store + kv.REPLICA] + at.BLOCK_SIZE], ints)
        job = ints[job + kv.FOLLOWING]


@kernel
def register(store: int, job: int, upto: int, step: int, ints: IntArray) -> None:
    """Registers the blocks that a chunk of a job fills, after what others wrote there before."""
    assume(store >= 0)
    assume(job >= 0)
    upto = min(upto, ints[job + kv.PRIVATE])
    settled = ints[job + kv.SETTLED]
    if settled >= upto:
        return
    place = ints[job + kv.PATH_AT]
    end = ints[job + kv.PATH_END]
    while place < end and ints[ints[place] + kv.FIRST] < upto:
        writer = ints[ints[place] + kv.WRITER]
        if writer >= 0 and writer != ints[job + kv.REQUEST]:
            settle_writer(store, ints[place], step, ints[job + kv.NUMBER], ints)
        place += 1
    settle(store, job, upto, ints)


@kernel
def look_up(store: int, job: int, most: int, step: int, ints: IntArray) -> tuple[int, int]:
    """Counts the leading blocks of a job that are registered.

    Args:
        store: of the replica.
        job: its word; it uses nothing.
        most: look no further than so many blocks.
        step: decode steps that have ended.
        ints: memory; WATCHED is set if a decoding request writes onto the edge where it stops.

    Returns:
        The blocks, and how many of them have no users.
    """
    assume(store >= 0)
    assume(job >= 0)
    ints[store + kv.WATCHED] = 0
    block = idle = 0
    place, end = ints[job + kv.PATH], ints[job + kv.PATH_END]
    while place < end and block < most:
        edge = ints[place]
        assume(edge >= 0)
        last = min(ints[edge + kv.LAST], most)
        written = False
        if ints[edge + kv.WRITER] >= 0:
            written = settle_writer(store, edge, step, ints[store + kv.ADMITTED], ints)
        block, more = _along(store, edge, block, last, ints)
        idle += more
        if block < last:
            ints[store + kv.WATCHED] = 1 if written else 0
            return block, idle
        place += 1
    request = ints[job + kv.REQUEST]
    if block < most and ints[request + at.PREEMPTIONS] > 0:
        block, more = _along(store, kv.OWN - request, block, most, ints)
        idle += more
    return block, idle


@kernel
def _along(store: int, edge: int, block: int, last: int, ints: IntArray) -> tuple[int, int]:
    """Follows the registered blocks of an edge; returns their end, and those without users."""
    idle = 0
    while block < last:
        run, until = find(store, edge, block, ints)
        if run < 0:
            break
        until = min(until, last)
        if ints[run + kv.USERS] == 0:
            idle += until - block
        block = until
    return block, idle


@kernel
def use_hits(store: int, job: int, hits: int, ints: IntArray) -> None:
    """Lets a job use its leading blocks, which `look_up` has found."""
    assume(store >= 0)
    assume(job >= 0)
    free = ints[store + kv.FREE]
    block = 0
    place, end = ints[job + kv.PATH], ints[job + kv.PATH_END]
    while block < hits and place < end:
        edge = ints[place]
        last = min(ints[edge + kv.LAST], hits)
        use(store, job, edge, block, last, ints)
        block = last
        if block == ints[edge + kv.LAST]:
            place += 1
    if block < hits:
        use(store, job, kv.OWN - ints[job + kv.REQUEST], block, hits, ints)
    ints[store + kv.SHARED] += hits - (free - ints[store + kv.FREE])
    ints[job + kv.SETTLED] = hits
    ints[job + kv.PATH_AT] = place


@kernel
def give_back(store: int, job: int, computed: int, finished: bool, ints: IntArray) -> None:
    """Takes all blocks from a job of so many computed tokens, the last ones first."""
    assume(store >= 0)
    assume(job >= 0)
    block_size = ints[ints[store + kv.REPLICA] + at.BLOCK_SIZE]
    held = blocks_for(computed, block_size)
    if ints[store + kv.CACHING] == 0:
        ints[store + kv.FREE] += held
        ints[store + kv.BLANK] += held
        return
    full = computed // block_size
    settle(store, job, full, ints)
    free = ints[store + kv.FREE]
    blank = held - full
    ints[store + kv.BLANK] += blank
    ints[store + kv.FREE] += blank
    first = max(ints[job + kv.PRIVATE], ints[job + kv.SETTLED])
    if full > first:
        ints[store + kv.FREE] += full - first
        if finished:
            bury(store, full - first, ints)
        else:
            own = kv.OWN - ints[job + kv.REQUEST]
            enqueue(store, add_run(store, own, first, full, 0, ints), ints)
    drop_entries(store, job, ints)
    ints[store + kv.SHARED] -= held - (ints[store + kv.FREE] - free)
    ints[job + kv.SETTLED] = 0
    ints[job + kv.PATH_AT] = ints[job + kv.PATH]


@kernel
def reach_on(store: int, edge: int, block: int, last: int, step: int, ints: IntArray) -> int:
    """Returns up to where the blocks of an edge are registered, from `block` to `last`."""
    assume(store >= 0)
    assume(edge >= 0)
    if ints[edge + kv.WRITER] >= 0:
        blocks = written_blocks(store, edge, step, ints[store + kv.ADMITTED], ints)
        block = max(block, min(blocks, last))
    bit = 1 << (ints[store + kv.INDEX] & 63)
    word = mask_word(store, edge, ints)
    if ints[word + ints[store + kv.MASKS]] & bit != 0:
        block = last
    elif ints[word] & bit != 0:
        block, _ = _along(store, edge, block, last, ints)
    return block


@kernel
def hits_of(store: int, request: int, most: int, step: int, ints: IntArray) -> int:
    """Counts the leading blocks of a request that are registered, changing nothing.

    Quick where the masks of an edge tell all.
    """
    assume(store >= 0)
    tree = ints[store + kv.TREE]
    if tree < 0:
        return 0
    row = tree + row_of(store, request, ints) * kv.TREE_WORDS
    block = 0
    place, end = ints[row + kv.TREE_PATH], ints[row + kv.TREE_PATH_END]
    while place < end and block < most:
        last = min(ints[ints[place] + kv.LAST], most)
        block = reach_on(store, ints[place], block, last, step, ints)
        if block < last:
            break
        place += 1
    return block
