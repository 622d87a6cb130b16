"""Controllers, schedules and monitors that run beside the training."""

from llmroute_gym.sb3.callbacks.entropy_warmup import EntropyWarmup
from llmroute_gym.sb3.callbacks.health_monitor import HealthMonitor
from llmroute_gym.sb3.callbacks.kl_reference_decay import KLReferenceDecay
from llmroute_gym.sb3.callbacks.observation_statistics import ObservationStatistics
from llmroute_gym.sb3.callbacks.rollout_statistics import RolloutStatistics
from llmroute_gym.sb3.callbacks.router_monitor import RouterMonitor
from llmroute_gym.sb3.callbacks.save_training_state import SaveTrainingState
from llmroute_gym.sb3.callbacks.temperature_control import TemperatureControl

__all__ = [
    "EntropyWarmup",
    "HealthMonitor",
    "KLReferenceDecay",
    "ObservationStatistics",
    "RolloutStatistics",
    "RouterMonitor",
    "SaveTrainingState",
    "TemperatureControl",
]
