"""The constants that a search may change, as points of a unit cube."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import Router, available, make
from llmroute_gym.routers.constants import Range, constants_of
from llmroute_gym.routers.rule import Rule

DIGITS = 4
"""Significant digits of a constant: no more can be told apart, and people read them."""

Constants = dict[str, float]
"""Name to value, in the order of the rule."""


def tuned_ranges(router: Router) -> dict[str, Range]:
    """Returns the constants of a router that a search may change; none where it has none."""
    ranges = constants_of(router) if isinstance(router, Rule) else {}
    return {name: limits for name, limits in ranges.items() if limits.tuned}


@dataclass(frozen=True)
class Space:
    """The constants of one rule.

    Attributes:
        rule: as it starts; what is not searched stays as it is there.
        ranges: of what is searched, in order.
    """

    rule: Rule
    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, text: str, router: Router, only: Sequence[str] = ()) -> "Space":
        """Returns the space of a router.

        Args:
            text: how the settings name it.
            router: made of it.
            only: the constants that are searched; empty means all.

        Raises:
            InputError: it has no constants to search, or none of such a name.
        """
        ranges = tuned_ranges(router)
        if not ranges or not isinstance(router, Rule):
            others = [name for name in available() if tuned_ranges(make(name))]
            some = f": {', '.join(others)}" if others else ""
            raise InputError(
                f"search.router={text} has no constants to search; name a rule that has some{some}"
            )
        for name in only:
            checked_name(f"search.constants of {text}:", name, ranges)
        return cls(router, {name: one for name, one in ranges.items() if not only or name in only})

    @property
    def start(self) -> Constants:
        """The constants of the rule as it starts."""
        return {name: getattr(self.rule, name) for name in self.ranges}

    def point(self, constants: Mapping[str, float]) -> FloatArray:
        """Returns where constants lie in the cube, each from 0 to 1, shape (n_constants,)."""
        return np.array(
            [
                (_scaled(constants[name], one) - _scaled(one.low, one))
                / (_scaled(one.high, one) - _scaled(one.low, one))
                for name, one in self.ranges.items()
            ]
        )

    def constants(self, point: FloatArray) -> Constants:
        """Returns the constants at a point: within their ranges, and rounded."""
        found: Constants = {}
        for share, (name, one) in zip(point.tolist(), self.ranges.items(), strict=True):
            low, high = _scaled(one.low, one), _scaled(one.high, one)
            value = low + share * (high - low)
            value = float(np.exp(value)) if one.logarithmic else value
            rounded = round(value) if one.whole else float(f"{value:.{DIGITS}g}")
            found[name] = type(rounded)(min(max(rounded, one.low), one.high))
        return found

    def with_constants(self, constants: Mapping[str, float]) -> Rule:
        """Returns the rule with these constants."""
        return replace(self.rule, **constants)


def _scaled(value: float, limits: Range) -> float:
    return float(np.log(value)) if limits.logarithmic else float(value)
