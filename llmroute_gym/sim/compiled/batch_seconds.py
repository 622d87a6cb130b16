"""Batch times inside the kernels: what `sim/batch_time.py` and `sim/profile_time.py` compute."""

import math

import numpy as np
from numba import njit

from llmroute_gym.sim.batch_time import CONTEXT_BUCKET, GQA_BATCHING_PENALTY
from llmroute_gym.sim.compiled import layout as at


@njit(cache=True, inline="always")
def segment_of(table, knots, count, x):
    """Returns the segment of ascending knots that x lies in; the outermost ones go on."""
    j = 0
    while j < count - 2 and table[knots + j + 1] <= x:
        j += 1
    return j


@njit(cache=True)
def decode_seconds(model, decodes, context_sum, model_int, table):
    """Returns the decode attention's seconds, 0 without decodes."""
    if decodes == 0:
        return 0.0
    kind = model_int[model, at.KIND]
    if kind == at.FORMULA:
        return table[model_int[model, at.DECODE]] * context_sum
    columns = model_int[model, at.DECODE_COLUMNS]
    row = model_int[model, at.DECODE] + (decodes - 1) * columns
    if kind == at.TABLE:
        return table[row - (-(context_sum // decodes) // CONTEXT_BUCKET)]
    mean = context_sum / decodes
    knots = model_int[model, at.DECODE_KNOTS]
    j = segment_of(table, knots, columns, mean)
    low, high = table[knots + j], table[knots + j + 1]
    u = (mean - low) / (high - low)
    return (1.0 - u) * table[row + j] + u * table[row + j + 1]


@njit(cache=True)
def _along(table, row, columns, column):
    if column < columns:
        return table[row + column]
    last = table[row + columns - 1]
    return last + (last - table[row + columns - 2]) * (column - columns + 1)


@njit(cache=True)
def _table_prefill(model, chunk_squares, buckets, model_int, table):
    start = model_int[model, at.PREFILL]
    rows = model_int[model, at.PREFILL_ROWS]
    columns = model_int[model, at.PREFILL_COLUMNS]
    column = int(np.rint(math.sqrt(chunk_squares))) - 1
    if buckets < rows:
        return _along(table, start + buckets * columns, columns, column)
    last = _along(table, start + (rows - 1) * columns, columns, column)
    before = _along(table, start + (rows - 2) * columns, columns, column)
    return last + (last - before) * (buckets - rows + 1)


@njit(cache=True)
def _profile_prefill(model, chunk_squares, buckets, model_int, table):
    start = model_int[model, at.PREFILL]
    rows = model_int[model, at.PREFILL_ROWS]
    columns = model_int[model, at.PREFILL_COLUMNS]
    row_knots = model_int[model, at.PREFILL_KNOTS]
    column_knots = row_knots + rows
    y, x = math.sqrt(chunk_squares), float(buckets)
    i = segment_of(table, row_knots, rows, y)
    j = segment_of(table, column_knots, columns, x)
    v = (y - table[row_knots + i]) / (table[row_knots + i + 1] - table[row_knots + i])
    u = (x - table[column_knots + j]) / (table[column_knots + j + 1] - table[column_knots + j])
    low = start + i * columns + j
    high = low + columns
    return (1.0 - v) * ((1.0 - u) * table[low] + u * table[low + 1]) + v * (
        (1.0 - u) * table[high] + u * table[high + 1]
    )


@njit(cache=True)
def prefill_seconds(model, prefills, chunk_squares, chunk_context, buckets, model_int, table):
    """Returns the prefill attention's seconds, 0 without prefills."""
    if prefills == 0:
        return 0.0
    kind = model_int[model, at.KIND]
    if kind == at.FORMULA:
        return table[model_int[model, at.PREFILL]] * (chunk_context + 0.5 * chunk_squares)
    if kind == at.TABLE:
        part = _table_prefill(model, chunk_squares, buckets, model_int, table)
    else:
        part = _profile_prefill(model, chunk_squares, buckets, model_int, table)
    if prefills > 1 and model_int[model, at.GQA]:
        part *= GQA_BATCHING_PENALTY
    return part
