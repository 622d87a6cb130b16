"""Batch times that are piecewise linear throughout, for large budgets and long contexts."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import number, positive
from llmroute_gym.sim.batch_time import BatchSums, BatchTimeModel
from llmroute_gym.sim.interpolation import (
    bilinear,
    check_grid,
    check_knots,
    check_line,
    keep_arrays,
)


@dataclass(frozen=True, eq=False)
class PiecewiseBatchTime(BatchTimeModel):
    """Lines between knots, in seconds, for batches of any size and prompts with any prefix.

    t = time_factor (linear(N) + decode(b, m) + chunk p + prefill(r) + pair(r) x), with N all
    tokens in the batch, b its decodes, m their mean context, p its prefill chunks, r the square
    root of the sum of their squares and x the sum of chunk times context. `decode` is absent with
    b = 0, the last three terms with p = 0.

    Each function is linear between its knots and continues its last segment, `decode` bilinearly.
    At fixed b the time is piecewise linear in m with knots at `decode_context`, which the compiled
    engine relies on.

    Attributes:
        linear_tokens: (n_steps,) tokens in the batch, ascending, first 1.
        linear_s: (n_steps,) seconds, > 0.
        decode_batch: (n_b,) decoding requests at the grid's rows, ascending, first 1.
        decode_context: (n_m,) mean context in tokens at the grid's columns, ascending, first 0.
        decode_s: (n_b, n_m) seconds.
        prefill_root: (n_r,) sqrt(sum of squared chunks), ascending, first 0.
        prefill_s: (n_r,) seconds of chunks without context.
        prefill_pair_s: (n_r,) seconds per pair of a chunk's token and one of its context.
        chunk_s: seconds per chunk.
        time_factor: on all of it, > 0.

    Raises:
        InputError: an array has the wrong shape, is not ascending, holds a negative or
            non-finite number, or would become negative where it is continued; or a number is
            negative or not finite, or the factor 0.
    """

    linear_tokens: FloatArray
    linear_s: FloatArray
    decode_batch: FloatArray
    decode_context: FloatArray
    decode_s: FloatArray
    prefill_root: FloatArray
    prefill_s: FloatArray
    prefill_pair_s: FloatArray
    chunk_s: float = 0.0
    time_factor: float = 1.0

    def __post_init__(self) -> None:
        keep_arrays(self, _ARRAYS)
        object.__setattr__(self, "chunk_s", number("chunk_s", self.chunk_s, at_least=0))
        object.__setattr__(self, "time_factor", positive("time_factor", self.time_factor))
        if not (self.linear_s > 0).all():
            raise InputError("linear_s must be > 0 everywhere: a batch must take time")
        check_knots("linear_tokens", self.linear_tokens, 2, 1.0)
        check_line("linear_s", "linear_tokens", self.linear_tokens, self.linear_s)
        check_grid("decode", "batch", self.decode_batch, self.decode_context, self.decode_s, 1.0)
        check_knots("prefill_root", self.prefill_root, 2, 0.0)
        check_line("prefill_s", "prefill_root", self.prefill_root, self.prefill_s)
        check_line("prefill_pair_s", "prefill_root", self.prefill_root, self.prefill_pair_s)

    @cached_property
    def _rows(self) -> tuple[list[float], ...]:
        """Knots and lines as lists, which scalar code reads several times faster than arrays."""
        return (
            self.linear_tokens.tolist(),
            self.linear_s.tolist(),
            self.decode_batch.tolist(),
            self.decode_context.tolist(),
            self.prefill_root.tolist(),
            self.prefill_s.tolist(),
            self.prefill_pair_s.tolist(),
        )

    @cached_property
    def _grid(self) -> list[list[float]]:
        grid: list[list[float]] = self.decode_s.tolist()
        return grid

    def seconds(self, batch: BatchSums) -> float:
        """Returns the batch time in seconds."""
        tokens, linear_s, decode_batch, decode_context, root, prefill_s, pair_s = self._rows
        i, share = _place(tokens, batch.tokens)
        total = _between(linear_s, i, share)
        if batch.decodes:
            mean_context = batch.decode_context / batch.decodes
            total += bilinear(decode_batch, decode_context, self._grid, batch.decodes, mean_context)
        if batch.prefills:
            i, share = _place(root, math.sqrt(batch.chunk_squares))
            total += self.chunk_s * batch.prefills + _between(prefill_s, i, share)
            total += _between(pair_s, i, share) * batch.chunk_context
        return total * self.time_factor


def _place(knots: Sequence[float], x: float) -> tuple[int, float]:
    """Returns the segment that x lies in, and how far in it; the last one goes on."""
    i = min(bisect_right(knots, x), len(knots) - 1) - 1
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


def _between(values: Sequence[float], i: int, share: float) -> float:
    return values[i] + share * (values[i + 1] - values[i])


_ARRAYS = tuple(field.name for field in fields(PiecewiseBatchTime) if field.type is FloatArray)
