"""Settings of a process that serves: one YAML file, and keys of the command line on top."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmroute_gym.config import Settings
from llmroute_gym.errors import InputError, shown
from llmroute_gym.runs.command import WRONG_INPUT
from llmroute_gym.runs.sentences import reject_added_keys, sentence

Config = TypeVar("Config", bound=Settings)


def read_settings(schema: type[Config], path: str | Path, typed: Sequence[str] = ()) -> Config:
    """Returns valid settings.

    Args:
        schema: their dataclass.
        path: of a YAML file.
        typed: ``key=value`` each, which win over the file.

    Raises:
        InputError: the file cannot be read, or a key or value is wrong.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it holds no text"
        raise InputError(f"cannot read {path}: {reason}; name a YAML file of settings") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = "" if where is None else f", line {where.line + 1}"
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise InputError(f"{path}{line}: {problem}; mend it") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} must hold keys and values, got {shown(given)}")
    for one in typed:
        if "=" not in one:
            raise InputError(f"cannot read {one}; write key=value after the file")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(schema), OmegaConf.create(given), _typed(typed)
        )
        assert isinstance(merged, DictConfig)
        reject_added_keys(merged)
        settings: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(sentence(error)) from error
    except yaml.YAMLError as error:
        raise InputError(f"cannot read {' '.join(typed)}; quote special characters") from error
    assert isinstance(settings, schema)
    return settings.validate()


def run_service(schema: type[Config], serve: Callable[[Config], None], usage: str) -> None:
    """Runs a process that serves by the settings of the command line.

    Wrong input ends the process with exit code 2 and one sentence on standard error.

    Args:
        schema: the dataclass of its settings.
        serve: serves until it is told to end.
        usage: how it is called.
    """
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(usage)
        return
    if not words or "=" in words[0]:
        _exit(usage)
    try:
        serve(read_settings(schema, words[0], words[1:]))
    except InputError as error:
        _exit(error.command_sentence)


def _typed(words: Sequence[str]) -> DictConfig:
    typed = OmegaConf.from_dotlist(list(words))
    assert isinstance(typed, DictConfig)
    return typed


def _exit(words: str) -> NoReturn:
    print(words, file=sys.stderr)
    raise SystemExit(WRONG_INPUT)
