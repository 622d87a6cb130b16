"""Which minutes of a suite the report shows: the baseline beside the best router."""

from collections.abc import Sequence
from pathlib import Path

from llmroute_gym.compare.cells import is_policy, slow_until
from llmroute_gym.compare.scenarios import Stage, settled
from llmroute_gym.compare.suite_result import ScenarioResult, SuiteResult
from llmroute_gym.compare.suites import entrants_of
from llmroute_gym.compare.timeline import Timeline, timeline
from llmroute_gym.config import ObservationConfig, ScenarioConfig, SuiteConfig
from llmroute_gym.routers import make

SHOWN = 3
"""Minutes, of as many scenarios."""
METRIC = "e2e_p99_s"
"""The best router is the best in it."""


def timelines(
    suite: SuiteConfig,
    scenarios: Sequence[ScenarioConfig],
    found: SuiteResult,
    observation: ObservationConfig,
    traces: str | Path,
) -> list[Timeline]:
    """Records the scenarios in which the best rule is furthest ahead of a stable baseline.

    A scenario with a view of its own is left out.

    Args:
        suite: of the settings.
        scenarios: that it names, as read.
        found: what it found.
        observation: what routers are told that do not ask for anything.
        traces: folder of the public traces.
    """
    entrants = entrants_of(suite.routers, suite.baseline)
    read = {one.name: one for one in scenarios if not one.view}
    ahead = []
    for result in found.scenarios:
        best = _best(result, [title for title, one in entrants.items() if not is_policy(one)])
        if best is not None and result.name in read:
            ratio = result.ratio_to_baseline[METRIC][best].value
            ahead.append((ratio, result.name, result.title, best))
    recorded = []
    for _, name, title, best in sorted(ahead)[:SHOWN]:
        scenario, _ = settled(read[name], traces)
        stage, evaluation = Stage.of(scenario), suite.evaluation(read[name])
        workload = stage.workload(0, evaluation)
        cluster = stage.replicas(0, evaluation, slow_until(workload))
        routers = {one: make(entrants[one]) for one in (suite.baseline, best)}
        recorded.append(timeline(name, title, routers, workload, cluster, evaluation, observation))
    return recorded


def _best(result: ScenarioResult, rules: Sequence[str]) -> str | None:
    """Returns the rule with the lowest ratio, if it is not the baseline."""
    ratios = result.ratio_to_baseline.get(METRIC, {})
    fair = [one for one in ratios if one in rules and one not in result.upper_bounds]
    best = min(fair, key=lambda one: ratios[one].value, default=None)
    return None if best == result.baseline or result.baseline not in rules else best
