"""Batch times inside the kernels: what the models of `sim` compute in their `seconds`."""

import math

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.batch_time import CONTEXT_BUCKET, GQA_BATCHING_PENALTY
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import assume, inlined, kernel


@inlined
def context_bucket(contexts: int, requests: int) -> int:
    """Returns ceil(floor(contexts / requests) / 64).

    Dividing floats is faster and exact here: the quotient is never within rounding of a whole
    number that it does not reach.
    """
    return (int(contexts / requests) + CONTEXT_BUCKET - 1) // CONTEXT_BUCKET


@inlined
def segment_of(ints: IntArray, floats: FloatArray, axis: int, x: float) -> int:
    """Returns the segment of an axis that x >= 0 lies in; the outermost ones go on.

    Args:
        ints: memory.
        floats: the same memory.
        axis: word of an axis, see `layout`.
        x: a coordinate.
    """
    assume(axis >= 0)
    cells = ints[axis + at.CELLS]
    assume(cells >= 1)
    assume(x >= 0.0)
    j = ints[axis + at.FIRST_CELL + min(int(x) // at.CELL_WIDTH, cells - 1)]
    knots = axis + at.FIRST_CELL + cells
    last = ints[axis + at.KNOTS] - 2
    while j < last and floats[knots + j + 1] <= x:
        j += 1
    return j


@inlined
def knots_of(ints: IntArray, axis: int) -> int:
    """Returns the word of an axis's first knot."""
    return axis + at.FIRST_CELL + ints[axis + at.CELLS]


@inlined
def decode_seconds(
    model: int, decodes: int, contexts: int, ints: IntArray, floats: FloatArray
) -> float:
    """Returns the decode attention's seconds, 0 without decodes."""
    assume(model >= 0)
    seconds = 0.0
    if decodes > 0:
        kind = ints[model + at.KIND]
        columns = ints[model + at.DECODE_COLUMNS]
        row = ints[model + at.DECODE] + (decodes - 1) * columns
        assume(row >= 0)
        assume(contexts >= 0)
        if kind == at.TABLE:
            seconds = floats[row + context_bucket(contexts, decodes)]
        elif kind == at.FORMULA:
            seconds = floats[ints[model + at.DECODE]] * contexts
        else:
            mean = contexts / decodes
            axis = ints[model + at.DECODE_AXIS]
            j = segment_of(ints, floats, axis, mean)
            line = row + 2 * j
            seconds = floats[line] + floats[line + 1] * (mean - floats[knots_of(ints, axis) + j])
    return seconds


@inlined
def equal_steps(
    model: int, decodes: int, contexts: int, most: int, ints: IntArray, floats: FloatArray
) -> tuple[int, float, float]:
    """Describes the next decode batches of the same members, before slowdown and speed.

    Args:
        model: its word.
        decodes: at least 1.
        contexts: the sum of their contexts in the first of the batches.
        most: how many batches are wanted, at least 1.
        ints: memory.
        floats: the same memory.

    Returns:
        How many batches (1 to `most`) take first, first + slope, first + 2 slope, ... seconds;
        first; slope.
    """
    kind = ints[model + at.KIND]
    dense = ints[model + at.DENSE]
    start = ints[model + at.DECODE]
    assume(dense >= 0)
    assume(start >= 0)
    assume(decodes >= 1)
    assume(contexts >= 0)
    base = floats[dense + decodes]
    columns = ints[model + at.DECODE_COLUMNS]
    count = most
    slope = 0.0
    if kind == at.TABLE:
        bucket = context_bucket(contexts, decodes)
        first = base + floats[start + (decodes - 1) * columns + bucket]
        count = min(most, CONTEXT_BUCKET * bucket - int(contexts / decodes) + 1)
    elif kind == at.FORMULA:
        first = base + floats[start] * contexts
        slope = floats[start] * decodes
    else:
        mean = contexts / decodes
        axis = ints[model + at.DECODE_AXIS]
        segment = segment_of(ints, floats, axis, mean)
        knots = knots_of(ints, axis)
        line = start + (decodes - 1) * columns + 2 * segment
        slope = floats[line + 1]
        first = base + floats[line] + slope * (mean - floats[knots + segment])
        if 2 * segment < columns - 2:
            count = min(most, int(floats[knots + segment + 1] - mean) + 1)
    return count, first, slope


@inlined
def steps_seconds(
    model: int, decodes: int, contexts: int, steps: int, ints: IntArray, floats: FloatArray
) -> float:
    """Returns the seconds of decode batches of the same members, before slowdown and speed."""
    assume(model >= 0)
    total = 0.0
    while steps > 0:
        count, first, slope = equal_steps(model, decodes, contexts, steps, ints, floats)
        total += count * first + slope * (count * (count - 1) * 0.5)
        contexts += decodes * count
        steps -= count
    return total


@kernel
def _along(floats: FloatArray, row: int, columns: int, column: int) -> float:
    if column < columns:
        return floats[row + column]
    last = floats[row + columns - 1]
    return last + (last - floats[row + columns - 2]) * (column - columns + 1)


@inlined
def _table_prefill(
    model: int, chunk_squares: int, buckets: int, ints: IntArray, floats: FloatArray
) -> float:
    assume(model >= 0)
    start = ints[model + at.PREFILL]
    rows = ints[model + at.PREFILL_ROWS]
    columns = ints[model + at.PREFILL_COLUMNS]
    column = int(np.rint(math.sqrt(chunk_squares))) - 1
    assume(start >= 0)
    assume(buckets >= 0)
    if buckets < rows and column < columns:
        seconds = floats[start + buckets * columns + column]
    elif buckets < rows:
        seconds = _along(floats, start + buckets * columns, columns, column)
    else:
        last = _along(floats, start + (rows - 1) * columns, columns, column)
        before = _along(floats, start + (rows - 2) * columns, columns, column)
        seconds = last + (last - before) * (buckets - rows + 1)
    return seconds


@inlined
def _profile_prefill(
    model: int, chunk_squares: int, buckets: int, ints: IntArray, floats: FloatArray
) -> float:
    assume(model >= 0)
    root = math.sqrt(chunk_squares)
    axis = ints[model + at.ROOT_AXIS]
    j = segment_of(ints, floats, axis, root)
    beyond = root - floats[knots_of(ints, axis) + j]
    columns = ints[model + at.PREFILL_COLUMNS]
    row = min(buckets, ints[model + at.PREFILL_ROWS] - 1)
    line = ints[model + at.PREFILL] + row * columns + 2 * j
    assume(line >= 0)
    seconds = floats[line] + floats[line + 1] * beyond
    if row < buckets:
        before = line - columns
        assume(before >= 0)
        seconds += (seconds - floats[before] - floats[before + 1] * beyond) * (buckets - row)
    return seconds


@kernel
def _piecewise_prefill(
    model: int,
    prefills: int,
    chunk_squares: int,
    chunk_context: int,
    ints: IntArray,
    floats: FloatArray,
) -> float:
    assume(model >= 0)
    root = math.sqrt(chunk_squares)
    axis = ints[model + at.ROOT_AXIS]
    j = segment_of(ints, floats, axis, root)
    start = ints[model + at.PREFILL]
    line = start + 1 + at.PIECE_WORDS * j
    assume(start >= 0)
    assume(line >= 0)
    beyond = root - floats[knots_of(ints, axis) + j]
    plain = floats[line] + floats[line + 1] * beyond
    per_pair = floats[line + 2] + floats[line + 3] * beyond
    return floats[start] * prefills + plain + per_pair * chunk_context


@inlined
def prefill_seconds(
    model: int,
    prefills: int,
    chunk_squares: int,
    chunk_context: int,
    buckets: int,
    ints: IntArray,
    floats: FloatArray,
) -> float:
    """Returns the prefill attention's seconds of at least one chunk."""
    assume(model >= 0)
    kind = ints[model + at.KIND]
    if kind == at.FORMULA:
        part = floats[ints[model + at.PREFILL]] * (chunk_context + 0.5 * chunk_squares)
    elif kind == at.PIECEWISE:
        part = _piecewise_prefill(model, prefills, chunk_squares, chunk_context, ints, floats)
    elif kind == at.TABLE:
        part = _table_prefill(model, chunk_squares, buckets, ints, floats)
    else:
        part = _profile_prefill(model, chunk_squares, buckets, ints, floats)
    if prefills > 1 and ints[model + at.GQA] == 1:  # never of a formula
        part *= GQA_BATCHING_PENALTY
    return part
