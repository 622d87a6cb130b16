"""What a suite found, as text for a terminal."""

import math

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.compare.suites.result import ScenarioResult, SuiteResult
from llmroute_gym.compare.text import aligned
from llmroute_gym.ground.metrics import METRICS

SHOWN = ("e2e_p99_s", "ttft_p99_s")
"""Metrics whose ratios are shown."""


def suite_text(suite: SuiteResult) -> str:
    """Lays a suite out: a table per scenario, and below it who is unstable."""
    parts = [_scenario_text(one) for one in suite.scenarios]
    parts += [f"{name} was left out: {reason}" for name, reason in suite.left_out.items()]
    return "\n\n".join(parts)


def compared_with(scenario: ScenarioResult) -> tuple[str, dict[str, dict[str, Estimate]]]:
    """Returns what the ratios that are shown refer to, and metric to router to ratio.

    The baseline, or the best router where the baseline is unstable.
    """
    if scenario.ratio_to_baseline:
        return scenario.baseline, {k: dict(v) for k, v in scenario.ratio_to_baseline.items()}
    return "the best", {k: dict(v) for k, v in scenario.ratio_to_best.items()}


def interval(one: Estimate | None, digits: int = 2) -> str:
    """Words a ratio with its interval, in square brackets."""
    if one is None or math.isnan(one.value):
        return "n/a"
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def _scenario_text(scenario: ScenarioResult) -> str:
    other, ratios = compared_with(scenario)
    lines = [["router"]]
    for key in SHOWN:
        lines[0] += [f"{METRICS[key].title} (s)", f"vs {other}"]
    for one in scenario.results:
        mark = "*" if one.router in scenario.upper_bounds else ""
        line = [f"{one.router}{mark}"]
        for key in SHOWN:
            line += [f"{one.metrics[key].value:.3g}", interval(ratios[key].get(one.router))]
        lines.append(line)
    text = [f"{scenario.name}: {scenario.title}", scenario.detail]
    if scenario.results:
        text.append(aligned(lines))
    text += [f"{router} is {unstable_words(g)}" for router, g in scenario.unstable.items()]
    if scenario.upper_bounds:
        text.append("* knows what no router can know")
    return "\n".join(text)


def unstable_words(growth: float) -> str:
    """Says that a queue grows."""
    return f"unstable: its queue grows by {growth:.3g} requests/s"
