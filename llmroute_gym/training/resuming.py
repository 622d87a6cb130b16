"""Whether an interrupted run can go on, and with which settings."""

from contextlib import suppress
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import run_dir_is_typed, typed_overrides
from llmroute_gym.runs.folder import (
    CONFIG_FILE,
    FINISHED,
    STATE_FILE,
    read_training_settings,
    settings_text,
)


def interrupted(settings: TrainConfig) -> TrainConfig:
    """Returns the settings of the run that is to be resumed.

    Raises:
        InputError: there is no such run, it is finished, or other settings were given too.
    """
    assert settings.resume is not None
    folder = Path(settings.resume)
    if not settings.resume.strip():
        raise InputError("resume is empty; give the folder of an interrupted run")
    if not folder.is_dir():
        raise InputError(f"resume={folder} is no folder; give the folder of an interrupted run")
    if (folder / FINISHED).exists():
        raise InputError(f"resume={folder}: the run is finished, there is nothing to go on with")
    stored = read_training_settings(folder)
    known, given, default = (_flat(asdict(one)) for one in (stored, settings, TrainConfig()))
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


def with_whole_paths(settings: TrainConfig) -> TrainConfig:
    """Returns the settings with paths that hold in every folder, for whoever goes on elsewhere."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    workload, start = settings.workload, settings.warm_start
    return replace(
        settings,
        workload=replace(workload, path=whole(workload.path)),
        warm_start=replace(start, checkpoint=whole(start.checkpoint), demos=whole(start.demos)),
    )


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


def noted(settings: TrainConfig) -> str:
    """Returns what is noted in a training state of the settings that it belongs to."""
    return settings_text(replace(settings, run_dir="", resume=None))


def check_state(settings: TrainConfig) -> None:
    """Checks that there is a training state, and of these settings.

    Args:
        settings: of the run, as its ``config.yaml`` has them.

    Raises:
        InputError: there is none, or it belongs to other settings.
    """
    # Slow to import: only once there is something to go on with.
    from llmroute_gym.sb3.resume import training_note

    folder = Path(settings.run_dir)
    file = folder / STATE_FILE
    if not file.is_file():
        raise InputError(
            f"resume={folder}: there is no {STATE_FILE}, the run has not come to PPO or has ended; "
            "start it anew"
        )
    before, now = (text.splitlines() for text in (training_note(file), noted(settings)))
    for was, line in zip_longest(before, now, fillvalue="nothing"):
        if was != line:
            raise InputError(
                f"{folder / CONFIG_FILE} has changed since the training began: "
                f"{was.strip()} became {line.strip()}; change it back, or start a new run"
            )
