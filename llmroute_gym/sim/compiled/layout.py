"""Where everything stands in the one block of memory that the kernels work on.

A run lives in a single array of 64-bit words, seen twice: `ints` as int64 and `floats` as float64.
Clusters, replicas, requests and models are rows in it, named by the word they start at; a column
below is added to that. So a kernel takes two arrays whatever it touches, and a replica's state is
one stretch of memory. (Many array arguments would cost more than the work: Numba counts references
to each at every call.)

Columns marked f hold floats. Links and names of requests are words; -1 is none.
"""

from typing import Final

from llmroute_gym.ground.signals import AGING

Stores = int | None
"""Given to kernels: None where no replica is of `vllm_v1`, for which nothing is compiled then."""

# A cluster, one per environment.
NEXT_REQUEST: Final = 0  # the request at hand
LAST_REQUEST: Final = 1  # one past the last
FIRST_REQUEST: Final = 2
FIRST_REPLICA: Final = 3
END_REPLICA: Final = 4  # one past the last
REPLICA_WORDS: Final = 5  # from one replica to the next
IN_SYSTEM: Final = 6  # requests placed and not finished
LATE: Final = 7  # those of them that are older than LATE_AFTER
NEXT_LATE: Final = 8  # number of the first decision whose request may still become late
UNTIL: Final = 9  # f, end of the interval being run
DONE_AREA: Final = 10  # f, sum of (until - finish) over the interval's completions
LATE_AREA: Final = 11  # f, the same over late ones
# What one router counts of the cluster, GATE_WORDS of them.
E2E_WEIGHT: Final = 12  # f, exponential average of latencies, as of FADED_AT
E2E_TOTAL: Final = 13  # f
ARRIVAL_WEIGHT: Final = 14  # f, exponential count of arrivals, as of FADED_AT
PREVIOUS_ARRIVAL: Final = 15  # f
READ_AT: Final = 16  # f, when the engines' signals were read last
FADED_AT: Final = 17  # f
DECISION: Final = 18  # requests placed so far
NOW: Final = 19  # f, time of the decision
LATE_AFTER: Final = 20  # f
SIGNAL_INTERVAL: Final = 21  # f
INFORMATION: Final = 22  # ENGINE, ROUTER, ORACLE or METRICS
WAITS: Final = 23  # what waits for what, see `waiting`; -1 where no request waits for another
VIEW: Final = (
    24  # what of prefix caches a router sees: NO_VIEW, EVENTS_VIEW, TREE_VIEW or LATE_VIEW
)
LAG: Final = 25  # f, seconds that LATE_VIEW is late
TREE: Final = 26  # the table of paths of all replicas' stores, -1 where they differ
GATEWAYS: Final = 27  # routers that decide in turn
GATE: Final = 28  # of the one whose turn it is: to it E2E_WEIGHT and so on are added
COUNTS: Final = 29  # to a replica's word and this SILENT and so on are added, likewise
FIRST_GATE: Final = 30  # the two of the first router
FIRST_COUNTS: Final = 31
NAMES: Final = 32  # NAME_WORDS per request, -1 where nobody asks for them or none has any
WEIGHS: Final = 33  # 1 if routers look up what is cached of each request that they send
CLUSTER_WORDS: Final = 34

GATE_WORDS: Final = READ_AT + 1 - E2E_WEIGHT
"""A single router counts in the rows of cluster and replicas. Several have rows of their own, and
those of cluster and replicas hold what all of them would count together."""

SESSION: Final = 0  # f, the names of a request
PROMPT_HEAD: Final = 1  # f
NAME_WORDS: Final = 2

CHUNKED: Final = 0
PREFILL_FIRST: Final = 1
VLLM_V1: Final = 2

NO_VIEW: Final = 0
EVENTS_VIEW: Final = 1
TREE_VIEW: Final = 2
LATE_VIEW: Final = 3

ENGINE: Final = 0
ROUTER: Final = 1
ORACLE: Final = 2
METRICS: Final = 3

