"""A suite from its settings to its results, cell by cell, so that it can be killed anywhere."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from llmroute_gym.compare.suites.cells import Cell, CellStore, LoadPolicy, is_policy, serve_cell
from llmroute_gym.compare.suites.launchers import launched
from llmroute_gym.compare.suites.result import ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.scenarios import BuiltScenario, Rate, settled
from llmroute_gym.compare.suites.summary import summed_up
from llmroute_gym.config import (
    EvaluationConfig,
    ObservationConfig,
    ScenarioConfig,
    SuiteConfig,
    check_distinct,
)
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.rules import rule_title
from llmroute_gym.ground.version import __version__
from llmroute_gym.routers import Router, make
from llmroute_gym.runs.folder import CELLS_FOLDER

SCENARIOS_FOLDER = "scenarios"
"""What is known of the scenarios whose cells are finished."""


@dataclass(frozen=True)
class Execution:
    """Where and by whom a suite is run; none of it changes what is found.

    Attributes:
        folder: of what is finished.
        launcher: ``joblib`` or ``ray``.
        workers: processes.
        traces: folder of the public traces.
        load_policy: makes a router of a checkpoint.
        on_cell: called with how many cells there are in all and how many are finished.
    """

    folder: Path
    launcher: str = "joblib"
    workers: int = 1
    traces: str | Path = "."
    load_policy: LoadPolicy | None = None
    on_cell: Callable[[int, int], object] = lambda total, done: None


def entrants_of(routers: Sequence[str], baseline: str) -> dict[str, str]:
    """Returns what tables call each router, to the text or path that it is.

    Raises:
        InputError: a rule is unknown or has a wrong option, two are called alike, or the baseline
            is not among them.
    """
    titles = [_policy_title(one) if is_policy(one) else rule_title(one) for one in routers]
    check_distinct("suite.routers", titles)
    for one in routers:
        if not is_policy(one):
            make(one)
        elif not Path(one).is_file():
            raise InputError(f"suite.routers names {one}, which is no file; give a model.zip")
    if baseline not in titles:
        raise unknown_name("suite.baseline", baseline, titles)
    return dict(zip(titles, routers, strict=True))


def _policy_title(path: str) -> str:
    file = Path(path)
    return file.parent.name if file.stem == "model" and file.parent.name else file.stem


def upper_bounds(entrants: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the entrants that say so, or ask to be told what no router can know."""
    rules = {title: make(one) for title, one in entrants.items() if not is_policy(one)}
    return tuple(title for title, rule in rules.items() if _knows_too_much(rule))


def _knows_too_much(rule: Router) -> bool:
    told = rule.observation
    return rule.upper_bound or (told is not None and told.information == "oracle")


@dataclass(frozen=True)
class _Task:
    """A scenario that is to be run, and its cells."""

    given: ScenarioConfig
    scenario: ScenarioConfig
    rate: Rate
    evaluation: EvaluationConfig
    cells: Mapping[str, Sequence[Cell]]
    """Of each router."""

    def file(self, folder: Path) -> Path:
        """Returns where its result stands, named by all that it depends on."""
        keys = [cell.key() for cells in self.cells.values() for cell in cells]
        told = [asdict(self.given), asdict(self.evaluation), list(self.cells), sorted(keys)]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        return folder / SCENARIOS_FOLDER / f"{self.given.name}-{digest.hexdigest()[:16]}.json"


def run_suite(
    suite: SuiteConfig,
    scenarios: Sequence[ScenarioConfig],
    observation: ObservationConfig,
    execution: Execution,
) -> SuiteResult:
    """Runs what is not finished yet of a suite.

    Args:
        suite: routers, runs, seed and statistics.
        scenarios: that it names, as read.
        observation: what routers are told that do not ask for anything.
        execution: where and by whom.

    Returns:
        The same whatever ran it, and however often it was interrupted.

    Raises:
        InputError: a setting is wrong, or a trace is absent and not to be left out.
    """
    entrants = entrants_of(suite.routers, suite.baseline)
    check_distinct("suite.scenarios", [one.name for one in scenarios], "scenario")
    tasks: list[_Task] = []
    left_out: dict[str, str] = {}
    for given in scenarios:
        try:
            scenario, rate = settled(given, execution.traces)
        except InputError as error:
            if not suite.leave_out or given.trace is None:
                raise
            left_out[given.name] = str(error)
            continue
        evaluation = suite.evaluation(given)
        BuiltScenario.of(scenario).check(evaluation)
        cells = {
            title: [
                Cell(scenario, evaluation, observation, router, first, runs)
                for first, runs in _blocks(evaluation.runs, suite.block)
            ]
            for title, router in entrants.items()
        }
        tasks.append(_Task(given, scenario, rate, evaluation, cells))
    results = _finished(tasks, entrants, execution)
    settings = {
        "suite": asdict(suite) | {"scenarios": [asdict(one) for one in scenarios]},
        "observation": asdict(observation),
    }
    return SuiteResult(
        name=suite.name,
        version=__version__,
        date=suite.date,
        seed=suite.seed,
        confidence=suite.confidence,
        routers=tuple(entrants),
        scenarios=tuple(results),
        left_out=left_out,
        settings=settings,
    )


def _blocks(runs: int, block: int) -> list[tuple[int, int]]:
    return [(first, min(block, runs - first)) for first in range(0, runs, block)]


def _finished(
    tasks: Sequence[_Task], entrants: Mapping[str, str], execution: Execution
) -> list[ScenarioResult]:
    """Runs the cells that are missing, and sums each scenario up once it has all of them."""
    kept = CellStore(execution.folder / CELLS_FOLDER)
    files = [task.file(execution.folder) for task in tasks]
    going = [place for place, file in enumerate(files) if not file.is_file()]
    cells = [
        (place, cell) for place in going for one in tasks[place].cells.values() for cell in one
    ]
    missing = [(place, cell) for place, cell in cells if not kept.has(cell)]
    left = {place: sum(one == place for one, _ in missing) for place in going}

    def sum_up(place: int) -> None:
        task = tasks[place]
        outcomes = {title: partial(kept.outcomes, one) for title, one in task.cells.items()}
        settled_task = (task.given, task.scenario, task.rate, task.evaluation)
        result = summed_up(*settled_task, outcomes, upper_bounds(entrants))
        with complete_or_absent(files[place]) as part:
            part.write_text(result.to_json(), encoding="utf-8")
        kept.forget([cell for one in task.cells.values() for cell in one])

    for place in going:
        if not left[place]:
            sum_up(place)
    work = partial(serve_cell, load_policy=execution.load_policy)
    todo = [cell for _, cell in missing]
    done = len(cells) - len(missing)
    execution.on_cell(len(cells), done)
    for index, content in launched(execution.launcher, execution.workers, work, todo):
        place, cell = missing[index]
        kept.keep(cell, content)
        done += 1
        execution.on_cell(len(cells), done)
        left[place] -= 1
        if not left[place]:
            sum_up(place)
    return [ScenarioResult.from_json(file.read_text(encoding="utf-8")) for file in files]
