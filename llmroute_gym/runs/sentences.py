"""Errors of ours, of Hydra, of OmegaConf and of the file system, each worded as one sentence."""

import errno
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from llmroute_gym.errors import InputError, given_twice, unknown_name

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of the file system that are no fault of the program."""
PLUGINS = {
    "hydra/launcher/joblib": "sweep",
    "hydra/sweeper/optuna": "sweep",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}
"""Options to the extra that brings them."""


def sentence(error: Exception) -> str:
    """Words an error as one sentence with the mend."""
    if isinstance(error, InputError):
        return error.command_sentence
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, error.message)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(str(error.missing_cfg_file), error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return (
            f"cannot write {error.filename}: {error.strerror}; make room, or choose another disk "
            "with run_dir=FOLDER"
        )
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return (
            f"cannot write the run folder {error.filename}: {error.strerror}; "
            "choose another with run_dir=FOLDER"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _about_key(cause)
    words = _one_line(str(error))
    if added := re.match(r"Could not override '(.+?)'\. No match .* use (\S+)", words):
        return f"{added[1]} is not chosen by default; write {added[2]}"
    return words


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _unreadable(override: str, message: str) -> str:
    key, equals, value = override.partition("=")
    reason = message.partition("\nSee https")[0].splitlines()[-1]
    if not equals:
        return f"cannot read {override} ({reason}); write key=value or group=option"
    if re.match(r"\[|\{|\w+\(", value):
        example = shlex.quote(key + '=["a b","c"]')
        return (
            f"cannot read {override} ({reason}); close every bracket, and quote members that have "
            f"special characters, as in {example}"
        )
    quoted = value.strip("'\"").replace('"', '\\"')
    mended = shlex.quote(f'{key}="{quoted}"')
    return (
        f"cannot read {override}: a value with special characters needs quotes that reach the "
        f"command; write {mended}"
    )


def _missing_option(missing: str, error: MissingConfigException) -> str:
    group, _, option = missing.rpartition("/")
    if missing in PLUGINS:
        return (
            f"{group}={option} needs a plugin that is not installed; "
            f"pip install 'llmroute-gym[{PLUGINS[missing]}]'"
        )
    if error.options:
        return str(unknown_name(f"option of {group}", option, error.options))
    return _one_line(str(error))


def _unknown_key(key: str, node: DictConfig) -> str:
    parent, dot, leaf = key.rpartition(".")
    known = sorted(str(name) for name in node if name != leaf)
    close = get_close_matches(leaf, known, n=1, cutoff=0.5)
    groups = sorted(str(name) for name in node if _holds(node, str(name), leaf))
    close = close or [f"{group}.{leaf}" for group in groups]
    mend = f"did you mean {parent}{dot}{close[0]}?" if close else f"known: {', '.join(known)}"
    return f"unknown key {key}; {mend}"


def _holds(node: DictConfig, group: str, leaf: str) -> bool:
    inner = node._get_node(group)
    return isinstance(inner, DictConfig) and not inner._is_none() and leaf in inner


def reject_added_keys(node: DictConfig, prefix: str = "") -> None:
    """Raises InputError for keys that ``+key=`` added to a schema, which nothing would read."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    names = {entry.name for entry in fields(schema)}
    for name in map(str, node):
        if name not in names:
            raise InputError(_unknown_key(f"{prefix}{name}", node))
        if OmegaConf.is_dict(node) and isinstance(node._get_node(name), DictConfig):
            reject_added_keys(node[name], f"{prefix}{name}.")


def reject_twice(typed: Mapping[str, str], short: Mapping[str, str]) -> None:
    """Raises InputError for a setting that was typed under both of its keys, differently.

    Args:
        typed: key to value.
        short: key to the full one that it stands for.
    """
    for key, full_key in short.items():
        if key in typed and typed.get(full_key, typed[key]) != typed[key]:
            raise given_twice(key, typed[key], full_key, typed[full_key])


def key_of_no_group(typed: Sequence[str], schema: Any, folder: Path) -> str | None:
    """Words that a key was typed of a group that is not there unless it is added, as a suite is.

    Args:
        typed: the words of the command line.
        schema: the settings of the command, a dataclass.
        folder: of the YAML groups.

    Returns:
        None where no such key was typed.
    """
    absent = {entry.name for entry in fields(schema) if entry.default is None}
    for key, group, _ in _within_groups(typed):
        if group in absent:
            options = _options(folder, group)
            adding = " or ".join(f"+{group}={option}" for option in options)
            return f"{key} would not be read without a {group}; add one: {adding}"
    return None


def key_of_options(typed: Sequence[str], schema: Any, folder: Path) -> str | None:
    """Words that a key was typed of a group that has options only, which set keys of others.

    Args:
        typed: the words of the command line.
        schema: the settings of the command, a dataclass.
        folder: of the YAML groups.

    Returns:
        None where no such key was typed.
    """
    groups = {entry.name: getattr(schema(), entry.name) for entry in fields(schema)}
    for key, group, leaf in _within_groups(typed):
        options = _options(folder, group)
        if options and group not in groups:
            holding = [name for name, inner in groups.items() if hasattr(inner, leaf)]
            meant = "".join(f"; did you mean {name}.{leaf}?" for name in holding[:1])
            return f"{key} is no key: {group} only takes {' or '.join(options)}{meant}"
    return None


def _within_groups(typed: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yields each key that was typed with a dot, what stands before the first one, and the rest."""
    for word in typed:
        key = word.lstrip("+~").partition("=")[0]
        group, dot, leaf = key.partition(".")
        if dot:
            yield key, group, leaf


def _options(folder: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (folder / group).glob("*.yaml"))


def _about_key(error: OmegaConfBaseException) -> str:
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | AttributeError):
        node = error.parent_node
        return _unknown_key(key, node if isinstance(node, DictConfig) else DictConfig({}))
    if isinstance(error, ValidationError) and "ListConfig" in str(error.msg):
        return f"wrong value for {key}: expected a list, such as {key}=[a,b]"
    if isinstance(error, ValidationError):
        return f"wrong value for {key}: {str(error.msg).splitlines()[0]}"
    return f"{key}: {_one_line(str(error.msg))}"
