"""The Gymnasium environment: observation, reward, viewer."""

from llmroute_gym.envs.llmroute_env import LLMRouteEnv

__all__ = ["LLMRouteEnv"]
