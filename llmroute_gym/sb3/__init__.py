"""The Stable-Baselines3 side: regularised PPO, its policies and callbacks, and saved policies."""

from llmroute_gym.sb3.callbacks import (
    EntropyWarmup,
    HealthMonitor,
    KLReferenceDecay,
    ObservationStatistics,
    RolloutStatistics,
    RouterMonitor,
    SaveTrainingState,
    TemperatureControl,
)
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.maskable import RouterMaskablePPO
from llmroute_gym.sb3.policies import (
    TemperatureMixin,
    TemperedMaskableMlpPolicy,
    TemperedMlpLstmPolicy,
    TemperedMlpPolicy,
)
from llmroute_gym.sb3.policy_router import PolicyRouter, router_of
from llmroute_gym.sb3.ppo import RouterPPO
from llmroute_gym.sb3.recent_latencies import RecentLatencies
from llmroute_gym.sb3.regularization import LinearDecay
from llmroute_gym.sb3.replay import Replayable
from llmroute_gym.sb3.replay_vector import ReplayableVector
from llmroute_gym.sb3.replica_set import MaskableReplicaSetPolicy, ReplicaSetPolicy
from llmroute_gym.sb3.residual import ResidualPolicy
from llmroute_gym.sb3.resume import load_training_state, remaining_timesteps, save_training_state
from llmroute_gym.sb3.row_normalizer import (
    NormalizedRows,
    RelativeRows,
    RowNormalizer,
    fill_statistics,
)
from llmroute_gym.sb3.vec_env import RouterVecEnv

__all__ = [
    "Checkpoint",
    "EntropyWarmup",
    "HealthMonitor",
    "KLReferenceDecay",
    "LinearDecay",
    "MaskableReplicaSetPolicy",
    "NormalizedRows",
    "ObservationStatistics",
    "PolicyRouter",
    "RecentLatencies",
    "RelativeRows",
    "Replayable",
    "ReplayableVector",
    "ReplicaSetPolicy",
    "ResidualPolicy",
    "RolloutStatistics",
    "RouterMaskablePPO",
    "RouterMonitor",
    "RouterPPO",
    "RouterVecEnv",
    "RowNormalizer",
    "SaveTrainingState",
    "TemperatureControl",
    "TemperatureMixin",
    "TemperedMaskableMlpPolicy",
    "TemperedMlpLstmPolicy",
    "TemperedMlpPolicy",
    "fill_statistics",
    "load_training_state",
    "remaining_timesteps",
    "router_of",
    "save_training_state",
]
