"""The first run of every scenario of a suite, once more, to be looked at."""

from collections.abc import Sequence

from llmroute_gym.compare.suites.cells import Cell, inputs_of, outcomes_of, serve_cell
from llmroute_gym.compare.suites.result import ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.running import Execution, entrants_of
from llmroute_gym.compare.suites.scenarios import settled
from llmroute_gym.compare.suites.timeline import Timeline, side_by_side, timeline
from llmroute_gym.config import ObservationConfig, ScenarioConfig, SuiteConfig


def suite_timelines(
    found: SuiteResult,
    suite: SuiteConfig,
    scenarios: Sequence[ScenarioConfig],
    observation: ObservationConfig,
    execution: Execution,
) -> list[Timeline]:
    """Returns what the baseline and the best other router did in each scenario's first run.

    Args:
        found: by the suite.
        suite: its settings.
        scenarios: that it names, as read.
        observation: what routers are told that do not ask for anything.
        execution: where the traces are and who loads policies.

    Returns:
        One per scenario in which a router is stable.
    """
    entrants = entrants_of(suite.routers, suite.baseline)
    given = {one.name: one for one in scenarios}
    timelines = []
    for result in found.scenarios:
        routers = {title: entrants[title] for title in side_by_side(result)}
        if routers:
            one = given[result.name]
            timelines.append(_first_run(result, one, routers, suite, observation, execution))
    return timelines


def _first_run(
    result: ScenarioResult,
    given: ScenarioConfig,
    routers: dict[str, str],
    suite: SuiteConfig,
    observation: ObservationConfig,
    execution: Execution,
) -> Timeline:
    scenario, _ = settled(given, execution.traces)
    evaluation = suite.evaluation(given)
    cells = {
        title: Cell(scenario, evaluation, observation, router, first=0, runs=1)
        for title, router in routers.items()
    }
    outcomes = {
        title: outcomes_of(serve_cell(cell, execution.load_policy))[0]
        for title, cell in cells.items()
    }
    (workload,), (cluster,) = inputs_of(next(iter(cells.values())))
    words = result.detail or result.title
    return timeline(result.name, words, outcomes, workload, cluster, engine=evaluation.engine)
