"""The Gymnasium environment: observation, reward, viewer."""

from llmroute_gym.envs.llmroute_env import LLMRouteEnv
from llmroute_gym.envs.vector_env import LLMRouteVectorEnv

__all__ = ["LLMRouteEnv", "LLMRouteVectorEnv"]
