"""What all decisions of a file of demonstrations have in common."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmroute_gym.config import ObservationConfig, RewardConfig


@dataclass(frozen=True)
class DemoLayout:
    """What all decisions of a file have in common.

    Attributes:
        replicas: rows of an observation.
        observation: its columns and what they tell.
        reward: weights of the rewards.
        gamma: discount of the returns.
    """

    replicas: int
    observation: ObservationConfig
    reward: RewardConfig
    gamma: float

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of an observation's columns, in order."""
        return tuple(self.observation.columns)

    def differences(self, other: "DemoLayout") -> list[str]:
        """Returns what differs, one phrase each: "replicas is 4 there and 8 here"."""
        there, here = _flat(asdict(self)), _flat(asdict(other))
        return [
            f"{name} is {shown_setting(value)} there and {shown_setting(here[name])} here"
            for name, value in there.items()
            if value != here[name]
        ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def shown_setting(value: Any) -> str:
    """Words the value of a setting for a sentence."""
    named = isinstance(value, list) and value and isinstance(value[0], str)
    return f"({', '.join(value)})" if named else str(value)
