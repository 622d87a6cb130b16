"""The one way in which kernels are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core.event import Event, Listener, register
from numba.extending import intrinsic

from llmroute_gym.ground.notices import notices

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


def _lowest_bit(typing_context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


lowest_bit = cast(Callable[[int], int], intrinsic(_lowest_bit))
"""Returns the number of the lowest bit that is set, of at least one."""


class _Notice(Listener):
    """Says once that kernels are being compiled, which else looks like a hang.

    Numba tells of no kernel that it finds on disk.
    """

    said = False

    def on_start(self, event: Event) -> None:
        """Notices the first kernel of this package."""
        function = event.data["dispatcher"].py_func
        if not self.said and function.__module__.startswith("llmroute_gym."):
            self.said = True
            notices.info(
                "compiling the simulator's kernels, up to a minute once per installation ..."
            )

    def on_end(self, event: Event) -> None:
        """Does nothing."""


register("numba:compile", _Notice())  # type: ignore[no-untyped-call]
