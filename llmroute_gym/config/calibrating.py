"""All settings of the calibration of a profile by a log."""

from dataclasses import dataclass
from typing import ClassVar, Self

from llmroute_gym.config.commands import LARGEST_SEED, RUN_DIR
from llmroute_gym.config.settings import changed, many, number
from llmroute_gym.config.simulation import GroupConfig
from llmroute_gym.errors import InputError


@dataclass
class CalibrateConfig(GroupConfig):
    """All settings of ``python -m llmroute_gym.calibrate``.

    The keys of a group of replicas say how the servers of the log were set up; their speed is what
    is found out.
    """

    unread: ClassVar[tuple[str, ...]] = ("replicas", "speed", "oversize")

    log: str | None = None
    """The CSV file of a gateway's requests."""
    steps: str | None = None
    """A CSV file of measured iterations, as ``sim.fit`` reads; the batch times are then fitted to
    it, and the log only tells how good they are."""
    profile: str = "h100-llama-3.1-8b"
    """Whose scheduler and limits the servers have, but for what is given here."""
    backends: list[str] = many()
    """Those of the log whose requests count, which must be servers of one kind; none means all."""
    limit: int | None = number(None, at_least=1)
    """Requests of the log that are used, the latest; None means all."""
    held_out: float = number(0.3, at_least=0, at_most=0.9)
    """Share of the log, at its end, that nothing is fitted to."""
    candidates: int = number(1000, at_least=10)
    """Batch times that are tried."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    """Of the search."""
    name: str | None = None
    """Of the new profile; None means that of the log's file."""
    served_model: str = "unknown"
    """What the profile says of its model."""
    hardware: str = "unknown"
    """What the profile says of its hardware."""
    run_dir: str = RUN_DIR
    """The one folder that everything is written to."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and there is a log."""
        super().validate(group)
        if not self.log:
            raise InputError(
                "log is missing; name the CSV file of a gateway, as in log=requests.csv"
            )
        for name in changed(self, self.unread):
            raise InputError(
                f"{name}={getattr(self, name)} would not be read: the log tells; leave it out"
            )
        if len(set(self.backends)) < len(self.backends):
            raise InputError(f"backends={self.backends} names one twice; name each backend once")
        return self
