"""Replicas, schedulers, batch times, workloads and traces; knows nothing of learning."""

from llmroute_gym.ground.signals import Signal
from llmroute_gym.sim.arrivals import (
    ArrivalProcess,
    BurstyArrivals,
    DiurnalArrivals,
    GammaArrivals,
    PoissonArrivals,
    RampArrivals,
    TraceArrivals,
    arrival_process,
)
from llmroute_gym.sim.batch_time import (
    BatchSums,
    BatchTimeModel,
    FormulaBatchTime,
    TableBatchTime,
)
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.conversations import AgentLoop, MultiTurn
from llmroute_gym.sim.lengths import (
    EmpiricalLengths,
    FixedLengths,
    LengthModel,
    LognormalLengths,
    TableLengths,
    UniformLengths,
    azure_conv,
    length_model,
)
from llmroute_gym.sim.outcome import Outcome
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.prefixes import PrefixRepetition, PromptSource, SharedPrefix
from llmroute_gym.sim.profile_time import ProfileBatchTime, available_profiles
from llmroute_gym.sim.reference import ReferenceRun
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.run import Interval, Run
from llmroute_gym.sim.sources import SyntheticWorkload, TraceWorkload, WorkloadSource, prompt_source
from llmroute_gym.sim.workload import Workload

__all__ = [
    "AgentLoop",
    "ArrivalProcess",
    "BatchSums",
    "BatchTimeModel",
    "BurstyArrivals",
    "Cluster",
    "Content",
    "DiurnalArrivals",
    "EmpiricalLengths",
    "FixedLengths",
    "FormulaBatchTime",
    "GammaArrivals",
    "Interval",
    "LengthModel",
    "LognormalLengths",
    "MultiTurn",
    "Outcome",
    "PiecewiseBatchTime",
    "PoissonArrivals",
    "PrefixRepetition",
    "ProfileBatchTime",
    "PromptSource",
    "RampArrivals",
    "ReferenceRun",
    "Replica",
    "Run",
    "SharedPrefix",
    "Signal",
    "SyntheticWorkload",
    "TableBatchTime",
    "TableLengths",
    "TraceArrivals",
    "TraceWorkload",
    "UniformLengths",
    "Workload",
    "WorkloadSource",
    "arrival_process",
    "available_profiles",
    "azure_conv",
    "length_model",
    "prompt_source",
]
