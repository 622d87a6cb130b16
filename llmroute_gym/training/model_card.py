"""What the folder of a run says of the policy in it, for the card of an exported one."""

import csv
from pathlib import Path
from typing import Any, Final

import yaml

from llmroute_gym.runs.folder import CONFIG_FILE, FINISHED

TOLD: Final = ("cluster", "workload", "training", "reward", "seed")
"""Settings of a run that say what a policy was trained for."""


def model_card(run: Path) -> dict[str, Any]:
    """Returns what is known of a training: its settings, and what its comparison found.

    Args:
        run: the folder of the run, or a file of a policy, of which nothing more is known.
    """
    card: dict[str, Any] = {"run": run.name}
    settings, compared = run / CONFIG_FILE, run / FINISHED
    if settings.is_file():
        stored = yaml.safe_load(settings.read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            card["settings"] = {key: stored[key] for key in TOLD if key in stored}
    if compared.is_file():
        with compared.open(newline="", encoding="utf-8") as file:
            card["comparison"] = [dict(line) for line in csv.DictReader(file)]
    return card
