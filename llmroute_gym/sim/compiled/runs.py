"""The blocks of a replica as runs: who uses them, which are remembered, which to forget first.

A run is a stretch of consecutive blocks of one edge of the tree of contents, registered one after
the other, with the same users. Runs without users stand in a queue; a run's last blocks are older
than its first, so it is forgotten from its end. Runs of one edge are found through a bucket,
newest first. Stretches that nobody can hit any more are a mere count in the queue.
"""

from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel


class NoNodesError(Exception):
    """An environment's arena is used up."""


@kernel
def _new_node(store: int, ints: IntArray) -> int:
    """Returns a node of the arena, filled with anything.

    Raises:
        NoNodesError: there is none left; whoever called a kernel starts anew with more of them.
    """
    arena = ints[store + kv.ARENA]
    assume(arena >= 0)
    node = ints[arena + kv.FREE_NODE]
    if node >= 0:
        ints[arena + kv.FREE_NODE] = ints[node]
        return node
    node = ints[arena + kv.NEXT_NODE]
    if node >= ints[arena + kv.END_NODE]:
        raise NoNodesError
    ints[arena + kv.NEXT_NODE] = node + kv.NODE_WORDS
    return node


@inlined
def recycle(store: int, node: int, ints: IntArray) -> None:
    """Gives a node back to the arena."""
    arena = ints[store + kv.ARENA]
    assume(arena >= 0)
    assume(node >= 0)
    ints[node] = ints[arena + kv.FREE_NODE]
    ints[arena + kv.FREE_NODE] = node


@inlined
def _bucket(store: int, edge: int, ints: IntArray) -> int:
    """Returns the word of the bucket in which an edge's runs are."""
    return store + kv.HEADS + (((edge * 0x9E3779B1) >> 16) & ints[store + kv.BUCKET_MASK])


@inlined
def first_on(store: int, edge: int, ints: IntArray) -> int:
    """Returns the newest run on an edge, -1 if there is none."""
    run = ints[_bucket(store, edge, ints)]
    while run >= 0 and ints[run + kv.EDGE] != edge:
        run = ints[run + kv.NEXT_RUN]
    return run


@inlined
def mask_word(store: int, edge: int, ints: IntArray) -> int:
    """Returns the word of an edge's mask in which a store's bit is."""
    return edge + ints[store + kv.MASK_AT] + (ints[store + kv.INDEX] >> 6)


@kernel
def _log(store: int, edge: int, ints: IntArray) -> None:
    """Notes up to where a store has an edge from now on."""
    assume(store >= 0)
    reach = ints[edge + kv.FIRST]
    run = ints[_bucket(store, edge, ints)]
    while run >= 0:
        if ints[run + kv.EDGE] == edge:
            reach = max(reach, ints[run + kv.HIGH])
        run = ints[run + kv.NEXT_RUN]
    change = _new_node(store, ints)
    assume(change >= 0)
    ints[change + kv.CHANGED_AT] = ints[store + kv.NOW]
    ints[change + kv.CHANGED_EDGE] = edge
    ints[change + kv.REACH] = reach
    ints[change + kv.NEXT_CHANGE] = -1
    last = ints[store + kv.LOG_END]
    if last >= 0:
        ints[last + kv.NEXT_CHANGE] = change
    else:
        ints[store + kv.LOG] = change
    ints[store + kv.LOG_END] = change


@inlined
def mark(store: int, edge: int, whole: bool, ints: IntArray) -> None:
    """Notes that a replica holds some of an edge, or all of it."""
    if edge >= 0:
        word = mask_word(store, edge, ints)
        bit = 1 << (ints[store + kv.INDEX] & 63)
        ints[word] |= bit
        if whole:
            ints[word + ints[store + kv.MASKS]] |= bit
        if ints[store + kv.LOGGED] == 1:
            _log(store, edge, ints)


@inlined
def unmark(store: int, edge: int, ints: IntArray) -> None:
    """Notes that a replica may no longer hold all of an edge."""
    if edge >= 0:
        word = mask_word(store, edge, ints) + ints[store + kv.MASKS]
        ints[word] &= ~(1 << (ints[store + kv.INDEX] & 63))


@kernel
def discard(store: int, run: int, ints: IntArray) -> None:
    """Takes a run out of its bucket and recycles it."""
    assume(store >= 0)
    assume(run >= 0)
    edge = ints[run + kv.EDGE]
    word = _bucket(store, edge, ints)
    assume(word >= 0)
    more = False
    while ints[word] != run:
        word = ints[word] + kv.NEXT_RUN
        more = more or ints[word - kv.NEXT_RUN] == edge
    following = ints[run + kv.NEXT_RUN]
    ints[word] = following
    if edge >= 0:
        while following >= 0 and not more:
            more = ints[following + kv.EDGE] == edge
            following = ints[following + kv.NEXT_RUN]
        if not more:
            ints[mask_word(store, edge, ints)] &= ~(1 << (ints[store + kv.INDEX] & 63))
    recycle(store, run, ints)


