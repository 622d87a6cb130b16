"""With which settings an interrupted run goes on."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from llmroute_gym.config import SearchConfig, TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import run_dir_is_typed, typed_overrides
from llmroute_gym.runs.folder import FINISHED, ROUTER_FILE, read_settings

Resumable = TypeVar("Resumable", TrainConfig, SearchConfig)


def resumed(settings: Resumable) -> Resumable:
    """Returns the settings of the run that is to be resumed; as they are where none is.

    Raises:
        InputError: there is no such run, it is finished, or other settings were given too.
    """
    if settings.resume is None:
        return settings
    folder = Path(settings.resume)
    if not settings.resume.strip():
        raise InputError("resume is empty; give the folder of an interrupted run")
    if not folder.is_dir():
        raise InputError(f"resume={folder} is no folder; give the folder of an interrupted run")
    if any((folder / name).exists() for name in (FINISHED, ROUTER_FILE)):
        raise InputError(f"resume={folder}: the run is finished, there is nothing to go on with")
    stored = read_settings(folder, type(settings))
    known, given, default = (_flat(asdict(one)) for one in (stored, settings, type(settings)()))
    for key in sorted(set(known) - {"run_dir", "resume"}):
        unsaid = given[key] == default[key] and not _typed_settings()
        if given[key] != known[key] and not unsaid:
            raise InputError(
                f"resume={folder} goes on with {key}={known[key]}, got {given[key]}; give no other "
                "settings, or start a new run"
            )
    if Path(settings.run_dir).resolve() != folder.resolve():
        if run_dir_is_typed():
            raise InputError(
                f"resume={folder} goes on in its own folder, got run_dir={settings.run_dir}; leave "
                "run_dir out"
            )
        # Made for this command by Hydra, which did not know where it would write.
        with suppress(OSError):
            Path(settings.run_dir).rmdir()
    return replace(stored, run_dir=str(folder.absolute()), resume=str(folder))


def _typed_settings() -> list[str]:
    """Returns what the command line sets beside where to resume; nothing where there is none."""
    return [one for one in typed_overrides() if one.partition("=")[0] not in ("resume", "run_dir")]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and prefix.count(".") == 0:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
