"""Knots and grids that batch times are interpolated on, and the checks that they may be."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray

ROUNDING_S = 1e-12  # seconds; what sums of rounded numbers may be off


def keep_arrays(model: object, names: Sequence[str]) -> None:
    """Replaces a frozen dataclass's arrays by read-only float64 copies of its own.

    Raises:
        InputError: an array is empty or holds a number that is not finite and >= 0.
    """
    for name in names:
        array = np.array(getattr(model, name), dtype=np.float64)
        array.flags.writeable = False
        object.__setattr__(model, name, array)
        if not (array.size and np.isfinite(array).all() and (array >= 0).all()):
            raise InputError(f"{name} must hold finite numbers >= 0, and at least one")


def check_knots(name: str, knots: FloatArray, least: int, first: float | None = None) -> None:
    """Checks that there are enough ascending knots, and that they start where they must.

    Raises:
        InputError: they do not.
    """
    if knots.ndim != 1 or len(knots) < least or not (np.diff(knots) > 0).all():
        raise InputError(f"{name} must be at least {least} ascending numbers, all different")
    if first is not None and knots[0] != first:
        raise InputError(f"{name} must start at {first:g}, got {knots[0]:g}")


def check_line(name: str, knots_name: str, knots: FloatArray, values: FloatArray) -> None:
    """Checks that there is a value per knot, and that the last segment may be continued.

    Raises:
        InputError: one is too few or too many, or the last segment falls.
    """
    if values.shape != knots.shape:
        raise InputError(f"{name} has shape {values.shape}, expected {knots.shape} as {knots_name}")
    if values[-1] < values[-2]:
        raise InputError(
            f"{name} must not fall from its last but one entry to the last: continued beyond "
            "them it would become negative"
        )


def check_grid(
    part: str,
    row_name: str,
    rows: FloatArray,
    columns: FloatArray,
    seconds: FloatArray,
    first_row: float,
) -> None:
    """Checks the knots and the values of a grid, and that its outermost segments may go on.

    Raises:
        InputError: they do not fit together, or the grid would become negative beyond its end.
    """
    check_knots(f"{part}_{row_name}", rows, 2, first_row)
    check_knots(f"{part}_context", columns, 2, 0.0)
    if seconds.shape != (len(rows), len(columns)):
        raise InputError(
            f"{part}_s has shape {seconds.shape}, expected ({len(rows)}, {len(columns)}) by "
            f"{part}_{row_name} and {part}_context"
        )
    rises = (
        *(seconds[:, -1] - seconds[:, -2]),
        *(seconds[-1] - seconds[-2]),
        seconds[-1, -1] - seconds[-1, -2] - seconds[-2, -1] + seconds[-2, -2],
    )
    if min(rises) < -ROUNDING_S:
        raise InputError(
            f"{part}_s must not fall along its last row and column, nor its slope at their corner: "
            "continued beyond the grid it would become negative"
        )


def bilinear(
    rows: Sequence[float], columns: Sequence[float], grid: list[list[float]], y: float, x: float
) -> float:
    """Interpolates a grid at row coordinate y and column coordinate x; outermost segments go on."""
    i = min(bisect_right(rows, y), len(rows) - 1) - 1
    j = min(bisect_right(columns, x), len(columns) - 1) - 1
    v = (y - rows[i]) / (rows[i + 1] - rows[i])
    u = (x - columns[j]) / (columns[j + 1] - columns[j])
    low, high = grid[i], grid[i + 1]
    return (1.0 - v) * ((1.0 - u) * low[j] + u * low[j + 1]) + v * (
        (1.0 - u) * high[j] + u * high[j + 1]
    )
