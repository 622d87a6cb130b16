"""The one way in which kernels are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

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


def _assume(typing_context: Any, condition: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(1)])
        builder.call(builder.module.declare_intrinsic("llvm.assume", (), kind), arguments)
        return context.get_dummy_value()

    return types.void(types.boolean), generate


assume = cast(Callable[[bool], None], intrinsic(_assume))
"""Tells the compiler that a condition holds. A word that is known to be no negative index needs
no test for one at every access, a tenth of the time."""
