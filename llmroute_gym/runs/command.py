"""What the commands share: Hydra around a function of settings, and how wrong input ends."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from llmroute_gym.config import (
    CollectDemosConfig,
    EvaluateConfig,
    PretrainConfig,
    TrainConfig,
    given_twice,
)
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.runs import sweep
from llmroute_gym.runs.folder import MODEL_FILE, STATE_FILE
from llmroute_gym.runs.sweep import REFUSED_FILE

WRONG_INPUT = 2
INTERRUPTED = 130

Config = TypeVar("Config", TrainConfig, EvaluateConfig, CollectDemosConfig, PretrainConfig)

SCHEMAS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect_demos": CollectDemosConfig,
    "pretrain": PretrainConfig,
}
"""Command to its settings."""


def config_dir() -> Path:
    """The folder of the YAML groups: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Makes the dataclasses the schemas that the YAML files are checked against."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)


def run_command(name: str, function: Callable[[Config], object]) -> None:
    """Runs a function on the settings of the command line, once or for each job of ``-m``.

    Wrong input ends the process with exit code 2 and one sentence on standard error. Of several
    jobs the others still run, and those that finished are summed up.

    Args:
        name: of the command, which is also that of its YAML file in ``conf/``.
        function: called with the validated settings; a sweep may minimise the number it returns.
    """
    register_schemas()
    # Without it Hydra prints its own text and exits with 1; "0" would still mean the same.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    refused: list[str] = []

    def job(composed: DictConfig) -> object:
        settings = None
        try:
            (_output_dir() / REFUSED_FILE).unlink(missing_ok=True)
            _reject_added_keys(composed)
            _reject_twice(SCHEMAS[name].short)
            settings = cast(Config, OmegaConf.to_object(composed))
            if not settings.run_dir.strip():
                raise InputError("run_dir is empty; name a folder, such as run_dir=runs/mine")
            settings.run_dir = str(_output_dir())
            settings.validate()
            return function(settings)
        except (InputError, OmegaConfBaseException) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                refused.append(sentence(error))
                print(f"job {HydraConfig.get().job.num}: {refused[-1]}", file=sys.stderr)
                with complete_or_absent(_output_dir() / REFUSED_FILE) as part:
                    part.write_text(f"{refused[-1]}\n", encoding="utf-8")
                return math.nan
            _remove_empty_folder()
            _exit(error)
        except KeyboardInterrupt:
            print(f"\n{_how_to_go_on(settings)}", file=sys.stderr)
            raise
        except Exception:
            # Hydra would add a line of its own to a traceback that is complete.
            traceback.print_exc()
            raise SystemExit(1) from None

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    try:
        main(job)()
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        _exit(error)
    except KeyboardInterrupt:
        sweep.report()
        raise SystemExit(INTERRUPTED) from None
    if refused or sweep.refused_jobs():
        raise SystemExit(WRONG_INPUT)


def typed_overrides() -> list[str]:
    """Returns what the command line sets, as typed; nothing where no command runs."""
    if not HydraConfig.initialized():
        return []
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    return list(overrides["task"])


def run_dir_is_typed() -> bool:
    """Whether the command line names the run's folder; else Hydra has made one."""
    return any(one.startswith("run_dir=") for one in typed_overrides())


def _remove_empty_folder() -> None:
    """Removes what Hydra has made for a run that was refused, unless it was asked for by name."""
    if not run_dir_is_typed():
        with suppress(OSError):  # there is something in it
            _output_dir().rmdir()
            _output_dir().parent.rmdir()


def _output_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _how_to_go_on(settings: Any) -> str:
    folder = getattr(settings, "resume", None) or getattr(settings, "run_dir", None)
    if folder is not None and (Path(folder) / STATE_FILE).is_file():
        return f"interrupted; go on with resume={folder}"
    if folder is not None and (Path(folder) / MODEL_FILE).is_file():
        return (
            "interrupted; the policy is learned, compare it with "
            f"python -m llmroute_gym.evaluate checkpoint={folder}"
        )
    return "interrupted; there is nothing yet to go on from"


def _exit(error: Exception) -> NoReturn:
    print(sentence(error), file=sys.stderr)
    raise SystemExit(WRONG_INPUT) from None


def sentence(error: Exception) -> str:
    """Words an error of ours, of Hydra, of OmegaConf or of the file system as one sentence."""
    if isinstance(error, InputError):
        return error.command_sentence
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return str(unknown_name(f"option of {group}", option, error.options))
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return (
            f"cannot write the run folder {error.filename}: {error.strerror}; "
            "choose another with run_dir=FOLDER"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _about_key(cause)
    return " ".join(str(error).split())


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
    return isinstance(inner, DictConfig) and leaf in inner


def _reject_added_keys(node: DictConfig, prefix: str = "") -> None:
    """Raises InputError for keys that ``+key=`` added to a schema, which nothing would read."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    names = {entry.name for entry in fields(schema)}
    for name in map(str, node):
        if name not in names:
            raise InputError(_unknown_key(f"{prefix}{name}", node))
        if OmegaConf.is_dict(node) and isinstance(node._get_node(name), DictConfig):
            _reject_added_keys(node[name], f"{prefix}{name}.")


def _reject_twice(short: Mapping[str, str]) -> None:
    """Raises InputError for a setting that was typed under both of its keys, differently."""
    typed = dict(one.split("=", 1) for one in typed_overrides() if "=" in one)
    for key, full_key in short.items():
        if key in typed and typed.get(full_key, typed[key]) != typed[key]:
            raise given_twice(key, typed[key], full_key, typed[full_key])


def _about_key(error: OmegaConfBaseException) -> str:
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | AttributeError):
        node = error.parent_node
        return _unknown_key(key, node if isinstance(node, DictConfig) else DictConfig({}))
    if isinstance(error, ValidationError) and "ListConfig" in str(error.msg):
        return f"wrong value for {key}: expected a list, such as {key}=[a,b]"
    if isinstance(error, ValidationError):
        return f"wrong value for {key}: {str(error.msg).splitlines()[0]}"
    return f"{key}: {' '.join(str(error.msg).split())}"
