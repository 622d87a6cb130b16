"""A suite's results as Markdown that can be published, and checked line by line."""

import json
import math
from contextlib import suppress
from pathlib import Path

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.compare.suites.result import ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.text import SHOWN, compared_with, interval, unstable_words
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.metrics import METRICS

SETTINGS = "<!-- settings: "
"""Begins the line that holds all that the tables were made with."""
END = " -->"
MARKERS = ("<!-- leaderboard -->", "<!-- end of the leaderboard -->")
"""Between them stands the table of a README."""


def leaderboard(suite: SuiteResult) -> str:
    """Returns the page: a table per scenario, and what it takes to compute them again."""
    stated = (
        f"Suite `{suite.name}` of llmroute_gym {suite.version}, {suite.date}, seed {suite.seed}. "
        f"Ratios of P99 latencies with {suite.confidence:.0%} intervals (paired bootstrap over "
        "runs); less is better. **Bold**: not significantly worse than the best. An unstable "
        "router's queue grows all through the runs; it has no latency to speak of."
    )
    parts = ["# Leaderboard", stated, summary_table(suite)]
    for one in suite.scenarios:
        parts += [f"## {one.name}", scenario_table(one)]
    parts += [f"`{name}` was left out: {reason}" for name, reason in suite.left_out.items()]
    again = "`python -m llmroute_gym.suite verify FILE` computes this page again."
    held = json.dumps(suite.settings, sort_keys=True)
    return "\n\n".join([*parts, again, f"{SETTINGS}{held}{END}"]) + "\n"


def scenario_table(scenario: ScenarioResult) -> str:
    """Returns the table of one scenario."""
    other, ratios = compared_with(scenario)
    load = "" if scenario.load is None else f", {scenario.load:.0%} of its capacity"
    words = (
        f"{scenario.title}: {scenario.detail}{load}; {scenario.runs} runs of "
        f"{scenario.requests:,} requests. Ratios to {other}."
    )
    lines = [["router", *(f"{METRICS[key].title}, ratio" for key in SHOWN)]]
    for one in scenario.results:
        mark = " (upper bound)" if one.router in scenario.upper_bounds else ""
        cells = []
        for key in SHOWN:
            text = interval(ratios[key].get(one.router))
            cells.append(f"**{text}**" if is_winner(scenario, key, one.router) else text)
        lines.append([f"{one.router}{mark}", *cells])
    lines += [[router, unstable_words(growth), ""] for router, growth in scenario.unstable.items()]
    return f"{words}\n\n{_markdown(lines)}"


def is_winner(scenario: ScenarioResult, key: str, router: str) -> bool:
    """Whether no stable router, upper bounds aside, is significantly better in a metric."""
    ratio = scenario.ratio_to_best.get(key, {}).get(router)
    return ratio is not None and router not in scenario.upper_bounds and ratio.low <= 1


def summary_table(suite: SuiteResult) -> str:
    """Returns one line per router: over how many scenarios it wins, fails, and its mean ratios.

    The mean is geometric, over the scenarios in which the router and the baseline are stable.
    """
    lines = [["router", "wins", "unstable", *(f"{METRICS[key].title}, mean" for key in SHOWN)]]
    for router in suite.routers:
        wins = sum(is_winner(one, SHOWN[0], router) for one in suite.scenarios)
        unstable = sum(router in one.unstable for one in suite.scenarios)
        means = [
            _geometric(
                [
                    one.ratio_to_baseline[key][router]
                    for one in suite.scenarios
                    if router in one.ratio_to_baseline.get(key, {})
                ]
            )
            for key in SHOWN
        ]
        lines.append([router, str(wins), str(unstable), *means])
    words = (
        f"Of {len(suite.scenarios)} scenarios: in how many no router has a significantly lower "
        f"{METRICS[SHOWN[0]].title}, in how many the router is unstable, and the geometric mean "
        "of its ratios to the baseline in those where both are stable."
    )
    return f"{words}\n\n{_markdown(lines)}"


def _geometric(ratios: list[Estimate]) -> str:
    values = [one.value for one in ratios]
    if not values or not all(0 < value < math.inf for value in values):
        return "n/a"
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}"


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def write_readme(suite: SuiteResult, path: Path) -> None:
    """Replaces what stands between the markers of a README.

    Raises:
        InputError: it cannot be read or written, or has no markers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path}: {error}; name a README with --readme FILE"
        ) from error
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise InputError(
            f"{path} has no place for the table; write the lines {MARKERS[0]} and {MARKERS[1]}"
        )
    stated = f"{suite.date}, version {suite.version}, seed {suite.seed}."
    table = f"{MARKERS[0]}\n{stated} {summary_table(suite)}\n"
    with complete_or_absent(path) as part:
        part.write_text(text[:begin] + table + text[end:], encoding="utf-8")


def settings_of(page: str) -> object:
    """Returns the settings that a page holds, None where there are none."""
    for line in page.splitlines():
        if line.startswith(SETTINGS) and line.endswith(END):
            with suppress(ValueError):
                return json.loads(line.removeprefix(SETTINGS).removesuffix(END))
    return None
