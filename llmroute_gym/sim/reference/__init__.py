"""The readable engine: SimPy processes, batch by batch, token by token."""

from llmroute_gym.sim.reference.engine import ReferenceRun

__all__ = ["ReferenceRun"]
