"""Request routing for LLM servers: an exact cluster simulator and a Gymnasium environment."""

from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, Outcome, Replica, Workload
from llmroute_gym.simulation import simulate

__version__ = "0.1.0"

__all__ = ["Cluster", "InputError", "Outcome", "Replica", "Workload", "simulate"]
