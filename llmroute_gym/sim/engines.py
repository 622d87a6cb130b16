"""The two engines by name."""

from collections.abc import Callable
from typing import Any, Literal

from llmroute_gym.sim.reference import ReferenceRun
from llmroute_gym.sim.run import Run

EngineName = Literal["compiled", "reference"]


def _compiled_run(*args: Any, **kwargs: Any) -> Run:
    from llmroute_gym.sim.compiled import CompiledRun  # Numba takes half a second to import

    return CompiledRun(*args, **kwargs)


ENGINES: dict[str, Callable[..., Run]] = {"compiled": _compiled_run, "reference": ReferenceRun}
"""What starts a run, by the engine's name; all take the arguments of `Run`."""