@kernel
def enqueue(store: int, run: int, ints: IntArray) -> None:
    """Puts a run at the young end of the queue."""
    assume(store >= 0)
    assume(run >= 0)
    youngest = ints[store + kv.YOUNGEST]
    ints[run + kv.OLDER] = youngest
    ints[run + kv.YOUNGER] = -1
    ints[store + kv.YOUNGEST] = run
    if youngest >= 0:
        ints[youngest + kv.YOUNGER] = run
    else:
        ints[store + kv.OLDEST] = run


@kernel
def _dequeue(store: int, run: int, ints: IntArray) -> None:
    """Takes a run out of the queue."""
    assume(store >= 0)
    assume(run >= 0)
    older, younger = ints[run + kv.OLDER], ints[run + kv.YOUNGER]
    if older >= 0:
        ints[older + kv.YOUNGER] = younger
    else:
        ints[store + kv.OLDEST] = younger
    if younger >= 0:
        ints[younger + kv.OLDER] = older
    else:
        ints[store + kv.YOUNGEST] = older


@kernel
def bury(store: int, blocks: int, ints: IntArray) -> None:
    """Puts blocks that nobody can hit any more at the young end of the queue.

    With nothing before them they are as good as blank.
    """
    assume(store >= 0)
    youngest = ints[store + kv.YOUNGEST]
    if youngest < 0:
        ints[store + kv.BLANK] += blocks
        return
    if ints[youngest + kv.EDGE] == kv.DEAD:
        ints[youngest + kv.HIGH] += blocks
        return
    node = _new_node(store, ints)
    ints[node + kv.EDGE] = kv.DEAD
    ints[node + kv.LOW] = 0
    ints[node + kv.HIGH] = blocks
    enqueue(store, node, ints)


@kernel
def forget(store: int, blocks: int, ints: IntArray) -> None:
    """Empties the remembered blocks that have been free longest; there are as many."""
    assume(store >= 0)
    while blocks > 0:
        run = ints[store + kv.OLDEST]
        assume(run >= 0)
        edge = ints[run + kv.EDGE]
        there = ints[run + kv.HIGH] - ints[run + kv.LOW]
        unmark(store, edge, ints)
        if there > blocks:
            ints[run + kv.HIGH] -= blocks
            blocks = 0
        else:
            blocks -= there
            _dequeue(store, run, ints)
            if edge == kv.DEAD:
                recycle(store, run, ints)
            else:
                discard(store, run, ints)
        if edge >= 0 and ints[store + kv.LOGGED] == 1:
            _log(store, edge, ints)


@inlined
def take(store: int, blocks: int, ints: IntArray) -> None:
    """Takes free blocks, of which there are as many: blank ones first."""
    ints[store + kv.FREE] -= blocks
    blank = ints[store + kv.BLANK]
    if blank >= blocks:
        ints[store + kv.BLANK] = blank - blocks
    else:
        ints[store + kv.BLANK] = 0
        forget(store, blocks - blank, ints)


@kernel
def add_run(store: int, edge: int, low: int, high: int, users: int, ints: IntArray) -> int:
    """Registers blocks of an edge; returns their run."""
    assume(store >= 0)
    run = _new_node(store, ints)
    assume(run >= 0)
    bucket = _bucket(store, edge, ints)
    assume(bucket >= 0)
    ints[run + kv.EDGE] = edge
    ints[run + kv.LOW] = low
    ints[run + kv.HIGH] = high
    ints[run + kv.USERS] = users
    ints[run + kv.NEXT_RUN] = ints[bucket]
    ints[run + kv.PART] = -1
    ints[bucket] = run
    if edge >= 0:
        whole = low == ints[edge + kv.FIRST] and high == ints[edge + kv.LAST]
        mark(store, edge, whole, ints)
    return run


@kernel
def split(store: int, run: int, at_block: int, ints: IntArray) -> int:
    """Cuts a run in two; returns the second part, to which the users of both go on."""
    assume(store >= 0)
    assume(run >= 0)
    part = _new_node(store, ints)
    assume(part >= 0)
    ints[part + kv.EDGE] = ints[run + kv.EDGE]
    ints[part + kv.LOW] = at_block
    ints[part + kv.HIGH] = ints[run + kv.HIGH]
    ints[part + kv.USERS] = ints[run + kv.USERS]
    ints[part + kv.PART] = ints[run + kv.PART]
    ints[part + kv.NEXT_RUN] = ints[run + kv.NEXT_RUN]
    ints[run + kv.HIGH] = at_block
    ints[run + kv.PART] = part
    ints[run + kv.NEXT_RUN] = part
    if ints[run + kv.USERS] == 0:  # the end of a run is older
        older = ints[run + kv.OLDER]
        ints[part + kv.OLDER] = older
        ints[part + kv.YOUNGER] = run
        ints[run + kv.OLDER] = part
        if older >= 0:
            ints[older + kv.YOUNGER] = part
        else:
            ints[store + kv.OLDEST] = part
    return part


