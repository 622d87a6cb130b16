"""From a router's rows to a policy's observation: scaled, bounded, float32.

| column | unit | scale | bound |
|---|---|---|---|
| waiting | requests | 1/32 | 256 |
| running | requests | 1/32 | 256 |
| kv_usage | share | 1 | 1 |
| pending_prompt_tokens | tokens | 1/8192 | 256 |
| context_tokens | tokens | 1/32768 | 256 |
| oldest_waiting_s | s | 1/8 | 256 |
| batch_time_s | s | 8 | 256 |
| ttft_s | s | 1/2 | 256 |
| speed | factor | 1 | 256 |
| available | 0 or 1 | 1 | 1 |
| prompt_tokens | tokens | 1/2048 | 256 |
| predicted_output_tokens | tokens | 1/512 | 256 |
| cached_prefix | share | 1 | 1 |
| arrival_rate | requests/s and replica | 1 | 256 |
| completion_rate | requests/s and replica | 1 | 256 |
| e2e_s | s | 1/16 | 256 |
| since_last_arrival_s | s | 1 | 256 |
| remaining_tokens | tokens | 1/32768 | 256 |
| rounds_since_chosen | decisions / replicas | 1/2 | 256 |

All scales are powers of two, so that a whole number below the bound survives exactly.
"""

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from llmroute_gym.ground.signals import N_SIGNALS, Signal

COLUMNS = tuple(signal.name.lower() for signal in Signal)
"""Names of the observation's columns, in order; a checkpoint carries them."""

_BOUND = 256.0
_SCALE = {
    Signal.WAITING: 1 / 32,
    Signal.RUNNING: 1 / 32,
    Signal.KV_USAGE: 1.0,
    Signal.PENDING_PROMPT_TOKENS: 1 / 8192,
    Signal.CONTEXT_TOKENS: 1 / 32768,
    Signal.OLDEST_WAITING_S: 1 / 8,
    Signal.BATCH_TIME_S: 8.0,
    Signal.TTFT_S: 1 / 2,
    Signal.SPEED: 1.0,
    Signal.AVAILABLE: 1.0,
    Signal.PROMPT_TOKENS: 1 / 2048,
    Signal.PREDICTED_OUTPUT_TOKENS: 1 / 512,
    Signal.CACHED_PREFIX: 1.0,
    Signal.ARRIVAL_RATE: 1.0,
    Signal.COMPLETION_RATE: 1.0,
    Signal.E2E_S: 1 / 16,
    Signal.SINCE_LAST_ARRIVAL_S: 1.0,
    Signal.REMAINING_TOKENS: 1 / 32768,
    Signal.ROUNDS_SINCE_CHOSEN: 1 / 2,
}
_SHARES = (Signal.KV_USAGE, Signal.AVAILABLE, Signal.CACHED_PREFIX)

SCALE = np.array([_SCALE[signal] for signal in Signal])
"""(N_SIGNALS,) what a column is multiplied by."""
HIGH = np.array([1.0 if signal in _SHARES else _BOUND for signal in Signal])
"""(N_SIGNALS,) what a scaled column is clipped to; the low bound is 0."""


def scale_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Turns rows in physical units into an observation.

    Args:
        rows: (..., n_replicas, N_SIGNALS).

    Returns:
        The same shape, float32, within [0, HIGH].
    """
    scaled: npt.NDArray[np.float64] = np.clip(rows * SCALE, 0.0, HIGH)
    return scaled.astype(np.float32)


def observation_space(n_replicas: int) -> spaces.Box:
    """Returns the space of one observation, shape (n_replicas, N_SIGNALS)."""
    shape = (n_replicas, N_SIGNALS)
    high = np.broadcast_to(HIGH, shape).astype(np.float32)
    return spaces.Box(np.zeros(shape, dtype=np.float32), high, dtype=np.float32)
