"""Checks of single arguments, worded alike everywhere."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, shown


def number(name: str, value: object, *, at_least: float | None = None) -> float:
    """Returns a finite real number as a float.

    Args:
        name: how the message names the argument, such as ``"burst_factor"``.
        value: what was given.
        at_least: the smallest accepted value; None accepts any finite number.

    Raises:
        InputError: it is no finite number, or is below ``at_least``.
    """
    wanted = "a finite number" if at_least is None else f"a finite number >= {at_least:g}"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} must be {wanted}, got {shown(value)}")
    if at_least is not None and value < at_least:
        raise InputError(f"{name} must be {wanted}, got {shown(value)}")
    return float(value)


def positive(name: str, value: object) -> float:
    """Returns a finite number above zero as a float.

    Raises:
        InputError: it is anything else; the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InputError(f"{name} must be a finite number > 0, got {shown(value)}")
    return float(value)


def count(name: str, value: object, *, at_least: int = 1) -> int:
    """Returns a whole number as an int.

    Raises:
        InputError: it is no integer, or is below ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise InputError(f"{name} must be an integer >= {at_least}, got {shown(value)}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """Returns a yes or no as a bool.

    Raises:
        InputError: it is neither of them; the message names the argument.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def sequence(name: str, value: Iterable[Any], of: str) -> tuple[Any, ...]:
    """Returns what can be iterated over as a tuple.

    Args:
        name: how the message names the argument.
        value: what was given.
        of: what it should hold, such as ``"replicas"``.

    Raises:
        InputError: it cannot be iterated over.
    """
    try:
        return tuple(value)
    except TypeError as error:
        raise InputError(f"{name} must be a list or tuple of {of}, got {shown(value)}") from error


def array(name: str, value: npt.ArrayLike, ndim: int = 1) -> npt.NDArray[np.float64]:
    """Returns a read-only float64 copy of finite numbers >= 0.

    Args:
        name: how the message names the argument.
        value: what was given.
        ndim: how many axes it has.

    Raises:
        InputError: it is no such array; the message names the first wrong value and its index.
    """
    try:
        copy = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers, got {shown(value)}") from error
    if copy.ndim != ndim:
        raise InputError(f"{name} must be an array with {ndim} axes, got shape {copy.shape}")
    if copy.size and not (copy.min() >= 0 and copy.max() < math.inf):
        index = tuple(np.argwhere(~(np.isfinite(copy) & (copy >= 0)))[0].tolist())
        raise InputError(
            f"{name} must hold finite numbers >= 0, got {copy[index]} at index "
            f"{', '.join(map(str, index))}"
        )
    copy.flags.writeable = False
    return copy