@kernel
def find(store: int, edge: int, block: int, ints: IntArray) -> tuple[int, int]:
    """Finds the copy of a block that was registered first.

    Returns:
        Its run, -1 if there is none; and one past the last block for which that run has the first
        copy, too.
    """
    assume(store >= 0)
    found, until = -1, 0
    run = ints[_bucket(store, edge, ints)]
    while run >= 0:
        if ints[run + kv.EDGE] == edge:
            low, high = ints[run + kv.LOW], ints[run + kv.HIGH]
            if low <= block < high:
                found, until = run, high
            elif found >= 0 and block < low < until:
                until = low
        run = ints[run + kv.NEXT_RUN]
    return found, until


@inlined
def last_part(entry: int, ints: IntArray) -> int:
    """Returns the run in which a job's stretch ends."""
    run = ints[entry + kv.RUN]
    end = ints[entry + kv.END]
    while ints[run + kv.HIGH] < end:
        run = ints[run + kv.PART]
        assume(run >= 0)
    return run


@kernel
def add_entry(store: int, job: int, run: int, end: int, ints: IntArray) -> None:
    """Notes that a job uses a run, up to a block."""
    assume(job >= 0)
    entry = _new_node(store, ints)
    assume(entry >= 0)
    ints[entry + kv.RUN] = run
    ints[entry + kv.END] = end
    ints[entry + kv.BEFORE] = ints[job + kv.ENTRIES]
    ints[job + kv.ENTRIES] = entry


@kernel
def use(store: int, job: int, edge: int, low: int, high: int, ints: IntArray) -> None:
    """Lets a job use the first copies of blocks of an edge, all of which are there."""
    assume(store >= 0)
    assume(job >= 0)
    while low < high:
        run, until = find(store, edge, low, ints)
        assume(run >= 0)
        until = min(until, high)
        if ints[run + kv.LOW] < low:
            run = split(store, run, low, ints)
        if ints[run + kv.HIGH] > until:
            split(store, run, until, ints)
        if ints[run + kv.USERS] == 0:
            _dequeue(store, run, ints)
            ints[store + kv.FREE] -= until - low
        ints[run + kv.USERS] += 1
        add_entry(store, job, run, until, ints)
        low = until


@kernel
def extend(store: int, job: int, edge: int, low: int, high: int, ints: IntArray) -> None:
    """Registers blocks of an edge that a job computes and uses, the next of its path."""
    assume(store >= 0)
    assume(job >= 0)
    entry = ints[job + kv.ENTRIES]
    if entry > 0:
        run = last_part(entry, ints)
        # A run may grow only while it is the newest on its edge, so that every block of a run is
        # older than all blocks of a newer one.
        if (
            ints[run + kv.EDGE] == edge
            and ints[run + kv.HIGH] == low
            and ints[run + kv.USERS] == 1
            and first_on(store, edge, ints) == run
        ):
            ints[run + kv.HIGH] = high
            ints[entry + kv.END] = high
            whole = ints[run + kv.LOW] == ints[edge + kv.FIRST] and high == ints[edge + kv.LAST]
            mark(store, edge, whole, ints)
            return
    run = add_run(store, edge, low, high, 1, ints)
    add_entry(store, job, run, high, ints)


@kernel
def _drop(store: int, run: int, ints: IntArray) -> None:
    """Takes a user from a run."""
    ints[run + kv.USERS] -= 1
    if ints[run + kv.USERS] == 0:
        ints[store + kv.FREE] += ints[run + kv.HIGH] - ints[run + kv.LOW]
        enqueue(store, run, ints)


@kernel
def drop_entries(store: int, job: int, ints: IntArray) -> None:
    """Takes from a job all runs that it uses, the last blocks first."""
    assume(store >= 0)
    assume(job >= 0)
    entry = ints[job + kv.ENTRIES]
    ints[job + kv.ENTRIES] = 0
    while entry > 0:
        end = ints[entry + kv.END]
        first = ints[entry + kv.RUN]
        while True:  # the parts, last one first
            run = first
            while ints[run + kv.HIGH] < end:
                run = ints[run + kv.PART]
                assume(run >= 0)
            end = ints[run + kv.LOW]
            _drop(store, run, ints)
            if run == first:
                break
        before = ints[entry + kv.BEFORE]
        recycle(store, entry, ints)
        entry = before
