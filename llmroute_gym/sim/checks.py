"""Checks of single arguments, worded alike everywhere."""

import math
from numbers import Integral, Real

from llmroute_gym.errors import InputError


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
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    if at_least is not None and value < at_least:
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def positive(name: str, value: object) -> float:
    """Returns a finite number above zero as a float.

    Raises:
        InputError: it is anything else; the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InputError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def count(name: str, value: object, *, at_least: int = 1) -> int:
    """Returns a whole number as an int.

    Raises:
        InputError: it is no integer, or is below ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise InputError(f"{name} must be an integer >= {at_least}, got {value!r}")
    return int(value)
