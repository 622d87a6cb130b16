"""What a router may know at a decision: one row per replica, one column per signal.

Rows are float64 in physical units; `llmroute_gym.envs.observation` scales them for a policy. A
column that the chosen information does not include is zero.
"""

from enum import IntEnum

RATE_TIME_S = 30.0
"""Time constant of the exponential averages of rates, TTFT and latency, in seconds."""
BATCH_TIME_WEIGHT = 0.1
"""Weight of the newest batch in the exponential average of batch times."""
FADED = 1e-12
"""Below this weight an average has forgotten all it saw and reads 0."""


class Signal(IntEnum):
    """Columns of a row, in order. "Router" is what the column holds with `information="router"`."""

    WAITING = 0
    """Requests in the waiting queue, restarted ones included. Router: those without first token."""
    RUNNING = 1
    """Requests that hold KV blocks. Router: those past their first token."""
    KV_USAGE = 2
    """Share of KV blocks in use, 0 to 1. Router: 0."""
    PENDING_PROMPT_TOKENS = 3
    """Prompt tokens not yet prefilled. Router: prompts of requests without first token."""
    CONTEXT_TOKENS = 4
    """Tokens in KV. Router: prompts of requests past their first token."""
    OLDEST_WAITING_S = 5
    """Seconds since the oldest waiting request arrived. Router: the oldest without first token."""
    BATCH_TIME_S = 6
    """Exponential average of batch times, seconds. Router: 0."""
    TTFT_S = 7
    """Exponential average of times to first token, seconds."""
    SPEED = 8
    """The replica's speed factor."""
    AVAILABLE = 9
    """1 if the replica takes requests."""
    PROMPT_TOKENS = 10
    """Prompt tokens of the request to route, the same in all rows."""
    PREDICTED_OUTPUT_TOKENS = 11
    """A guess of its output tokens, 0 if there is none, the same in all rows."""
    CACHED_PREFIX = 12
    """Share of its prompt in the replica's prefix cache, 0 to 1."""
    ARRIVAL_RATE = 13
    """Arrivals at the cluster, requests per second and replica, the same in all rows."""
    COMPLETION_RATE = 14
    """Completions of the cluster, requests per second and replica, the same in all rows."""
    E2E_S = 15
    """Exponential average of end-to-end latency, seconds, the same in all rows."""
    SINCE_LAST_ARRIVAL_S = 16
    """Seconds since the previous arrival, the same in all rows."""
    REMAINING_TOKENS = 17
    """True tokens still to process, prompt and output. Only with `information="oracle"`."""
    ROUNDS_SINCE_CHOSEN = 18
    """Decisions since the replica was last chosen, divided by the number of replicas.

    The memory that round robin needs: it chooses the largest. Starts as if the replicas had just
    been chosen in order of their index.
    """


N_SIGNALS = len(Signal)
N_ENGINE_SIGNALS = Signal.TTFT_S + 1
"""The first columns come from the engine and age with `signal_interval_s`."""
