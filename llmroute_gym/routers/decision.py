"""Rules as plain functions that both engines run as they stand.

A decision is written once, over the rows of one request. Compiled on its first use, `Rule.route`
calls it whatever the engine, and the one kernel that serves a whole run by its address: so that
kernel is compiled once for all rules.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, types

from llmroute_gym.ground.arrays import BoolArray, FloatArray

Choose = Callable[[FloatArray, BoolArray, FloatArray, FloatArray, FloatArray], int]
"""From rows (n_replicas, N_SIGNALS), the mask (n_replicas,) of replicas that may be chosen, which
it may narrow, uniform numbers (per_request,), the rule's constants and its memory, which it
changes, to the index of a replica. All arrays are of one dimension but the rows."""
_HERE = Path(__file__).parent
_VECTOR = types.float64[::1]
SIGNATURE = types.int64(types.float64[:, ::1], types.boolean[::1], _VECTOR, _VECTOR, _VECTOR)


class Decision:
    """A plain function, compiled on its first use.

    Args:
        choose: see `Choose`; it may use whatever Numba compiles, and allocates as little as it can.
    """

    def __init__(self, choose: Choose) -> None:
        self.plain = choose
        self.__doc__ = choose.__doc__
        self._compiled: Any = None

    def __call__(
        self,
        rows: FloatArray,
        mask: BoolArray,
        draws: FloatArray,
        constants: FloatArray,
        memory: FloatArray,
    ) -> int:
        """Returns the index of a replica, see `Choose`."""
        return int(self.compiled(rows, mask, draws, constants, memory))

    @property
    def compiled(self) -> Any:
        """The compiled function, with the one signature that all decisions have."""
        if self._compiled is None:
            # Kept on disk only where it is known to be up to date, and found again: not a closure.
            ours = _HERE in Path(self.plain.__code__.co_filename).parents
            ours = ours and self.plain.__closure__ is None
            if ours:
                _drop_stale()
            compile_it = njit([SIGNATURE], cache=ours, error_model="numpy")
            self._compiled = compile_it(self.plain)
        return self._compiled


class Address(types.WrapperAddressProtocol):
    """A decision as a kernel takes it.

    Args:
        decision: compiled by this.
    """

    def __init__(self, decision: Decision) -> None:
        self._overload = decision.compiled.overloads[SIGNATURE.args]

    def __wrapper_address__(self) -> int:
        """Returns where its machine code is."""
        name = self._overload.fndesc.llvm_cfunc_wrapper_name
        return int(self._overload.library.get_pointer_to_function(name))

    def signature(self) -> Any:
        """Returns what it takes and gives."""
        return SIGNATURE


def decision(choose: Choose) -> Decision:
    """Marks a function as a decision, see `Choose`."""
    return Decision(choose)


@cache
def _drop_stale() -> None:
    """Drops what was compiled from other sources, once per process."""
    from llmroute_gym.sim.compiled.stale import drop_stale_kernels

    drop_stale_kernels(_HERE, *sorted(_HERE.rglob("*.py")))
