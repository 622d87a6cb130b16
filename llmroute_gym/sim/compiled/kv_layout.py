"""Where a replica of `vllm_v1` keeps its running list, its KV cache and what its requests are.

Continues `layout`. All of it is words of the same memory; -1 is no word.
"""

from typing import Final

# A store, one per replica: the KV cache, the running list, the sums of the step being built.
FREE: Final = 0  # blocks without users, blank and remembered
BLANK: Final = 1  # those of them that hold nothing
OLDEST: Final = 2  # the queue of remembered runs, from the one to forget first
YOUNGEST: Final = 3
FIRST_JOB: Final = 4  # the running list, in order of admission
LAST_JOB: Final = 5
RUNNING: Final = 6  # its length
PARTIALS: Final = 7  # jobs in it whose known tokens are not all computed
STALLED: Final = 8  # jobs in it that decode and were not reached by the budget
ADMITTED: Final = 9  # admissions so far
CHAIN: Final = 10  # jobs with a chunk in the step in flight, linked by LINK, in batch order
CHAIN_END: Final = 11
TOKENS: Final = 12  # sums over these chunks
PREFILLS: Final = 13
SQUARES: Final = 14
PAIRS: Final = 15  # chunk times context
BUCKETS: Final = 16  # context buckets
RESUMED: Final = 17  # chunks that count as decodes: the last known token of a resumed request
RESUMED_CONTEXT: Final = 18  # their contexts
PREEMPTED: Final = 19  # 1 if the step being built has preempted somebody
WATCHED: Final = 20  # 1 if the head of the queue would hit what a decoding request writes
# Limits.
BUDGET: Final = 21  # tokens of a step
LONG_PREFILL: Final = 22  # most tokens of one request in a step, 0 for any
CHUNKING: Final = 23
WHOLE_SEQUENCE: Final = 24  # 1 for admission="sequence"
RESERVE: Final = 25  # blocks that an admission leaves free while others run
CACHING: Final = 26
USABLE: Final = 27  # blocks of the replica
LONGEST: Final = 28  # max_model_len, 0 for none
# Where other things are.
INDEX: Final = 29  # the replica's index
ARENA: Final = 30
BUCKET_MASK: Final = 31  # buckets - 1, a power of two less one
SHARED: Final = 32  # blocks that running requests hold, less those that are in use
REPLICA: Final = 33
MASKS: Final = 34  # words of an edge's mask
WRITES: Final = 38  # INDEX if requests decode here, no index in a copy for a router
MASK_AT: Final = 39  # where an edge's masks for such stores start
LOGGED: Final = 40  # 1 if every change of an edge is to be logged
NOW: Final = 41  # f, when the step being built starts; only where LOGGED
LOG: Final = 42  # the changes, first and last, linked by their last word
LOG_END: Final = 43
SCRATCH: Final = 44  # a job, in a copy for a router
KEPT: Final = 45  # blocks of a router's tree
ADMITTED_TOKENS: Final = 46  # prompt tokens of all requests at their first admission
FOUND_TOKENS: Final = 47  # those of them that were cached then
TREE: Final = 35  # the paths for its size of blocks, a row per request; -1 if nothing is shared
FIRST_REQUEST: Final = 36
RESULTS: Final = 37  # what requests found in the cache, a row each
SHARED_READS: Final = 48  # f, share of repeated reads of blocks that costs nothing
HEADS: Final = 49  # then the heads of the buckets: runs, newest first

# The arena that runs, entries and dead stretches of all replicas are taken from.
FREE_NODE: Final = 0  # recycled nodes, linked by their first word
NEXT_NODE: Final = 1  # the first that was never used
END_NODE: Final = 2
FREE_JOB: Final = 3  # the same of jobs, of which there are as many as requests
NEXT_JOB: Final = 4
ARENA_WORDS: Final = 8
NODE_WORDS: Final = 8

# A run: consecutive blocks of one edge that have the same users, registered one after the other.
EDGE: Final = 0  # word of an edge, DEAD, or OWN - request for what only that request can hit
LOW: Final = 1  # first block, counted from the start of the request
HIGH: Final = 2  # one past the last
USERS: Final = 3
OLDER: Final = 4  # neighbours in the queue of those without users
YOUNGER: Final = 5
NEXT_RUN: Final = 6  # in its bucket
PART: Final = 7  # the run that was split off its end

DEAD: Final = -1  # of a stretch of the queue that nobody can hit any more
OWN: Final = -2

# An entry: a stretch of blocks that a job uses.
RUN: Final = 0  # where it starts
END: Final = 1  # one past its last block; it may go on in the run's parts
BEFORE: Final = 2  # the entry before

# A change: up to where a store has an edge from a time on.
CHANGED_AT: Final = 0  # f
CHANGED_EDGE: Final = 1
REACH: Final = 2  # one past the last block there
NEXT_CHANGE: Final = 3

# A job: what a request is to its replica, from its arrival there to its end. The first line is all
# that one needs whose blocks nobody else can have.
FOLLOWING: Final = 0  # neighbours in the running list
PRECEDING: Final = 1
STATE: Final = 2
GENERATED: Final = 3  # output tokens so far; DECODING: the step at which it finishes
DONE: Final = 4  # PARTIAL: tokens computed as of the last step's end
CHUNK: Final = 5  # PARTIAL: its tokens in the step in flight
LINK: Final = 6  # in a chain
REQUEST: Final = 7
NUMBER: Final = 8  # ADMITTED when it was
ENTRIES: Final = 9  # the last of the stretches that it uses, 0 for none
SETTLED: Final = 10  # leading blocks of its path that it uses and that are registered
PATH_AT: Final = 11  # the edge of block SETTLED, a word of its path
PATH: Final = 12  # edges, first to last
PATH_END: Final = 13
PRIVATE: Final = 14  # the first block that no other request can have
JOB_WORDS: Final = 16

# States, with KNOWN added where a job may find blocks in the cache or leave some to others.
WAITING: Final = 0
PARTIAL: Final = 1
DECODING: Final = 2
STALLED_JOB: Final = 3
KNOWN: Final = 8
STATES: Final = 7  # what to take of a state without it

# A row of a tree's table.
TREE_PATH: Final = 0
TREE_PATH_END: Final = 1
TREE_PRIVATE: Final = 2
TREE_WORDS: Final = 3

# A row of results: tokens found at the first admission, and at later ones.
CACHED: Final = 0
RECACHED: Final = 1
RESULT_WORDS: Final = 2

# An edge of the tree of contents: blocks that the same requests have.
FIRST: Final = 0  # its first block
LAST: Final = 1  # one past its last
WRITER: Final = 2  # the request whose output it is, -1 for prompts
HOLDERS: Final = 3  # then, a bit per replica, a mask of those that have some of it, a mask of those
# that surely have it whole; and where routers have copies of their own, the same two of these
