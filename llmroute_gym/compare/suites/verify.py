"""Computing a published table again."""

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmroute_gym.compare.suites.leaderboard import scenario_table, settings_of
from llmroute_gym.compare.suites.result import RESULTS_FILE, ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.running import Execution, run_suite
from llmroute_gym.config import ObservationConfig, ScenarioConfig, Settings, SuiteConfig
from llmroute_gym.errors import InputError, checked_name

TOLERANCE = 1e-6
"""Relative difference up to which numbers of a results.json are equal: another machine's last
digits differ. A page has too few digits to show them."""

Group = TypeVar("Group", bound=Settings)


def verify(
    file: Path, wanted: Sequence[str], execution: Callable[[Path], Execution]
) -> tuple[list[str], list[str]]:
    """Computes a published file again.

    Args:
        file: a page of `leaderboard`, or a results.json.
        wanted: names of scenarios; none means all.
        execution: where and by whom, of a folder that is removed afterwards.

    Returns:
        The scenarios that were computed, and a sentence for each thing that differs.

    Raises:
        InputError: the file cannot be read or names no such scenario, or what it was made with is
            not at hand.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}; give a leaderboard "
            "or a results.json"
        ) from error
    published = SuiteResult.from_json(text, file) if file.suffix == ".json" else None
    suite, scenarios, observation = _made_with(
        published.settings if published else settings_of(text), file
    )
    for name in wanted:
        checked_name("scenario", name, [one.name for one in scenarios])
    missed = () if published is None else published.left_out
    scenarios = [one for one in scenarios if not wanted or one.name in wanted]
    scenarios = [one for one in scenarios if one.name not in missed]
    with tempfile.TemporaryDirectory() as folder:
        found = run_suite(suite, scenarios, observation, execution(Path(folder)))
    different: list[str] = []
    for one in found.scenarios:
        if published is None:
            different += _lines_apart(one, text)
        else:
            before = next(old for old in published.scenarios if old.name == one.name)
            different += numbers_apart(before, one)
    return [one.name for one in scenarios], different


def _made_with(
    held: object, file: Path
) -> tuple[SuiteConfig, list[ScenarioConfig], ObservationConfig]:
    """Returns the settings of a suite, of its scenarios, and what routers were told."""
    if not isinstance(held, Mapping) or not held.keys() >= {"suite", "observation"}:
        raise InputError(
            f"{file} holds no settings of a suite; give what python -m llmroute_gym.suite "
            f"leaderboard writes, or {RESULTS_FILE}"
        )
    suite = _settings(SuiteConfig, {**held["suite"], "leave_out": False})
    scenarios = [_settings(ScenarioConfig, one) for one in suite.scenarios]
    return (
        replace(suite, scenarios=[]),
        scenarios,
        _settings(ObservationConfig, held["observation"]),
    )


def _settings(kind: type[Group], held: Any) -> Group:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), held)
        return cast(Group, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(
            f"the file was made with settings that this version does not have "
            f"({str(error).splitlines()[0]}); verify it with the version that it names"
        ) from error


def _lines_apart(scenario: ScenarioResult, page: str) -> list[str]:
    """Returns what differs between a table as computed and the one of a page."""
    _, heading, rest = page.partition(f"\n## {scenario.name}\n")
    if not heading:
        return [f"{scenario.name}: the page has no such table"]
    stated = rest.partition("\n## ")[0]
    rows = {line.split("|")[1]: line for line in stated.splitlines() if line.startswith("| ")}
    computed = [line for line in scenario_table(scenario).splitlines() if line.startswith("| ")]
    apart = []
    for line in computed:
        there = rows.pop(line.split("|")[1], "nothing")
        if there != line:
            apart.append(f"{scenario.name}: {there} was published, {line} is computed")
    return apart + [f"{scenario.name}: {line} was published, nothing is computed" for line in rows]


def numbers_apart(before: ScenarioResult, now: ScenarioResult) -> list[str]:
    """Returns a sentence for each number of a scenario that differs."""
    old, new = (_flat("", json.loads(one.to_json())) for one in (before, now))
    return [
        f"{now.name}: {key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if not _equal(old.get(key), new.get(key))
    ]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
    return one == other


def _flat(key: str, value: object) -> dict[str, object]:
    """Returns every leaf under its full key."""
    members: Collection[tuple[object, object]]
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    else:
        return {key: value}
    flat: dict[str, object] = {}
    for name, one in members:
        flat |= _flat(f"{key}.{name}" if key else str(name), one)
    return flat
