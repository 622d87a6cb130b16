"""Rules that ship with constants which a search found: files beside this one, as it writes them."""

from dataclasses import field, fields, make_dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

from llmroute_gym.routers.rule import Rule

R = TypeVar("R", bound=Rule)


@cache
def shipped_options(name: str) -> dict[str, Any]:
    """Returns the options of a shipped rule, as its file has them; ``name`` is its family."""
    file = resources.files("llmroute_gym.routers").joinpath(f"{name}.yaml")
    options: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return options


def shipped(family: type[R], name: str, **attributes: Any) -> type[R]:
    """Returns a family's subclass whose defaults are those of a shipped file.

    Ranges of constants, and options that the file does not name, are the family's.

    Args:
        family: a dataclass.
        name: of the rule, and of its file.
        attributes: further ones of the class, such as its docstring, `source` and `__module__`.
    """
    options = {key: one for key, one in shipped_options(name).items() if key != "name"}
    known = {one.name: one for one in fields(family)}
    own = [
        (key, known[key].type, field(default=value, metadata=known[key].metadata))
        for key, value in options.items()
    ]
    title = "".join(map(str.capitalize, name.split("_")))
    made: type[R] = make_dataclass(
        title, own, bases=(family,), namespace={"name": name, **attributes}
    )
    return made
