"""How an environment's rows look before its first decision, and what they tell after its last."""

import math

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import kernel


@kernel
def write_cluster(
    cluster: int,
    first_replica: int,
    end_replica: int,
    replica_words: int,
    first_request: int,
    last_request: int,
    information: int,
    now: float,
    late_after: float,
    signal_interval: float,
    waits: int,
    gateways: int,
    first_gate: int,
    first_counts: int,
    weighs: bool,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Fills the rows of a cluster with nothing in it; arguments as the words of `layout`."""
    for column in range(at.CLUSTER_WORDS):
        ints[cluster + column] = 0
    ints[cluster + at.FIRST_REQUEST] = first_request
    ints[cluster + at.NEXT_REQUEST] = first_request
    ints[cluster + at.LAST_REQUEST] = last_request
    ints[cluster + at.FIRST_REPLICA] = first_replica
    ints[cluster + at.END_REPLICA] = end_replica
    ints[cluster + at.REPLICA_WORDS] = replica_words
    ints[cluster + at.INFORMATION] = information
    floats[cluster + at.NOW] = now
    floats[cluster + at.FADED_AT] = now
    floats[cluster + at.LATE_AFTER] = late_after
    floats[cluster + at.SIGNAL_INTERVAL] = signal_interval
    ints[cluster + at.WAITS] = waits
    ints[cluster + at.GATEWAYS] = gateways
    ints[cluster + at.GATE] = ints[cluster + at.FIRST_GATE] = first_gate
    ints[cluster + at.COUNTS] = ints[cluster + at.FIRST_COUNTS] = first_counts
    ints[cluster + at.NAMES] = -1
    ints[cluster + at.WEIGHS] = weighs
    for g in range(gateways):
        gate = first_gate + g * at.GATE_WORDS
        floats[gate + at.E2E_WEIGHT] = 0.0
        floats[gate + at.E2E_TOTAL] = 0.0
        floats[gate + at.ARRIVAL_WEIGHT] = 0.0
        floats[gate + at.PREVIOUS_ARRIVAL] = now
        floats[gate + at.READ_AT] = now


@kernel
def write_replicas(first: int, idle: IntArray, words_behind: int, ints: IntArray) -> None:
    """Fills the rows of idle replicas.

    Args:
        first: word of the first one.
        idle: (n_replicas, replica words) their rows, but for where their keys stand.
        words_behind: words at a row's end that keys may not take.
        ints: memory.
    """
    replica_words = idle.shape[1]
    for r in range(idle.shape[0]):
        replica = first + r * replica_words
        for column in range(replica_words):
            ints[replica + column] = idle[r, column]
        ints[replica + at.FIRST_KEY] = replica + at.HISTOGRAM + idle[r, at.BLOCK_SIZE]
        ints[replica + at.LAST_KEY] = replica + replica_words - words_behind


@kernel
def write_requests(
    first: int,
    arrived_at_s: FloatArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    predicted_output_tokens: FloatArray,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Fills the rows of requests that are still to arrive, from word `first` on."""
    request = first
    for i in range(len(arrived_at_s)):
        floats[request + at.ARRIVED] = arrived_at_s[i]
        ints[request + at.PROMPT] = prompt_tokens[i]
        ints[request + at.OUTPUT] = output_tokens[i]
        ints[request + at.NEXT] = -1
        floats[request + at.SCHEDULED] = math.nan
        floats[request + at.FIRST_TOKEN] = math.nan
        floats[request + at.FINISHED] = math.nan
        ints[request + at.ORDER] = 0
        ints[request + at.PREEMPTIONS] = 0
        ints[request + at.REPLICA] = at.NOT_PLACED
        ints[request + at.NEXT_PLACED] = -1
        ints[request + at.ORIGINAL_PROMPT] = prompt_tokens[i]
        floats[request + at.PREDICTED] = predicted_output_tokens[i]
        request += at.REQUEST_WORDS


@kernel
def read_requests(
    first: int,
    scheduled_at_s: FloatArray,
    first_token_at_s: FloatArray,
    finished_at_s: FloatArray,
    replica: IntArray,
    preemptions: IntArray,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Copies what became of requests, from word `first` on, in one pass over their rows.

    All but memory are filled, shape (n_requests,); the times of a rejected request are infinite.
    """
    request = first
    for i in range(len(replica)):
        replica[i] = max(ints[request + at.REPLICA], -1)
        preemptions[i] = ints[request + at.PREEMPTIONS]
        rejected = ints[request + at.REPLICA] == at.REJECTED
        scheduled_at_s[i] = math.inf if rejected else floats[request + at.SCHEDULED]
        first_token_at_s[i] = math.inf if rejected else floats[request + at.FIRST_TOKEN]
        finished_at_s[i] = math.inf if rejected else floats[request + at.FINISHED]
        request += at.REQUEST_WORDS


@kernel
def read_arrivals(first: int, arrived_at_s: FloatArray, floats: FloatArray) -> None:
    """Copies the times of arrival of requests, from word `first` on, shape (n_requests,)."""
    for i in range(len(arrived_at_s)):
        arrived_at_s[i] = floats[first + i * at.REQUEST_WORDS + at.ARRIVED]
