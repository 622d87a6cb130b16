"""What the commands share: Hydra around a function of settings, and how wrong input ends."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmroute_gym.config import (
    CalibrateConfig,
    CollectDemosConfig,
    EvaluateConfig,
    MockEngineConfig,
    PretrainConfig,
    SearchConfig,
    TrainConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.interrupts import due_to_interrupt, end_interrupted
from llmroute_gym.runs import sweep
from llmroute_gym.runs.folder import HISTORY_FILE, MODEL_FILE, STATE_FILE
from llmroute_gym.runs.sentences import (
    NO_ROOM,
    key_of_no_group,
    key_of_options,
    reject_added_keys,
    reject_twice,
    sentence,
)
from llmroute_gym.runs.streams import to_people
from llmroute_gym.runs.sweep import REFUSED_FILE

WRONG_INPUT = 2

Config = TypeVar(
    "Config",
    TrainConfig,
    EvaluateConfig,
    CollectDemosConfig,
    PretrainConfig,
    SearchConfig,
    MockEngineConfig,
    CalibrateConfig,
)

SCHEMAS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect_demos": CollectDemosConfig,
    "pretrain": PretrainConfig,
    "search": SearchConfig,
    "calibrate": CalibrateConfig,
    "mock_engine": MockEngineConfig,
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
    told: list[str] = []

    def job(composed: DictConfig) -> object:
        settings = None
        try:
            (_output_dir() / REFUSED_FILE).unlink(missing_ok=True)
            settings = _checked(name, composed)
            return function(cast(Config, settings))
        except (InputError, OmegaConfBaseException) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                refused.append(sentence(error))
                _note_refusal(refused[-1])
                return math.nan
            _remove_empty_folder()
            _exit(sentence(error))
        except KeyboardInterrupt:
            told.append(_how_to_go_on(settings))
            raise
        except Exception as error:
            if due_to_interrupt(error):
                told.append(_how_to_go_on(settings))
                raise KeyboardInterrupt from None
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                error.filename = error.filename or str(_output_dir())
                _exit(sentence(error))
            # Hydra would add a line of its own to a traceback that is complete.
            traceback.print_exc()
            raise SystemExit(1) from None

    _run(name, job, told)
    if refused or sweep.refused_jobs():
        raise SystemExit(WRONG_INPUT)


def _run(name: str, job: Callable[[DictConfig], object], told: Sequence[str]) -> None:
    """Lets Hydra compose the settings and run the job, and ends with a sentence where it cannot.

    Args:
        name: of the command.
        job: called with the settings.
        told: how to go on after an interrupt, once a job has said so.
    """
    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    with to_people():
        try:
            main(job)()
            sys.stdout.flush()
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            _exit(key_of_options(sys.argv[1:], SCHEMAS[name], config_dir()) or sentence(error))
        except AssertionError:
            # Hydra asserts that what a key belongs to is there.
            if (words := key_of_no_group(sys.argv[1:], SCHEMAS[name], config_dir())) is None:
                raise
            _exit(words)
        except KeyboardInterrupt:
            sweep.report()
            end_interrupted(told[-1] if told else _how_to_go_on(None))


def _checked(name: str, composed: DictConfig) -> Any:
    """Returns the settings of a job, in range, for its own folder."""
    reject_added_keys(composed)
    typed = dict(one.split("=", 1) for one in typed_overrides() if "=" in one)
    reject_twice(typed, SCHEMAS[name].short)
    settings: Any = OmegaConf.to_object(composed)
    if not settings.run_dir.strip():
        raise InputError("run_dir is empty; name a folder, such as run_dir=runs/mine")
    settings.run_dir = str(_output_dir())
    return settings.validate()


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
    if not run_dir_is_typed() and _output_dir() != Path.cwd():
        with suppress(OSError):  # there is something in it
            _output_dir().rmdir()
            _output_dir().parent.rmdir()


def _note_refusal(words: str) -> None:
    """Says of a job of several that it was refused, there and in its folder."""
    print(f"job {HydraConfig.get().job.num}: {words}", file=sys.stderr)
    with complete_or_absent(_output_dir() / REFUSED_FILE) as part:
        part.write_text(f"{words}\n", encoding="utf-8")


def _output_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _how_to_go_on(settings: Any) -> str:
    folder = getattr(settings, "resume", None) or getattr(settings, "run_dir", None)
    left = (STATE_FILE, HISTORY_FILE)
    if folder is not None and any((Path(folder) / name).is_file() for name in left):
        return f"interrupted; go on with resume={folder}"
    if folder is not None and (Path(folder) / MODEL_FILE).is_file():
        return (
            "interrupted; the policy is learned, compare it with "
            f"python -m llmroute_gym.evaluate checkpoint={folder}"
        )
    return "interrupted; there is nothing yet to go on from"


def _exit(words: str) -> NoReturn:
    print(words, file=sys.stderr)
    raise SystemExit(WRONG_INPUT) from None
