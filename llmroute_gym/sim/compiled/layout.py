"""Columns of the state arrays that the kernels work on.

All replicas of all environments are rows of the same arrays: replica r of environment e is row
e * n_replicas + r, request i of environment e is row e * n_requests + i. Numba treats the column
numbers as constants.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

# replica_int: (n_rows, N_REPLICA_INT) int64. State.
DECODES: Final = 0  # requests that decode; all of them are in every batch with decodes
STEP: Final = 1  # decode steps so far; a request finishes when it reaches the step in its key
CONTEXT: Final = 2  # sum of the decoding requests' contexts, in tokens
JOINED: Final = 3  # requests that ever started to decode; numbers them for eviction
HEAD: Final = 4  # first and last of the waiting queue, linked through NEXT; -1 if empty
TAIL: Final = 5
WAITING: Final = 6  # length of the queue
RESTARTED: Final = 7  # how many of its first are restarted requests
WAITING_PROMPT: Final = 8  # sum of the queue's prompt tokens
PARTIAL: Final = 9  # the request with a half-done prefill (never more than one), -1 if none
PARTIAL_CHUNK: Final = 10  # its tokens in the batch in flight, if that does not complete it
PARTIAL_SKIPPED: Final = 11  # 1 if the last batch had no room for it: it leads the running list
IN_DECODE: Final = 12  # 1 if the batch in flight has decodes
CHAIN: Final = 13  # first and last prefill that the batch in flight completes, through NEXT
CHAIN_END: Final = 14
CHAIN_TOKENS: Final = 15  # their prompt tokens in the batch
PREFILL_BLOCKS: Final = 16  # KV blocks held by requests that do not decode yet
PREFILL_COUNT: Final = 17  # how many those are
PARTIAL_DONE: Final = 18  # tokens in KV of the one half-done prefill
FIRST_KEY: Final = 19  # where the sorted keys start
TOTAL: Final = 20  # prompt and output tokens of all requests in the system
SLOWDOWN: Final = 21  # the next slowdown to begin
SILENT: Final = 22  # requests without first token, their prompts; those past it, their prompts
SILENT_PROMPT: Final = 23
STREAMING: Final = 24
STREAMING_PROMPT: Final = 25
FIRST_PLACED: Final = 26  # no request placed before this one lacks its first token
LAST_PLACED: Final = 27
# Limits.
PREFILL_FIRST: Final = 28  # 1 for that scheduler, 0 for chunked
MAX_BATCH: Final = 29
MAX_BATCHED_TOKENS: Final = 30
CHUNK_SIZE: Final = 31
BLOCK_SIZE: Final = 32
NUM_BLOCKS: Final = 33
WATERMARK: Final = 34
KEEP_PROMPT: Final = 35  # 1 for restart="recompute"
MODEL: Final = 36  # row of model_int
SLOWDOWN_END: Final = 37  # end of its slowdowns
CHAIN_DONE: Final = 38  # tokens in KV of a half-done prefill that the batch in flight completes
CHOSEN_AT: Final = 39  # the decision that last chose it
N_REPLICA_INT: Final = 40

# replica_float: (n_rows, N_REPLICA_FLOAT) float64.
BATCH_END: Final = 0  # of the batch in flight, seconds; infinity when idle
BATCH_TIME: Final = 1  # of the batch in flight
SCALE: Final = 2  # slowdown factor / speed
NEXT_SLOWDOWN: Final = 3  # when the next slowdown begins
MEAN_BATCH_TIME: Final = 4
TTFT_WEIGHT: Final = 5
TTFT_TOTAL: Final = 6
TTFT_AT: Final = 7
SPEED: Final = 8
N_REPLICA_FLOAT: Final = 10

# request_int: (n_rows, N_REQUEST_INT) int64.
PROMPT: Final = 0  # as restarts have changed it
OUTPUT: Final = 1
NEXT: Final = 2  # link of the queue or chain it is in
ORDER: Final = 3  # JOINED when it started to decode
PREEMPTIONS: Final = 4
REPLICA: Final = 5
NEXT_PLACED: Final = 6  # the next request placed on the same replica
ORIGINAL_PROMPT: Final = 7
N_REQUEST_INT: Final = 8

# request_float: (n_rows, N_REQUEST_FLOAT) float64.
ARRIVED: Final = 0
SCHEDULED: Final = 1  # NaN until then, as the next two
FIRST_TOKEN: Final = 2
FINISHED: Final = 3
N_REQUEST_FLOAT: Final = 4

# cluster_float: (n_environments, N_CLUSTER_FLOAT) float64.
UNTIL: Final = 0  # end of the interval being run
DONE_AREA: Final = 1  # sum of (until - finish) over the interval's completions
LATE_AREA: Final = 2  # the same over late ones
E2E_WEIGHT: Final = 3  # exponential average of latencies, as of `E2E_AT`
E2E_TOTAL: Final = 4
E2E_AT: Final = 5
ARRIVAL_WEIGHT: Final = 6
ARRIVAL_AT: Final = 7
NOW: Final = 8
PREVIOUS_ARRIVAL: Final = 9
READ_AT: Final = 10  # when the engines' signals were read last
LATE_AFTER: Final = 11
SIGNAL_INTERVAL: Final = 12
RETURN: Final = 13
N_CLUSTER_FLOAT: Final = 14

# cluster_int: (n_environments, N_CLUSTER_INT) int64.
NEXT_REQUEST: Final = 0
IN_SYSTEM: Final = 1
LATE: Final = 2  # requests in the system that are older than LATE_AFTER
NEXT_LATE: Final = 3  # no request before this one will still become late
N_REQUESTS: Final = 4
FIRST_REQUEST: Final = 5  # row of its request 0
N_CLUSTER_INT: Final = 6

# model_int: (n_models, N_MODEL_INT) int64, offsets into the flat table.
KIND: Final = 0
DENSE: Final = 1  # seconds of everything but attention, by tokens in the batch
DECODE: Final = 2  # [decodes - 1, ceil(mean context / 64) or knot]; FORMULA: per token
DECODE_COLUMNS: Final = 3
DECODE_KNOTS: Final = 4  # mean contexts, ascending
PREFILL: Final = 5  # [rows, columns]; FORMULA: per pair of tokens
PREFILL_ROWS: Final = 6
PREFILL_COLUMNS: Final = 7
PREFILL_KNOTS: Final = 8  # row knots, then column knots
GQA: Final = 9
N_MODEL_INT: Final = 10

TABLE: Final = 0
PROFILE: Final = 1
FORMULA: Final = 2

REQUEST_BITS: Final = 31
"""A key is the finishing step shifted by this, plus the request's row."""


class State(NamedTuple):
    """All arrays of a run; the kernels take it whole and change it in place."""

    replica_int: npt.NDArray[np.int64]
    replica_float: npt.NDArray[np.float64]
    keys: npt.NDArray[np.int64]
    """(n_rows, 2 max_batch + 2) finishing step and request, ascending from FIRST_KEY."""
    histogram: npt.NDArray[np.int64]
    """(n_rows, block size) decoding requests, see `blocks`."""
    request_int: npt.NDArray[np.int64]
    request_float: npt.NDArray[np.float64]
    cluster_int: npt.NDArray[np.int64]
    cluster_float: npt.NDArray[np.float64]
    seen: npt.NDArray[np.float64]
    """(n_rows, N_ENGINE_SIGNALS) the engines' signals as last read."""
    model_int: npt.NDArray[np.int64]
    table: npt.NDArray[np.float64]
    """Batch times of all models, see `models`."""
    slowdowns: npt.NDArray[np.float64]
    """(n, 2) start and factor."""
