"""How what decisions call is compiled: with the decision that calls it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def block(function: Function) -> Function:
    """Marks a function that decisions may call."""
    return cast(Function, njit(error_model="numpy")(function))
