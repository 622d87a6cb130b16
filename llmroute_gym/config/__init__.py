"""Every setting of the package with its unit, its range and its default: plain dataclasses.

They are the only place where defaults live. The Python API takes them as they are, and the
commands register the very same objects as Hydra schemas, so a misspelt key or a wrong type is
an error in YAML, on the command line and in Python alike. The defaults are those of the option
``latency_tuned`` and ``large_batches``; the files in ``conf/`` hold only what differs from them.

Nothing heavy is imported here.
"""

from llmroute_gym.config.calibrating import CalibrateConfig
from llmroute_gym.config.commands import (
    LARGEST_SEED,
    RUN_DIR,
    SLO,
    CollectDemosConfig,
    EvaluationConfig,
    PretrainConfig,
    TrainConfig,
)
from llmroute_gym.config.evaluate import LAUNCHERS, EvaluateConfig
from llmroute_gym.config.gateway import (
    BackendConfig,
    BreakerConfig,
    GatewayLimits,
    GatewayTimeouts,
    HealthConfig,
    PolicyConfig,
    RetryConfig,
    ScrapeConfig,
    ServeConfig,
    address,
)
from llmroute_gym.config.learning import (
    LOG_STEP_REQUESTS,
    CloningConfig,
    CurriculumConfig,
    DomainsConfig,
    ExplorationConfig,
    KLConfig,
    LoggerConfig,
    ModelConfig,
    StabilizationConfig,
    TemperatureConfig,
    TrainingConfig,
    WarmStartConfig,
)
from llmroute_gym.config.mocking import MockEngineConfig
from llmroute_gym.config.searching import SearchConfig, SearchingConfig
from llmroute_gym.config.serving import HttpLimits, HttpTimeouts
from llmroute_gym.config.settings import (
    Settings,
    changed,
    check_distinct,
    choice,
    many,
    number,
    refuse_unread,
)
from llmroute_gym.config.simulation import (
    ENGINES,
    ClusterConfig,
    EnvConfig,
    GroupConfig,
    ObservationConfig,
    RewardConfig,
    WorkloadConfig,
)
from llmroute_gym.config.suites import ScenarioConfig, StragglerConfig, SuiteConfig

__all__ = [
    "ENGINES",
    "LARGEST_SEED",
    "LAUNCHERS",
    "LOG_STEP_REQUESTS",
    "RUN_DIR",
    "SLO",
    "BackendConfig",
    "BreakerConfig",
    "CalibrateConfig",
    "CloningConfig",
    "ClusterConfig",
    "CollectDemosConfig",
    "CurriculumConfig",
    "DomainsConfig",
    "EnvConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExplorationConfig",
    "GatewayLimits",
    "GatewayTimeouts",
    "GroupConfig",
    "HealthConfig",
    "HttpLimits",
    "HttpTimeouts",
    "KLConfig",
    "LoggerConfig",
    "MockEngineConfig",
    "ModelConfig",
    "ObservationConfig",
    "PolicyConfig",
    "PretrainConfig",
    "RetryConfig",
    "RewardConfig",
    "ScenarioConfig",
    "ScrapeConfig",
    "SearchConfig",
    "SearchingConfig",
    "ServeConfig",
    "Settings",
    "StabilizationConfig",
    "StragglerConfig",
    "SuiteConfig",
    "TemperatureConfig",
    "TrainConfig",
    "TrainingConfig",
    "WarmStartConfig",
    "WorkloadConfig",
    "address",
    "changed",
    "check_distinct",
    "choice",
    "many",
    "number",
    "refuse_unread",
]
