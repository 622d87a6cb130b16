"""All settings of the command that compares routers, in one scenario or in a suite of them."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from llmroute_gym.config import simulation
from llmroute_gym.config.commands import RUN_DIR, EvaluationConfig
from llmroute_gym.config.settings import Settings, changed, choice, number, with_short
from llmroute_gym.config.suites import SuiteConfig
from llmroute_gym.errors import InputError

LAUNCHERS = ("joblib", "ray")


@dataclass
class EvaluateConfig(Settings):
    """All settings of ``python -m llmroute_gym.evaluate``.

    The group ``evaluation`` may be left out of a key: ``runs=5`` is ``evaluation.runs=5``. What is
    given so is found in ``evaluation`` afterwards.

    Raises:
        InputError: what is given so is out of range, or given both ways with different values.
    """

    short: ClassVar[dict[str, str]] = {
        name: f"evaluation.{name}"
        for name in (
            *("routers", "baseline", "runs", "requests", "seed", "engine", "confidence"),
            "resamples",
        )
    }

    checkpoint: str | None = None
    """A ``model.zip``, the run folder that holds it, or the zip file of any PPO that was trained on
    the same observation; compared under the name ``policy``."""
    trusted: bool = False
    """Whether the checkpoint may be unpickled, which may run any code in it, where it holds a
    policy of no kind that this package knows."""
    cluster: simulation.ClusterConfig = field(default_factory=simulation.ClusterConfig)
    workload: simulation.WorkloadConfig = field(default_factory=simulation.WorkloadConfig)
    observation: simulation.ObservationConfig = field(default_factory=simulation.ObservationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    suite: SuiteConfig | None = None
    """Scenarios that are compared in one go, ``+suite=core``; what is given beside it is read only
    where it says so."""
    launcher: str = choice("joblib", *LAUNCHERS)
    """What runs the cells of a suite: processes of this machine, or those of a Ray cluster."""
    workers: int = number(2, at_least=1)
    """Processes that share the cells of a suite; what is found does not depend on it."""
    traces: str = "."
    """Folder with the public traces that scenarios replay."""
    run_dir: str = RUN_DIR
    routers: list[Any] | None = None
    baseline: str | None = None
    runs: int | None = None
    requests: int | None = None
    seed: int | None = None
    engine: str | None = None
    confidence: float | None = None
    resamples: int | None = None

    def __post_init__(self) -> None:
        """Moves what was given without the group into it."""
        self.evaluation = with_short(self, self.evaluation)

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and all of them are read."""
        super().validate(group)
        if self.suite is not None:
            names = [one.name for one in fields(EvaluationConfig)]
            for name in changed(self.evaluation, names):
                raise InputError(
                    f"evaluation.{name}={getattr(self.evaluation, name)} would not be read with a "
                    f"suite; set suite.{name} instead"
                )
            mends = {
                name: "leave it out; scenarios have their own" for name in ("cluster", "workload")
            }
            mends["checkpoint"] = "add it to suite.routers instead"
            for name in changed(self, list(mends)):
                raise InputError(f"{name} would not be read with a suite; {mends[name]}")
        return self
