"""Building a strategy from its name and options, as config files give them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llmroute_gym.errors import InputError, checked_name, unknown_name

T = TypeVar("T")


def build(
    kind: str, makers: Mapping[str, Callable[..., T]], name: str, options: Mapping[str, Any]
) -> T:
    """Calls the maker of that name with the options.

    Args:
        kind: what the name stands for in messages, such as ``"arrival process"``.
        makers: name to class or function.
        name: the name asked for.
        options: keyword arguments of the maker.

    Raises:
        InputError: the name or an option is unknown, or a required option is missing.
    """
    parameters = inspect.signature(makers[checked_name(kind, name, makers)]).parameters
    for option in options:
        if option not in parameters:
            raise unknown_name(f"option of {kind} {name!r}:", option, parameters)
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in options
    ]
    if missing:
        raise InputError(f"{kind} {name!r} needs the option(s) {', '.join(missing)}")
    return makers[name](**options)
