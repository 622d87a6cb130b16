"""What a router may know at a decision: one row per replica, one column per signal.

Rows are float64 in physical units and hold every signal. A policy reads some of the columns by
name (`ObservationConfig.columns`), scaled as the signal says. A column that the chosen information
does not include is zero.
"""

from enum import IntEnum
from typing import Final, Self

RATE_TIME_S: Final = 30.0
"""Time constant of the exponential averages of rates, TTFT and latency, in seconds."""
BATCH_TIME_WEIGHT: Final = 0.1
"""Weight of the newest batch in the exponential average of batch times."""
FADED: Final = 1e-12
"""Below this weight an average has forgotten all it saw and reads 0."""
BOUND: Final = 256.0
"""What most scaled columns are clipped to."""
NO_NAME: Final = -1.0
"""What `SESSION` and `PROMPT_HEAD` say of a request that has none."""
ENGINE: Final = True
"""Marks the signals that the engines report: they age with `signal_interval_s`."""


class Signal(IntEnum):
    """Columns of a row, in order. "Router" is what the column holds with `information="router"`.

    With `information="metrics"` the engines tell `WAITING`, `RUNNING`, `KV_USAGE`, `HIT_RATE` and
    `BATCH_TIME_S` (vLLM's time between tokens); all else is as with `router`. Each of several
    gateways has rows of its own: what a router counts is what it sent itself, and arrivals,
    completions and decisions are its own.

    Attributes:
        scale: what a policy's column is multiplied by; a power of two, so that a whole number
            below the bound survives exactly.
        high: what it is clipped to then; the low bound is 0.
        ages: whether the engines report it, so that it refreshes every `signal_interval_s`.
    """

    scale: float
    high: float
    ages: bool

    def __new__(cls, column: int, scale: float, high: float, ages: bool = False) -> Self:
        """Makes a member that counts as its column."""
        member = int.__new__(cls, column)
        member._value_ = column
        member.scale, member.high, member.ages = scale, high, ages
        return member

    WAITING = 0, 1 / 32, BOUND, ENGINE
    """Requests in the waiting queue, restarted ones included. Router: those without first token."""
    RUNNING = 1, 1 / 32, BOUND, ENGINE
    """Requests that hold KV blocks. Router: those past their first token."""
    KV_USAGE = 2, 1.0, 1.0, ENGINE
    """Share of KV blocks in use, 0 to 1. Router: 0."""
    PENDING_PROMPT_TOKENS = 3, 1 / 8192, BOUND, ENGINE
    """Prompt tokens not yet prefilled. Router: prompts of requests without first token."""
    CONTEXT_TOKENS = 4, 1 / 32768, BOUND, ENGINE
    """Tokens in KV. Router: prompts of requests past their first token."""
    OLDEST_WAITING_S = 5, 1 / 8, BOUND, ENGINE
    """Seconds since the oldest waiting request arrived. Router: the oldest without first token."""
    BATCH_TIME_S = 6, 8.0, BOUND, ENGINE
    """Exponential average of batch times, seconds. Router: 0."""
    TTFT_S = 7, 1 / 2, BOUND, ENGINE
    """Exponential average of times to first token, seconds."""
    SPEED = 8, 1.0, BOUND
    """The replica's speed factor; 1 with `speed_hidden`."""
    AVAILABLE = 9, 1.0, 1.0
    """1 if the replica takes requests now."""
    PROMPT_TOKENS = 10, 1 / 2048, BOUND
    """Prompt tokens of the request to route, the same in all rows."""
    PREDICTED_OUTPUT_TOKENS = 11, 1 / 512, BOUND
    """A guess of its output tokens, 0 if there is none, the same in all rows."""
    CACHED_PREFIX = 12, 1.0, 1.0
    """Share of its prompt in the replica's prefix cache, as `prefix_view` has it, 0 to 1."""
    ARRIVAL_RATE = 13, 1.0, BOUND
    """Arrivals at the cluster, requests per second and replica, the same in all rows."""
    COMPLETION_RATE = 14, 1.0, BOUND
    """Completions of the cluster, requests per second and replica, the same in all rows."""
    E2E_S = 15, 1 / 16, BOUND
    """Exponential average of end-to-end latency, seconds, the same in all rows."""
    SINCE_LAST_ARRIVAL_S = 16, 1.0, BOUND
    """Seconds since the previous arrival, the same in all rows."""
    REMAINING_TOKENS = 17, 1 / 32768, BOUND
    """True tokens still to process, prompt and output. Only with `information="oracle"`."""
    ROUNDS_SINCE_CHOSEN = 18, 1 / 2, BOUND
    """Decisions since the replica was last chosen, divided by the number of replicas.

    The memory that round robin needs: it chooses the largest. Starts as if the replicas had just
    been chosen in order of their index.
    """
    FITS = 19, 1.0, 1.0
    """1 if the replica could ever hold the request to route."""
    NOW_S = 20, 1.0, 0.0
    """Time of the decision, seconds, the same in all rows. For rules only, as the next two."""
    SESSION = 21, 1.0, 0.0
    """Number of the request's conversation, -1 if it has none, the same in all rows."""
    PROMPT_HEAD = 22, 1.0, 0.0
    """Names the first 256 tokens of its prompt, -1 if no one knows them, the same in all rows."""
    IN_FLIGHT = 23, 1 / 32, BOUND
    """Requests that the router sent to the replica and that have not ended, by its own count."""
    UNCACHED_TOKENS = 24, 1 / 8192, BOUND
    """Prompt tokens of those without first token that it took to be uncached when it sent them."""
    UNCACHED_PAIRS = 25, 2.0**-24, BOUND
    """Sum over the same of u (p - u / 2): u uncached ones of p prompt tokens, squared tokens."""
    VIEW_TOKENS = 26, 2.0**-19, BOUND
    """Tokens of all blocks in the router's own tree of the replica; 0 with any other view."""
    HIT_RATE = 27, 1.0, 1.0, ENGINE
    """Share of all admitted prompts' tokens that the replica found in its prefix cache, 0 to 1.

    Each request counts at its first admission. Router: 0.
    """


N_SIGNALS = len(Signal)
AGING = tuple(signal for signal in Signal if signal.ages)
"""The signals that the engines report, in the order in which they do."""
PUBLISHED = (
    Signal.WAITING,
    Signal.RUNNING,
    Signal.KV_USAGE,
    Signal.BATCH_TIME_S,
    Signal.HIT_RATE,
)
"""Those of them that a gateway can read from the engines' metrics, in order of `Signal`."""
OF_PREFIXES = (
    Signal.CACHED_PREFIX,
    Signal.UNCACHED_TOKENS,
    Signal.UNCACHED_PAIRS,
    Signal.VIEW_TOKENS,
)
"""What depends on what is known of prefixes, and where they are looked up."""
IDENTITIES = (Signal.NOW_S, Signal.SESSION, Signal.PROMPT_HEAD)
"""Signals that rules may read and no policy: they are names and times, no quantities."""
SIGNAL_NAMES = tuple(signal.name.lower() for signal in Signal)
"""What the columns are called in settings, checkpoints and demonstrations."""
VERSION_1 = SIGNAL_NAMES[: Signal.ROUNDS_SINCE_CHOSEN + 1]
"""The nineteen columns of a policy's observation unless the settings name others."""
