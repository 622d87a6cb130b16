"""The one folder that a command writes to: every result in it is complete or absent."""

import tempfile
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import yaml
from filelock import FileLock, Timeout

from llmroute_gym.config import Settings
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent

CONFIG_FILE = "config.yaml"
ALL_METRICS = "comparison_full.csv"
FINISHED = "comparison.csv"
"""Written last: a folder that holds it holds a finished run."""
STATE_FILE = "training_state.zip"
"""What an interrupted run goes on from; removed when the run is finished."""
MODEL_FILE = "model.zip"
HISTORY_FILE = "history.csv"
"""The candidates of a search; an interrupted one goes on from it."""
ROUTER_FILE = "router.yaml"
"""What a search has found, written last."""
PROFILE_FILE = "profile.yaml"
"""What a calibration has found, written last."""
CELLS_FOLDER = "cells"
"""What an interrupted suite goes on from; removed when the suite is finished."""
LOCK_FILE = ".in_use.lock"
"""Held by the process that writes to the folder; what a killed one leaves of it holds nobody up."""

Kind = TypeVar("Kind", bound=Settings)


class RunFolder:
    """A folder for a new run, or for one that goes on; within `with`, for this process alone.

    Args:
        path: created if need be.
        resuming: whether the interrupted run in it goes on.

    Raises:
        InputError: the folder cannot be written to, is in use by another run, or holds a finished
            or an interrupted one, which is kept.
    """

    def __init__(self, path: str | Path, *, resuming: bool = False) -> None:
        self.path = Path(path)
        self._resuming = resuming
        self._lock = FileLock(self.path / LOCK_FILE)
        self._check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise InputError(
                f"cannot write the run folder {self.path}: {error.strerror or error}; "
                "choose another with run_dir=FOLDER"
            ) from error

    def __enter__(self) -> Self:
        """Takes the folder."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"the run folder {self.path} is in use by another run; choose another with "
                "run_dir=FOLDER"
            ) from None
        try:
            self._check_free()  # whoever had it may have finished
        except InputError:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the folder to others."""
        self._release()

    def _release(self) -> None:
        with suppress(OSError):
            (self.path / LOCK_FILE).unlink(missing_ok=True)
        self._lock.release()

    def _check_free(self) -> None:
        if any((self.path / name).exists() for name in (FINISHED, ROUTER_FILE, PROFILE_FILE)):
            raise InputError(
                f"the run folder {self.path} already holds a finished run, which is kept; "
                "choose another with run_dir=FOLDER"
            )
        for kind, name in (("training", STATE_FILE), ("search", HISTORY_FILE)):
            if (self.path / name).exists() and not self._resuming:
                raise InputError(
                    f"the run folder {self.path} holds an interrupted {kind}, which is kept; go "
                    f"on with resume={self.path}, or choose another with run_dir=FOLDER"
                )
        if (self.path / MODEL_FILE).exists() and not self._resuming:
            raise InputError(
                f"the run folder {self.path} holds a trained policy, which is kept; compare it "
                f"with python -m llmroute_gym.evaluate checkpoint={self.path}, or choose another "
                "with run_dir=FOLDER"
            )

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Gives a temporary path that becomes the file ``name`` once it is written."""
        return complete_or_absent(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        with self.writing(name) as part:
            part.write_text(text, encoding="utf-8")

    def write_settings(self, settings: Settings) -> None:
        """Writes ``config.yaml`` with all settings in force."""
        self.write_text(CONFIG_FILE, settings_text(settings))


def settings_text(settings: Settings) -> str:
    """Returns settings as ``config.yaml`` holds them, each under its one full key."""
    named = {key: value for key, value in asdict(settings).items() if key not in settings.short}
    return yaml.safe_dump(named, sort_keys=False)


def read_settings(folder: Path, kind: type[Kind]) -> Kind:
    """Reads the ``config.yaml`` of a run.

    Args:
        folder: of the run.
        kind: the settings of its command.

    Raises:
        InputError: there is none, or it is not one of this version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{file} does not exist; give the folder of an interrupted run")
    try:
        stored = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(file))
        settings = cast(Kind, OmegaConf.to_object(stored))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(
            f"{file} holds no settings of this version's runs "
            f"({str(error).splitlines()[0]}); start the run anew"
        ) from error
    return settings.validate()