# A replica. State.
BATCH_END: Final = 0  # f, of the batch in flight; infinity when idle
HEAD: Final = 1  # first and last of the waiting queue, linked through NEXT
TAIL: Final = 2
DECODES: Final = 3  # requests that decode; all of them are in every batch with decodes
STEP: Final = 4  # decode steps so far; a request finishes at the step in its key
CONTEXT: Final = 5  # sum of the decoding requests' contexts, in tokens
FIRST_KEY: Final = 6  # where the sorted keys start
LAST_KEY: Final = 7  # one past the last word that a key may take; room for a sort follows
JOINED: Final = 8  # requests that ever started to decode; numbers them for eviction
WAITING: Final = 9  # length of the queue
RESTARTED: Final = 10  # how many of its first are restarted requests
WAITING_PROMPT: Final = 11  # sum of the queue's prompt tokens
PARTIAL: Final = 12  # the request with a half-done prefill; there is never more than one
PARTIAL_CHUNK: Final = 13  # its tokens in the batch in flight, if that does not complete it
PARTIAL_DONE: Final = 14  # its tokens in KV
PARTIAL_SKIPPED: Final = 15  # 1 if the last batch had no room for it: it leads the running list
IN_DECODE: Final = 16  # 1 if the batch in flight has decodes
CHAIN: Final = 17  # first and last prefill that the batch in flight completes, through NEXT
CHAIN_END: Final = 18
CHAIN_TOKENS: Final = 19  # their prompt tokens in the batch
CHAIN_DONE: Final = 20  # tokens in KV of the half-done prefill among them
PREFILL_BLOCKS: Final = 21  # KV blocks held by requests that do not decode yet
PREFILL_COUNT: Final = 22  # how many those are
BATCH_TIME: Final = 23  # f, of the batch in flight
SCALE: Final = 24  # f, slowdown factor / speed
NEXT_SLOWDOWN: Final = 25  # f, when the next slowdown begins
SLOWDOWN: Final = 26  # word of its (start, factor)
SLOWDOWN_END: Final = 27
# What only an observed run keeps.
TOTAL: Final = 28  # prompt and output tokens of all requests in the system
MEAN_BATCH_TIME: Final = 29  # f
# Limits.
SCHEDULER: Final = 30  # CHUNKED, PREFILL_FIRST or VLLM_V1
MAX_BATCH: Final = 31
MAX_BATCHED_TOKENS: Final = 32
CHUNK_SIZE: Final = 33
BLOCK_SIZE: Final = 34
NUM_BLOCKS: Final = 35
OPEN_BLOCKS: Final = 36  # num_blocks - watermark_blocks
KEEP_PROMPT: Final = 37  # 1 for restart="recompute"
MODEL: Final = 38
SPEED: Final = 39  # f
LEAST_SCALE: Final = 40  # f, the smallest SCALE that its slowdowns can bring
# Requests that were sent to it but that it has not been run on to yet, linked by arrival.
FEED: Final = 41  # the first, -1 if there is none
FEED_END: Final = 42  # the last
FEED_COUNT: Final = 43
# When it may next finish a request, whatever arrives; see `waking`.
SOONEST: Final = 44  # f, a lower bound while memory suffices
SOONEST_SHORT: Final = 45  # f, another one that needs no memory
SPARE: Final = 46  # tokens that arrivals may bring before memory can run short
STEPS_AHEAD: Final = 47  # decode steps until one of its requests finishes
FIRST_PACE: Final = 48  # f, seconds that a batch takes at least
PACE: Final = 49  # f, the same of a batch with all that decode now
STORE: Final = 50  # of `vllm_v1`, see `kv_layout`
TOLD_SPEED: Final = 51  # f, what rows say of SPEED
SAME_UNTIL: Final = 52  # STEP before which decode batches have the members of the one in flight,
# unless a request arrives; see `running.keep_up`
# What one router counts of it and is told of it, COUNT_WORDS of them.
SILENT: Final = 53  # requests without first token, their prompts; those past it, their prompts
SILENT_PROMPT: Final = 54
STREAMING: Final = 55
STREAMING_PROMPT: Final = 56
UNCACHED: Final = 57  # tokens of the former that were to be computed, as the router saw it then
UNCACHED_PAIRS: Final = 58  # twice the sum of u (p - u / 2) over u of p tokens
FIRST_PLACED: Final = 59  # no request placed before this one lacks its first token
LAST_PLACED: Final = 60
CHOSEN_AT: Final = 61  # number of the decision that last chose it
TTFT_WEIGHT: Final = 62  # f
TTFT_TOTAL: Final = 63  # f
TTFT_AT: Final = 64  # f
GATEWAY: Final = 65  # index of the router
SEEN_STORE: Final = 66  # what it sees of STORE; the same, or a copy kept for it
SEEN: Final = 67  # f, the engine's own signals as last read, one word each
HISTOGRAM: Final = SEEN + len(AGING)
# From HISTOGRAM on one word per token of a block, see `blocks`, followed by 2 max_batch + 2 words
# of keys and max_batch + 1 to sort them in, then the counts of several routers.

