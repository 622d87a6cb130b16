"""The one exception that wrong input raises, and how its sentence is worded."""

import reprlib
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches


class InputError(ValueError):
    """Wrong input: one sentence with the value, what was expected and the mend.

    The commands print it, in their own words, to standard error and exit with code 2.

    Args:
        sentence: in Python's words.
        in_commands: phrases of the sentence to what the command line says instead, where a mend
            is an argument here and a key there.
    """

    def __init__(self, sentence: str, in_commands: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self._in_commands = dict(in_commands or {})

    @property
    def command_sentence(self) -> str:
        """The sentence in the words of the command line."""
        sentence = str(self)
        for phrase, instead in self._in_commands.items():
            sentence = sentence.replace(phrase, instead)
        return sentence


def unknown_name(
    kind: str, name: object, options: Iterable[str], notes: Mapping[str, str] | None = None
) -> InputError:
    """Returns the error for a name that is not among the known ones.

    Args:
        kind: what the name stands for, such as ``"router"``.
        name: the name that was given.
        options: the names that would have been accepted.
        notes: what to say of some of them, such as ``"a number from 0 to 1"``.
    """
    known = sorted(options)
    close = get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    said = {one: f"{one} ({note})" for one, note in (notes or {}).items() if note}
    listed = ", ".join(said.get(one, one) for one in known) or "none"
    return InputError(f"unknown {kind} {name!r}; available: {listed}{hint}")


def given_twice(key: str, value: object, other_key: str, other_value: object) -> InputError:
    """Returns the error for one setting that was given under two keys, differently."""
    return InputError(
        f"{key}={value} and {other_key}={other_value} set the same thing differently; leave one of "
        "them out"
    )


def checked_name(kind: str, name: object, options: Collection[str]) -> str:
    """Returns a name that is among the known ones.

    Args:
        kind: what the name stands for, such as ``"router"``.
        name: what was given, of any type.
        options: the names that are accepted.

    Raises:
        InputError: it is not one of them.
    """
    if not isinstance(name, str) or name not in options:
        raise unknown_name(kind, name, options)
    return name


def shown(value: object) -> str:
    """Returns a short `repr` in one line, for the sentence of an error."""
    return " ".join(reprlib.repr(value).split())
