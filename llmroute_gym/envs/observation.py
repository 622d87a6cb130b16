"""From a router's rows to a policy's observation: columns chosen by name, scaled, bounded, float32.

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
| fits | 0 or 1 | 1 | 1 |
| in_flight | requests | 1/32 | 256 |
| uncached_tokens | tokens | 1/8192 | 256 |
| uncached_pairs | squared tokens | 2^-24 | 256 |
| view_tokens | tokens | 2^-19 | 256 |
| hit_rate | share | 1 | 1 |

The last six only where they are named. `now_s`, `session` and `prompt_head` are no columns: they
are for rules.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import N_SIGNALS, SIGNAL_NAMES, VERSION_1, Signal

SCALE = np.array([signal.scale for signal in Signal])
"""(N_SIGNALS,) what a column is multiplied by."""
HIGH = np.array([signal.high for signal in Signal])
"""(N_SIGNALS,) what a scaled column is clipped to; the low bound is 0."""
COLUMNS = VERSION_1
"""Names of an observation's columns, in order, unless the settings name others."""


class Columns:
    """The columns that a policy reads, by name and in order.

    Args:
        names: of signals, as `ObservationConfig.columns` has them.

    Attributes:
        names: the same.
        signals: (n_columns,) int64, where they stand in a row.
    """

    def __init__(self, names: Sequence[str] = VERSION_1) -> None:
        self.names = tuple(names)
        self.signals = np.array([SIGNAL_NAMES.index(name) for name in names], dtype=np.int64)
        self._scale, self._high = SCALE[self.signals], HIGH[self.signals]

    def __len__(self) -> int:
        """Returns how many they are."""
        return len(self.names)

    def position(self, signal: Signal) -> int | None:
        """Returns which column holds a signal, None if none does."""
        name = SIGNAL_NAMES[signal]
        return self.names.index(name) if name in self.names else None

    def scaled(self, rows: FloatArray) -> npt.NDArray[np.float32]:
        """Turns rows in physical units into an observation.

        Args:
            rows: (..., n_replicas, N_SIGNALS).

        Returns:
            (..., n_replicas, n_columns), float32, within [0, HIGH].
        """
        scaled: FloatArray = np.clip(rows[..., self.signals] * self._scale, 0.0, self._high)
        return scaled.astype(np.float32)

    def unscaled(self, observations: npt.NDArray[np.floating]) -> FloatArray:
        """Turns observations (..., n_columns) back into rows (..., N_SIGNALS), 0 elsewhere.

        Who does not see what is in flight sees those that wait and that run.
        """
        rows = np.zeros((*observations.shape[:-1], N_SIGNALS))
        rows[..., self.signals] = observations.astype(np.float64) / self._scale
        if self.position(Signal.IN_FLIGHT) is None:
            rows[..., Signal.IN_FLIGHT] = rows[..., Signal.WAITING] + rows[..., Signal.RUNNING]
        return rows

    def space(self, n_replicas: int) -> spaces.Box:
        """Returns the space of one observation, shape (n_replicas, n_columns)."""
        shape = (n_replicas, len(self))
        high = np.broadcast_to(self._high, shape).astype(np.float32)
        return spaces.Box(np.zeros(shape, dtype=np.float32), high, dtype=np.float32)


def scale_rows(rows: FloatArray, columns: Sequence[str] = COLUMNS) -> npt.NDArray[np.float32]:
    """Turns rows in physical units into an observation, see `Columns.scaled`."""
    return Columns(columns).scaled(rows)


def with_states(
    observation: npt.NDArray[np.float32], columns: Columns, available: BoolArray, fits: BoolArray
) -> None:
    """Writes what replicas are not said to be by the kernels into an observation.

    Args:
        observation: (n_replicas, n_columns), changed.
        columns: its columns.
        available: (n_replicas,) which take requests.
        fits: (n_replicas,) which could hold the request at hand.
    """
    for signal, states in ((Signal.AVAILABLE, available), (Signal.FITS, fits)):
        position = columns.position(signal)
        if position is not None:
            observation[:, position] = states
