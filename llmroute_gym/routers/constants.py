"""The constants of a rule: fields of its class, each with a default and the range of tuning."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from llmroute_gym.errors import InputError, shown


@dataclass(frozen=True)
class Range:
    """What a constant may be.

    Attributes:
        low: its least value.
        high: its largest value.
        logarithmic: whether tuning searches its logarithm; `low` is above 0 then.
        whole: whether it is an integer.
        tuned: whether tuning may change it; a delay of what the router sees, for one, it may not.
    """

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    tuned: bool = True

    def __str__(self) -> str:
        """Returns it in words."""
        kind = "an integer" if self.whole else "a number"
        return f"{kind} from {self.low:g} to {self.high:g}"


def constant(
    default: float,
    low: float,
    high: float,
    *,
    logarithmic: bool = False,
    whole: bool = False,
    tuned: bool = True,
) -> Any:
    """A field of a rule that is one of its constants, see `Range`."""
    return field(default=default, metadata={"range": Range(low, high, logarithmic, whole, tuned)})


def constants_of(rule: Any) -> Mapping[str, Range]:
    """Returns the constants of a rule, or of its class, and their ranges, in order."""
    return {one.name: one.metadata["range"] for one in _constant_fields(rule)}


def check_constants(rule: Any) -> None:
    """Checks the constants of a rule against their ranges, and makes them numbers.

    Raises:
        InputError: naming the constant, the rule, the range and the value.
    """
    for name, limits in constants_of(rule).items():
        value: Any = getattr(rule, name)
        is_one = isinstance(value, Integral if limits.whole else Real)
        is_one = is_one and not isinstance(value, bool)
        if not (is_one and limits.low <= value <= limits.high):
            raise InputError(f"{name} of {rule.name} must be {limits}, got {shown(value)}")
        setattr(rule, name, int(value) if limits.whole else float(value))


def _constant_fields(rule: Any) -> list[Field[Any]]:
    return [one for one in fields(rule) if "range" in one.metadata]
