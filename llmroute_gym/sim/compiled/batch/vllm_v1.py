"""vLLM v1's step: one token budget for everything, running requests first (`vllm_v1`).

The rules are those of `llmroute_gym.sim.reference.schedulers.vllm_v1`. Requests that decode are
counted lazily, see `kernel`; only a step that runs short of blocks or of budget, or that has
several half-done prompts, walks the running list.
"""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.batch_time import CONTEXT_BUCKET
from llmroute_gym.sim.compiled import kv_layout as kv
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.blocks import blocks_for, residue
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel
from llmroute_gym.sim.compiled.keys import insert_key, remove_key
from llmroute_gym.sim.compiled.lanes import LANES, within
from llmroute_gym.sim.compiled.prefix import (
    give_back,
    known_tokens,
    look_up,
    register,
    row_of,
    use_hits,
)
from llmroute_gym.sim.compiled.runs import take


@inlined
def chunk_tokens(store: int, known: int, computed: int, limited: bool, ints: IntArray) -> int:
    """Returns the tokens that a job wants in this step, before the budget."""
    wanted = known - computed
    if limited:
        wanted = min(wanted, ints[store + kv.LONG_PREFILL])
    return wanted


@kernel
def add_chunk(
    replica: int, store: int, job: int, known: int, tokens: int, step: int, ints: IntArray
) -> None:
    """Puts a chunk of a job into the step, its blocks being taken; registers what it fills."""
    assume(store >= 0)
    assume(job >= 0)
    computed = ints[job + kv.DONE]
    ints[job + kv.CHUNK] = tokens
    ints[job + kv.LINK] = -1
    if ints[store + kv.CHAIN] < 0:
        ints[store + kv.CHAIN] = job
    else:
        ints[ints[store + kv.CHAIN_END] + kv.LINK] = job
    ints[store + kv.CHAIN_END] = job
    ints[store + kv.TOKENS] += tokens
    if ints[job + kv.GENERATED] > 0 and known - computed == 1:
        ints[store + kv.RESUMED] += 1
        ints[store + kv.RESUMED_CONTEXT] += known
    else:
        ints[store + kv.PREFILLS] += 1
        ints[store + kv.SQUARES] += tokens * tokens
        ints[store + kv.PAIRS] += tokens * computed
        ints[store + kv.BUCKETS] += (computed + CONTEXT_BUCKET - 1) // CONTEXT_BUCKET
    if ints[store + kv.CACHING] == 1 and ints[job + kv.STATE] & kv.KNOWN != 0:
        block_size = ints[replica + at.BLOCK_SIZE]
        register(store, job, (computed + tokens) // block_size, step, ints)


@inlined
def unlink(store: int, job: int, ints: IntArray) -> None:
    """Takes a job out of the running list."""
    before, after = ints[job + kv.PRECEDING], ints[job + kv.FOLLOWING]
    if before >= 0:
        ints[before + kv.FOLLOWING] = after
    else:
        ints[store + kv.FIRST_JOB] = after
    if after >= 0:
        ints[after + kv.PRECEDING] = before
    else:
        ints[store + kv.LAST_JOB] = before
    ints[store + kv.RUNNING] -= 1


@kernel
def start_decoding(replica: int, job: int, generated: int, step: int, ints: IntArray) -> None:
    """Counts a job among those that decode, `step` decode steps having ended."""
    assume(replica >= 0)
    assume(job >= 0)
    request = ints[job + kv.REQUEST]
    assume(request >= 0)
    known = ints[request + at.PROMPT] + generated
    finish = step + ints[request + at.OUTPUT] - generated
    ints[job + kv.STATE] = (ints[job + kv.STATE] & kv.KNOWN) + kv.DECODING
    ints[job + kv.GENERATED] = finish
    key = (finish << at.REQUEST_BITS) | request
    first_key, b = ints[replica + at.FIRST_KEY], ints[replica + at.DECODES]
    ints[replica + at.FIRST_KEY] = insert_key(replica, first_key, b, key, ints)
    ints[replica + at.HISTOGRAM + residue(known - step, ints[replica + at.BLOCK_SIZE])] += 1
    ints[replica + at.DECODES] = b + 1
    ints[replica + at.CONTEXT] += known


@kernel
def stop_decoding(replica: int, job: int, state: int, step: int, ints: IntArray) -> None:
    """Counts a job no longer among those that decode; GENERATED is its output then."""
    assume(replica >= 0)
    assume(job >= 0)
    request = ints[job + kv.REQUEST]
    assume(request >= 0)
    known = known_tokens(job, step, ints)
    key = (ints[job + kv.GENERATED] << at.REQUEST_BITS) | request
    remove_key(replica, ints[replica + at.FIRST_KEY], ints[replica + at.DECODES], key, ints)
    ints[replica + at.HISTOGRAM + residue(known - step, ints[replica + at.BLOCK_SIZE])] -= 1
    ints[replica + at.DECODES] -= 1
    ints[replica + at.CONTEXT] -= known
    ints[job + kv.STATE] += state - kv.DECODING
    ints[job + kv.GENERATED] = known - ints[request + at.PROMPT]


@kernel
def _preempt(replica: int, store: int, job: int, step: int, ints: IntArray) -> None:
    """Takes everything from the last of the running list, and puts it at the queue's front."""
    assume(replica >= 0)
    assume(store >= 0)
    assume(job >= 0)
    request = ints[job + kv.REQUEST]
    assume(request >= 0)
    known = known_tokens(job, step, ints)
    state = ints[job + kv.STATE] & kv.STATES
    computed = known - 1
    if state == kv.DECODING:
        stop_decoding(replica, job, kv.WAITING, step, ints)
    elif state == kv.STALLED_JOB:
        ints[store + kv.STALLED] -= 1
        ints[replica + at.CHAIN_DONE] -= known
        ints[replica + at.PREFILL_COUNT] -= 1
    else:
        computed = ints[job + kv.DONE]
        ints[store + kv.PARTIALS] -= 1
        ints[replica + at.PARTIAL_DONE] -= computed
        ints[replica + at.CHAIN_TOKENS] -= known - computed
        ints[replica + at.PREFILL_COUNT] -= 1
    ints[job + kv.STATE] = kv.WAITING + (kv.KNOWN if ints[store + kv.CACHING] == 1 else 0)
    give_back(store, job, computed, False, ints)
    unlink(store, job, ints)
    ints[job + kv.DONE] = 0
    ints[request + at.PREEMPTIONS] += 1
    head = ints[replica + at.HEAD]
    ints[request + at.NEXT] = head
    ints[replica + at.HEAD] = request
    if head < 0:
        ints[replica + at.TAIL] = request
    ints[replica + at.WAITING] += 1
    ints[replica + at.WAITING_PROMPT] += known
    ints[replica + at.RESTARTED] += 1
    ints[store + kv.PREEMPTED] = 1


@kernel
def walk(replica: int, store: int, step: int, limited: bool, ints: IntArray) -> int:
    """Gives every running job its tokens and blocks, one after the other.

    Args:
        replica: its word; the counters of its decodes are in its row.
        store: its word.
        step: decode steps that have ended.
        limited: whether LONG_PREFILL holds.
        ints: memory; PREEMPTED tells whether blocks ran short.

    Returns:
        What is left of the budget.
    """
    assume(replica >= 0)
    assume(store >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    budget = ints[store + kv.BUDGET]
    job = ints[store + kv.FIRST_JOB]
    while job >= 0 and budget > 0:
        known = known_tokens(job, step, ints)
        partial = ints[job + kv.STATE] & kv.STATES == kv.PARTIAL
        computed = known - 1
        if partial:
            computed = ints[job + kv.DONE]
        tokens = min(chunk_tokens(store, known, computed, limited, ints), budget)
        missing = blocks_for(computed + tokens, block_size) - blocks_for(computed, block_size)
        victim = -1
        while missing > ints[store + kv.FREE] and victim != job:
            victim = ints[store + kv.LAST_JOB]
            _preempt(replica, store, victim, step, ints)
        if victim == job:
            return budget
        take(store, missing, ints)
        budget -= tokens
        if partial:
            add_chunk(replica, store, job, known, tokens, step, ints)
        elif ints[job + kv.STATE] & kv.STATES == kv.STALLED_JOB:
            ints[store + kv.STALLED] -= 1
            ints[replica + at.CHAIN_DONE] -= known
            ints[replica + at.PREFILL_COUNT] -= 1
            start_decoding(replica, job, ints[job + kv.GENERATED], step, ints)
        job = ints[job + kv.FOLLOWING]
    while job >= 0:  # the budget did not reach them
        if ints[job + kv.STATE] & kv.STATES == kv.DECODING:
            stop_decoding(replica, job, kv.STALLED_JOB, step, ints)
            ints[store + kv.STALLED] += 1
            ints[replica + at.CHAIN_DONE] += known_tokens(job, step, ints)
            ints[replica + at.PREFILL_COUNT] += 1
        job = ints[job + kv.FOLLOWING]
    return budget


@kernel
def admit_waiting(
    replica: int,
    store: int,
    now: float,
    budget: int,
    step: int,
    limited: bool,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Admits from the head of the queue until the first that does not fit.

    Args:
        replica: its word.
        store: its word.
        now: seconds.
        budget: tokens left in this step, > 0.
        step: decode steps that have ended.
        limited: whether LONG_PREFILL holds.
        ints: memory.
        floats: the same memory.
    """
    assume(replica >= 0)
    assume(store >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    caching = ints[store + kv.CACHING] == 1
    request = ints[replica + at.HEAD]
    while budget > 0 and request >= 0 and ints[store + kv.RUNNING] < ints[replica + at.MAX_BATCH]:
        job = ints[request + at.ORDER]
        assume(job >= 0)
        known = ints[request + at.PROMPT] + ints[job + kv.GENERATED]
        hits = idle = 0
        known_job = ints[job + kv.STATE] & kv.KNOWN
        if caching and known_job != 0:
            hits, idle = look_up(store, job, (known - 1) // block_size, step, ints)
        cached = hits * block_size
        tokens = chunk_tokens(store, known, cached, limited, ints)
        if tokens > budget:
            if ints[store + kv.CHUNKING] == 0:
                return
            tokens = budget
        new = blocks_for(cached + tokens, block_size) - hits
        needed = new
        if ints[store + kv.WHOLE_SEQUENCE] == 1:
            needed = blocks_for(known, block_size) - hits
        if ints[store + kv.RUNNING] > 0:
            needed += ints[store + kv.RESERVE]
        if needed + idle > ints[store + kv.FREE]:
            return
        following = ints[request + at.NEXT]
        ints[replica + at.HEAD] = following
        if following < 0:
            ints[replica + at.TAIL] = -1
        ints[replica + at.WAITING] -= 1
        ints[replica + at.WAITING_PROMPT] -= known
        if ints[replica + at.RESTARTED] > 0:
            ints[replica + at.RESTARTED] -= 1
        if hits > 0:
            use_hits(store, job, hits, ints)
        take(store, new, ints)
        if math.isnan(floats[request + at.SCHEDULED]):
            floats[request + at.SCHEDULED] = now
            ints[store + kv.ADMITTED_TOKENS] += ints[request + at.PROMPT]
            ints[store + kv.FOUND_TOKENS] += cached
            if cached > 0:
                row = ints[store + kv.RESULTS] + row_of(store, request, ints) * kv.RESULT_WORDS
                ints[row + kv.CACHED] = cached
        elif cached > 0:
            row = ints[store + kv.RESULTS] + row_of(store, request, ints) * kv.RESULT_WORDS
            ints[row + kv.RECACHED] += cached
        last = ints[store + kv.LAST_JOB]
        ints[job + kv.PRECEDING] = last
        ints[job + kv.FOLLOWING] = -1
        ints[store + kv.LAST_JOB] = job
        if last >= 0:
            ints[last + kv.FOLLOWING] = job
        else:
            ints[store + kv.FIRST_JOB] = job
        ints[store + kv.RUNNING] += 1
        ints[store + kv.PARTIALS] += 1
        ints[job + kv.NUMBER] = ints[store + kv.ADMITTED]
        ints[store + kv.ADMITTED] += 1
        ints[job + kv.STATE] = kv.PARTIAL + known_job
        ints[job + kv.DONE] = cached
        ints[replica + at.PARTIAL_DONE] += cached
        ints[replica + at.CHAIN_TOKENS] += known - cached
        ints[replica + at.PREFILL_COUNT] += 1
        add_chunk(replica, store, job, known, tokens, step, ints)
        budget -= tokens
        request = following


@kernel
def more_steps(replica: int, b: int, step: int, free: int, most: int, ints: IntArray) -> int:
    """Returns for how many decode steps, 0 to `most`, free blocks suffice."""
    assume(replica >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    if blocks_for(most, block_size) * b <= free:
        return most
    steps = (free // b) * block_size  # whole rounds, in each of which every job takes one
    free -= (free // b) * b
    place = residue(1 - step, block_size)
    while steps < most:
        free -= ints[replica + at.HISTOGRAM + place]
        if free < 0:
            break
        steps += 1
        place = place - 1 if place > 0 else block_size - 1
    return min(steps, most)


@inlined
def taken_in(replica: int, b: int, step: int, steps: int, ints: IntArray) -> int:
    """Returns the blocks that decoding requests take in so many steps after `step` ended ones."""
    assume(replica >= 0)
    block_size = ints[replica + at.BLOCK_SIZE]
    rounds = steps // LANES if block_size == LANES else steps // block_size
    taken = rounds * b
    place = residue(1 - step, block_size)
    if block_size == LANES:
        counts = replica + at.HISTOGRAM
        taken += within(ints, counts, place, steps - rounds * block_size)
    else:
        for _ in range(steps - rounds * block_size):
            taken += ints[replica + at.HISTOGRAM + place]
            place = place - 1 if place > 0 else block_size - 1
    return taken
