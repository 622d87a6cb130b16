"""What the groups of settings are made of: fields with ranges, and their checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeVar

from llmroute_gym.errors import InputError, given_twice, shown, unknown_name
from llmroute_gym.ground.checks import flag

Group = TypeVar("Group", bound="Settings")


def number(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A numeric field with its range; a field that may be None is only checked when set."""
    return field(default=default, metadata={"range": (above, at_least, at_most)})


def choice(default: str, *options: str) -> Any:
    """A text field that takes one of the given words."""
    return field(default=default, metadata={"options": options})


def many(*default: Any, above: float | None = None, at_least: float | None = None) -> Any:
    """A list field; a range holds for each of its members."""
    return field(default_factory=lambda: list(default), metadata={"range": (above, at_least, None)})


@dataclass
class Settings:
    """A group of settings: what is common to the dataclasses below."""

    group: ClassVar[str] = ""
    """How the group is called in the sentences of errors."""
    short: ClassVar[dict[str, str]] = {}
    """Fields that only stand for another key, and that key."""

    def validate(self, group: str | None = None) -> Self:
        """Returns itself when every value is in its range.

        Raises:
            InputError: naming the key, the value and what was expected.
        """
        prefix = self.group if group is None else group
        for entry in fields(self):
            value = getattr(self, entry.name)
            key = f"{prefix}.{entry.name}" if prefix else entry.name
            if "list[" in str(entry.type) and not isinstance(value, list | tuple | None):
                raise InputError(f"{key} must be a list, got {shown(value)}")
            if value is None and "None" not in str(entry.type):
                raise InputError(f"{key} must not be None; leave it out for its default")
            if "bool" in str(entry.type) and value is not None:
                flag(key, value)
            if isinstance(value, Settings):
                value.validate(key)
            elif "options" in entry.metadata and value not in entry.metadata["options"]:
                raise unknown_name(key, value, entry.metadata["options"])
            elif any(bound is not None for bound in entry.metadata.get("range", ())):
                whole = "int" in str(entry.type)
                for member in value if "list" in str(entry.type) else (value,):
                    if member is not None:
                        _check_range(key, member, *entry.metadata["range"], whole=whole)
        return self


def _check_range(
    key: str,
    value: Any,
    above: float | None,
    at_least: float | None,
    at_most: float | None,
    *,
    whole: bool,
) -> None:
    kind = "an integer" if whole else "a number"
    bounds = [
        f"{sign} {bound if isinstance(bound, int) else format(bound, 'g')}"
        for sign, bound in ((">", above), (">=", at_least), ("<=", at_most))
        if bound is not None
    ]
    good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not good or not math.isfinite(float(value)):
        wanted = " ".join([kind, " and ".join(bounds)]).rstrip()
        raise InputError(f"{key} must be {wanted}, got {value!r}")
    if (
        (above is not None and float(value) <= above)
        or (at_least is not None and float(value) < at_least)
        or (at_most is not None and float(value) > at_most)
    ):
        raise InputError(f"{key} must be {' and '.join(bounds)}, got {value}")


def with_short(settings: Settings, group: Group) -> Group:
    """Returns a group with what was given without its name, which is None there afterwards.

    Args:
        settings: of a command; its `short` lists the fields that stand for one of the group.
        group: of these settings.

    Raises:
        InputError: what was given so is out of range, or given both ways with different values.
    """
    moved = {name: getattr(settings, name) for name in settings.short}
    moved = {name: value for name, value in moved.items() if value is not None}
    # Here, so that the sentence has the key that was given.
    alone = type(group)(**moved)
    alone.validate("")
    untouched = type(group)()
    for name, value in moved.items():
        there = getattr(group, name)
        if there not in (value, getattr(alone, name), getattr(untouched, name)):
            raise given_twice(name, value, settings.short[name], there)
        setattr(settings, name, None)
    return replace(group, **moved)


def changed(settings: Settings, names: Sequence[str]) -> list[str]:
    """Returns those of the fields that have another value than their default."""
    untouched = type(settings)()
    return [name for name in names if getattr(settings, name) != getattr(untouched, name)]


def check_distinct(key: str, names: Sequence[str], kind: str = "router") -> None:
    """Checks that a list names nothing twice.

    Args:
        key: of the list.
        names: its members.
        kind: what they are.

    Raises:
        InputError: naming the key and what is named twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{key} names {name} twice; name each {kind} once")


def refuse_unread(
    settings: Settings, group: str, names: Sequence[str], because: str, instead: str = ""
) -> None:
    """Refuses values that nothing would read.

    Args:
        settings: of the group.
        group: its name.
        names: of the fields that are not read.
        because: the setting of the same group under which they are not.
        instead: what to choose so that they are.

    Raises:
        InputError: one of the fields has another value than its default.
    """
    for name in changed(settings, names):
        mend = f"choose {instead} or leave it out" if instead else "leave one of them out"
        raise InputError(
            f"{group}.{name}={getattr(settings, name)} would not be read with {group}.{because}; "
            f"{mend}"
        )
