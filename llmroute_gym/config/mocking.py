"""All settings of the mock engine."""

from dataclasses import dataclass
from typing import Self

from llmroute_gym.config.commands import LARGEST_SEED
from llmroute_gym.config.settings import number
from llmroute_gym.config.simulation import GroupConfig
from llmroute_gym.errors import InputError

LAST_PORT = 65_535


@dataclass
class MockEngineConfig(GroupConfig):
    """All settings of ``python -m llmroute_gym.mock_engine``.

    The keys of a group of replicas say what each engine simulates; ``replicas`` is how many engines
    there are, each on a port of its own, and ``speed=10`` is a tenth of the time.
    """

    host: str = "127.0.0.1"
    """Name or address of the API."""
    port: int = number(8000, at_least=0, at_most=LAST_PORT)
    """Of the first engine's API; the others have those that follow. 0 takes any that are free, and
    what the command says tells which."""
    ctl_port: int | None = number(None, at_least=1, at_most=LAST_PORT)
    """Of the first engine's faults, always on loopback; the others have those that follow. None
    means that nobody can order any."""
    served_model_name: str = "mock"
    """What requests call the model."""
    token_bytes: int = number(4, at_least=1, at_most=64)
    """Of text that count as a token."""
    mean_output_tokens: float | None = number(None, at_least=1)
    """Of answers that end by themselves, geometrically distributed; None means that each one is as
    long as the request allows."""
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    """Of the lengths of answers, and of which requests a fault befalls."""
    run_dir: str = "."
    """Where it runs; nothing is written."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range and no two ports are the same."""
        super().validate(group)
        if self.oversize is not None:
            raise InputError(
                f"oversize={self.oversize} would not be read: what an engine cannot hold is "
                "answered with 400; leave it out"
            )
        if not self.served_model_name or not self.host:
            name = "host" if self.served_model_name else "served_model_name"
            raise InputError(f"{name} is empty; give a name, or leave it out for its default")
        for name, first in (("port", self.port), ("ctl_port", self.ctl_port)):
            if first is not None and first + self.replicas - 1 > LAST_PORT:
                raise InputError(
                    f"{name} must be at most {LAST_PORT + 1 - self.replicas} for "
                    f"{self.replicas} engines, got {first}"
                )
        apart = None if self.ctl_port is None else abs(self.ctl_port - self.port)
        if self.port and apart is not None and apart < self.replicas:
            raise InputError(
                f"ctl_port={self.ctl_port} falls on a port of an API, which are {self.port} to "
                f"{self.port + self.replicas - 1}; choose one at least {self.replicas} away"
            )
        return self
