"""The fast engine: Numba kernels over arrays, equal to the SimPy engine number for number."""

from pathlib import Path

from llmroute_gym.sim.compiled.stale import drop_stale_kernels

drop_stale_kernels()
drop_stale_kernels(Path(__file__).parent / "batch")

from llmroute_gym.sim.compiled.run import CompiledRun  # noqa: E402  (the cache comes first)

__all__ = ["CompiledRun"]