COUNT_WORDS: Final = HISTOGRAM - SILENT

# A request.
ARRIVED: Final = 0  # f
PROMPT: Final = 1  # as restarts have changed it
OUTPUT: Final = 2
NEXT: Final = 3  # link of the queue or chain it is in
SCHEDULED: Final = 4  # f, NaN until then, as the next two
FIRST_TOKEN: Final = 5  # f
FINISHED: Final = 6  # f
ORDER: Final = 7  # JOINED when it started to decode; its job on a replica of `vllm_v1`
PREEMPTIONS: Final = 8
REPLICA: Final = 9  # index of its replica, or NOT_PLACED or REJECTED
NEXT_PLACED: Final = 10  # the next request placed on the same replica
ORIGINAL_PROMPT: Final = 11
PREDICTED: Final = 12  # f, predicted output tokens, until it is placed
COUNTED: Final = 12  # from then on in an observed run: its UNCACHED tokens and COUNTS, see `events`
REQUEST_WORDS: Final = 13

NOT_PLACED: Final = -1
REJECTED: Final = -2

# What waits for what, a table per environment whose requests wait for each other's end: HEAP_SIZE,
# then, for n requests each, the words of the requests in order of their decisions, a heap of the
# words of those that will arrive (by time, then word), and rows of WAIT_WORDS.
HEAP_SIZE: Final = 0
FIRST_CHILD: Final = 0  # of a row: the first request that waits for this one, -1 if there is none
SIBLING: Final = 1  # the next one that waits for the same
GAP: Final = 2  # f, seconds from that one's end to this one's arrival
WAIT_WORDS: Final = 3

# A model of batch times; its tables are words too.
KIND: Final = 0
DENSE: Final = 1  # seconds of everything but attention, by tokens in the batch
DECODE: Final = 2  # TABLE: [decodes - 1, ceil(mean context / 64)]; FORMULA: per token;
# PROFILE and PIECEWISE: [decodes - 1, segment of the mean context] lines
DECODE_COLUMNS: Final = 3  # words per row of DECODE
DECODE_AXIS: Final = 4  # PROFILE and PIECEWISE: of mean contexts
PREFILL: Final = 5  # TABLE: [rows, columns]; FORMULA: per pair of tokens;
# PROFILE: [context buckets, segment of the root of squared chunks] lines;
# PIECEWISE: per chunk, then [segment of that root] lines of the seconds and of those per pair
PREFILL_ROWS: Final = 6
PREFILL_COLUMNS: Final = 7  # words per row of PREFILL
ROOT_AXIS: Final = 8  # PROFILE and PIECEWISE: of the roots of squared chunks
GQA: Final = 9
DENSE_LEAST: Final = 10  # the least of DENSE from so many tokens on
LEAST: Final = (
    11  # a model whose decode batches take no longer than this one's with further members
)
MODEL_WORDS: Final = 12

# A line is two words: the seconds at the start of a segment, and the seconds per unit beyond it.

PIECE_WORDS: Final = 4  # a segment's two lines

# An axis of a grid: ascending knots, and where to start looking for the segment of a coordinate.
KNOTS: Final = 0  # how many
CELLS: Final = 1  # how many
FIRST_CELL: Final = 2  # per CELL_WIDTH, the segment at its start; then the knots (f)
CELL_WIDTH: Final = 16

TABLE: Final = 0
PROFILE: Final = 1
FORMULA: Final = 2
PIECEWISE: Final = 3

REQUEST_BITS: Final = 31
"""A key is the finishing step shifted by this, plus the request's word."""
REQUEST_MASK: Final = (1 << REQUEST_BITS) - 1
STEP_LIMIT: Final = 1 << 31
"""Steps are counted anew from here on: with the most output tokens, a key still fits its word."""
