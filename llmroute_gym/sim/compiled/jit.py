"""The one way in which kernels are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
"""No kernel allocates, so none needs Numba's reference counts, which would double the time."""


def kernel(function: Function) -> Function:
    """Compiles a function on its first call and keeps the result on disk."""
    compiled: Function = njit(**_OPTIONS)(function)
    return compiled


def inlined(function: Function) -> Function:
    """The same, for small functions: they are compiled into their callers."""
    compiled: Function = njit(inline="always", **_OPTIONS)(function)
    return compiled
