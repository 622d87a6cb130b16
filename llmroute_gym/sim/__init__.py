"""Replicas, schedulers, batch times, workloads and traces; knows nothing of learning."""

from llmroute_gym.ground.signals import Signal
from llmroute_gym.sim.batch_time import (
    BatchSums,
    BatchTimeModel,
    FormulaBatchTime,
    TableBatchTime,
)
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.profile_time import ProfileBatchTime, available_profiles
from llmroute_gym.sim.reference import ReferenceRun
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.run import Interval, Run
from llmroute_gym.sim.workload import Workload

__all__ = [
    "BatchSums",
    "BatchTimeModel",
    "Cluster",
    "FormulaBatchTime",
    "Interval",
    "Outcome",
    "ProfileBatchTime",
    "ReferenceRun",
    "Replica",
    "Run",
    "Signal",
    "TableBatchTime",
    "Workload",
    "available_profiles",
]
