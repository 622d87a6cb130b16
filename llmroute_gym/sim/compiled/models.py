"""Batch-time models as flat tables for the kernels."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.batch_time import (
    CONTEXT_BUCKET,
    GQA_BATCHING_PENALTY,
    BatchSums,
    BatchTimeModel,
    FormulaBatchTime,
    TableBatchTime,
)
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.least import least_of_piecewise, least_of_profile, least_of_table
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import ProfileBatchTime

_Grid = TableBatchTime | ProfileBatchTime | PiecewiseBatchTime


class FlatModels:
    """All models of a cluster as words: their rows, then their tables.

    Args:
        models: batch-time models; equal objects share their rows.
        first_word: where the first row will stand.
        max_tokens: most tokens that one batch may hold.
        max_context: longest context of a request, in tokens.
        max_batch: most requests in one batch.

    Attributes:
        words: (n,) int64; the tables are floats seen as int64.
        word_of: the row of each model given.

    Raises:
        InputError: a model is of a kind that the kernels do not know.
    """

    def __init__(
        self,
        models: Sequence[BatchTimeModel],
        first_word: int,
        max_tokens: int,
        max_context: int,
        max_batch: int,
    ) -> None:
        distinct = list({id(model): model for model in models}.values())
        position = {id(model): index for index, model in enumerate(distinct)}
        both = 2 * at.MODEL_WORDS  # the rows of a model and of its least
        self.word_of = [first_word + position[id(model)] * both for model in models]
        self._parts: list[FloatArray] = []
        self._next_word = first_word + len(distinct) * both
        rows = []
        for index, one in enumerate(distinct):
            row, least = self._flatten(one, max_tokens, max_context, max_batch)
            row[at.LEAST] = first_word + index * both + at.MODEL_WORDS
            rows += [row, least]
        tables = np.concatenate(self._parts).view(np.int64)
        self.words: IntArray = np.concatenate([*rows, tables])

    def _add(self, values: npt.ArrayLike) -> int:
        array = np.ascontiguousarray(values, dtype=np.float64).ravel()
        word = self._next_word
        self._parts.append(array)
        self._next_word += len(array)
        return word

    def _flatten(
        self, model: BatchTimeModel, max_tokens: int, max_context: int, max_batch: int
    ) -> tuple[IntArray, IntArray]:
        """Returns the rows of a model and of its least, see `LEAST` in `layout`."""
        if not isinstance(model, _Grid | FormulaBatchTime):
            raise InputError(
                f"the compiled engine knows table, profile and formula batch times, not "
                f"{type(model).__name__}; use engine='reference'"
            )
        row = np.zeros(at.MODEL_WORDS, dtype=np.int64)
        dense = _dense_seconds(model, max(max_tokens, max_batch))
        # Indexed by tokens, from 1.
        row[at.DENSE] = self._add(dense[:max_tokens]) - 1
        row[at.DENSE_LEAST] = self._add(_least_from(dense)) - 1
        if isinstance(model, FormulaBatchTime):
            self._add_formula(row, model)
            return row, row.copy()
        # In powers of two, so that grids are made once for many workloads.
        reach = 1 << (max(max_context, _USUAL_REACH) - 1).bit_length()
        self._add_prefill(row, model, reach)
        decode, bounds = _decode_grids(model, reach, max_batch, dense)
        row[at.DECODE] = self._add(decode)
        row[at.DECODE_COLUMNS] = decode.shape[1]
        least = row.copy()
        # The grid holds whole batch times here.
        least[at.DENSE] = self._add(np.zeros(max_batch)) - 1
        least[at.DECODE] = self._add(bounds)
        return row, least

    def _add_prefill(self, row: IntArray, model: _Grid, reach: int) -> None:
        if isinstance(model, PiecewiseBatchTime):
            row[at.KIND] = at.PIECEWISE
            row[at.DECODE_AXIS] = self._add(axis(model.decode_context))
            row[at.ROOT_AXIS] = self._add(axis(model.prefill_root))
            both = np.stack([model.prefill_s, model.prefill_pair_s]) * model.time_factor
            pieces = lines(model.prefill_root, both).reshape(2, -1, 2).swapaxes(0, 1).ravel()
            row[at.PREFILL] = self._add(np.append(model.chunk_s * model.time_factor, pieces))
            return
        row[at.GQA] = model.gqa
        if isinstance(model, ProfileBatchTime):
            row[at.KIND] = at.PROFILE
            row[at.DECODE_AXIS] = self._add(axis(model.decode_context))
            row[at.ROOT_AXIS] = self._add(axis(model.prefill_root))
            last = max(reach // CONTEXT_BUCKET, int(np.ceil(model.prefill_context[-1])) + 1)
            buckets = np.arange(last + 1)  # linear between the last two
            at_buckets = _continued(buckets, model.prefill_context, model.prefill_s).T
            prefill = lines(model.prefill_root, at_buckets)
        else:
            row[at.KIND] = at.TABLE
            prefill = model.prefill_s
        row[at.PREFILL] = self._add(prefill)
        row[at.PREFILL_ROWS], row[at.PREFILL_COLUMNS] = prefill.shape

    def _add_formula(self, row: IntArray, model: FormulaBatchTime) -> None:
        row[at.KIND] = at.FORMULA
        row[at.DECODE] = self._add([model.c2])
        row[at.PREFILL] = self._add([model.c3])


_USUAL_REACH = 4096
_Grids = dict[tuple[int, int], tuple[FloatArray, FloatArray]]
_DENSE: WeakKeyDictionary[BatchTimeModel, FloatArray] = WeakKeyDictionary()
_GRIDS: WeakKeyDictionary[BatchTimeModel, _Grids] = WeakKeyDictionary()


def _dense_seconds(model: BatchTimeModel, max_tokens: int) -> FloatArray:
    """Returns the seconds outside attention of 1 to `max_tokens` tokens; remembers them."""
    known = _DENSE.get(model)
    if known is None or len(known) < max_tokens:
        tokens = np.arange(1, max_tokens + 1)
        if isinstance(model, PiecewiseBatchTime):
            [known] = _continued(tokens, model.linear_tokens, model.linear_s[None])
            known = known * model.time_factor
        else:
            sums = (BatchSums(0, 0, 0, n, 0, 0, 0) for n in tokens.tolist())
            known = np.array([model.seconds(one) for one in sums])
        _DENSE[model] = known
    return known[:max_tokens]


def _decode_grids(
    model: _Grid, reach: int, max_batch: int, dense: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns decode attention's seconds by (decodes, context), and the bounds; remembers them.

    Args:
        model: the batch times.
        reach: longest mean context, tokens.
        max_batch: most decodes.
        dense: (n_tokens,) seconds outside attention.
    """
    known = _GRIDS.setdefault(model, {})
    if (reach, max_batch) not in known:
        cheapest = _least_from(dense)[:max_batch]
        if isinstance(model, TableBatchTime):
            columns = max(reach // CONTEXT_BUCKET + 1, model.decode_s.shape[1])
            decode = extended(extended(model.decode_s, 1, columns), 0, max_batch)[:max_batch]
            decode = decode * batching(model.gqa, max_batch)[:, None]
            bounds = least_of_table(decode, cheapest)
        elif isinstance(model, PiecewiseBatchTime):
            knots, batches = model.decode_context, np.arange(1, max_batch + 1)
            decode = _continued(batches, model.decode_batch, model.decode_s.T).T * model.time_factor
            bounds = least_of_piecewise(decode, knots, dense[:max_batch], cheapest, reach)
            decode, bounds = lines(knots, decode), lines(knots, bounds)
        else:
            knots, sizes = model.decode_context, range(1, max_batch + 1)
            decode = np.array([[_part(model, b, context) for context in knots] for b in sizes])
            bounds = least_of_profile(decode, knots, dense[:max_batch], cheapest, reach)
            decode, bounds = lines(knots, decode), lines(knots, bounds)
        known[reach, max_batch] = decode, bounds
    return known[reach, max_batch]


def _least_from(dense: FloatArray) -> FloatArray:
    """Returns the least of `dense` from each index on."""
    return np.minimum.accumulate(dense[::-1])[::-1]


def extended(table: FloatArray, axis: int, length: int) -> FloatArray:
    """Continues the last segment of a table linearly along an axis, up to `length`."""
    missing = length - table.shape[axis]
    if missing <= 0:
        return table
    last = np.take(table, [-1], axis)
    slope = last - np.take(table, [-2], axis)
    steps = np.arange(1, missing + 1).reshape([-1 if a == axis else 1 for a in (0, 1)])
    return np.concatenate([table, last + slope * steps], axis)


def lines(knots: FloatArray, values: FloatArray) -> FloatArray:
    """Returns the lines between knots, see `layout`.

    Args:
        knots: (n,) ascending.
        values: (n_rows, n) seconds at the knots.

    Returns:
        (n_rows, 2 (n - 1)).
    """
    slopes = np.diff(values, axis=1) / np.diff(knots)
    return np.stack([values[:, :-1], slopes], axis=2).reshape(len(values), -1)


def _continued(x: IntArray, knots: FloatArray, values: FloatArray) -> FloatArray:
    """Interpolates rows of values linearly at each x, the last segment going on."""
    segment = np.minimum(np.searchsorted(knots, x, side="right"), len(knots) - 1) - 1
    slopes = np.diff(values, axis=1) / np.diff(knots)
    return values[:, segment] + slopes[:, segment] * (x - knots[segment])


def axis(knots: FloatArray) -> FloatArray:
    """Returns the words of an axis, see `layout`, seen as floats.

    Args:
        knots: (n,) ascending, n >= 2, the first of them 0.
    """
    starts = np.arange(0.0, knots[-1], at.CELL_WIDTH)
    cells = np.minimum(np.searchsorted(knots, starts, side="right") - 1, len(knots) - 2)
    head = np.concatenate([[len(knots), len(cells)], cells]).astype(np.int64)
    return np.concatenate([head.view(np.float64), knots])


def batching(gqa: bool, n: int) -> FloatArray:
    """Returns the factor of 1 to n requests in one attention part, shape (n,)."""
    factors = np.full(n, GQA_BATCHING_PENALTY if gqa else 1.0)
    factors[0] = 1.0
    return factors


def _part(model: ProfileBatchTime, decodes: int, context: float) -> float:
    """The decode part alone, at a mean context."""
    total = model.seconds(BatchSums(decodes, decodes * context, 0, 0, 0, 0, 0))  # type: ignore[arg-type]
    return total - model.seconds(BatchSums(0, 0, 0, decodes, 0, 0, 0))
