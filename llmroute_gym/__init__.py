"""Request routing for LLM servers: an exact cluster simulator and a Gymnasium environment."""

from llmroute_gym.ground import interrupts  # noqa: F401  # isort: skip  (guards all that follows)

import gymnasium

from llmroute_gym.errors import InputError
from llmroute_gym.ground.version import __version__
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Outcome, Replica, Workload
from llmroute_gym.sim.traces import load_trace

gymnasium.register(
    id="LLMRoute-v0",
    entry_point="llmroute_gym.envs.llmroute_env:LLMRouteEnv",
    vector_entry_point="llmroute_gym.envs.vector_env:LLMRouteVectorEnv",
)

__all__ = [
    "Cluster",
    "InputError",
    "Outcome",
    "Replica",
    "Workload",
    "__version__",
    "load_trace",
    "simulate",
]
