"""Whether an interrupted training can go on."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.rules import FILES
from llmroute_gym.runs.folder import CONFIG_FILE, STATE_FILE, settings_text


def with_whole_paths(settings: TrainConfig) -> TrainConfig:
    """Returns the settings with paths that hold in every folder, for whoever goes on elsewhere."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    def places(scenarios: Sequence[Any]) -> list[Any]:
        return [whole(one) if str(one).endswith(FILES) else one for one in scenarios]

    workload, start, domains = settings.workload, settings.warm_start, settings.domains
    if domains.scenarios or domains.kept_by:
        domains = replace(
            domains,
            traces=str(Path(domains.traces).absolute()),
            scenarios=places(domains.scenarios),
            kept_by=places(domains.kept_by),
        )
    return replace(
        settings,
        domains=domains,
        workload=replace(workload, path=whole(workload.path)),
        warm_start=replace(start, checkpoint=whole(start.checkpoint), demos=whole(start.demos)),
    )


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
