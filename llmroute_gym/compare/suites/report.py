"""The run folder of a suite: what it goes on from, and the files that it ends with."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import yaml
from tqdm import tqdm

from llmroute_gym.compare.html.report import REPORT_FILE, write_report
from llmroute_gym.compare.report import cells
from llmroute_gym.compare.statistics import COLUMNS
from llmroute_gym.compare.suites.cells import LoadPolicy
from llmroute_gym.compare.suites.first_runs import suite_timelines
from llmroute_gym.compare.suites.launchers import check_launcher
from llmroute_gym.compare.suites.result import RATIOS, RESULTS_FILE, ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.running import SCENARIOS_FOLDER, Execution, entrants_of, run_suite
from llmroute_gym.compare.suites.scenarios import read_scenario
from llmroute_gym.compare.suites.text import suite_text
from llmroute_gym.config import EvaluateConfig, SuiteConfig
from llmroute_gym.runs.folder import CELLS_FOLDER, CONFIG_FILE, FINISHED, RunFolder


def report_suite(
    settings: EvaluateConfig, suite: SuiteConfig, load_policy: LoadPolicy
) -> SuiteResult:
    """Runs a suite, or what is left of one in the same folder; writes and prints what it found.

    Args:
        settings: of the command.
        suite: of them.
        load_policy: makes a router of a checkpoint.

    Raises:
        InputError: a setting is wrong, or the folder holds a finished run. Of a wrong router,
            scenario or launcher nothing is written.
    """
    scenarios = [read_scenario(one) for one in suite.scenarios]
    entrants_of(suite.routers, suite.baseline)
    check_launcher(settings.launcher)
    with RunFolder(settings.run_dir) as folder:
        begun = suite.date or _date_of(folder.path / CONFIG_FILE) or date.today().isoformat()
        suite = replace(suite, date=begun)
        folder.write_settings(replace(settings, suite=suite))
        with tqdm(desc=f"suite {suite.name}", unit="cell") as bar:

            def on_cell(total: int, done: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            execution = Execution(
                folder=folder.path,
                launcher=settings.launcher,
                workers=settings.workers,
                traces=settings.traces,
                load_policy=load_policy,
                on_cell=on_cell,
            )
            found = run_suite(suite, scenarios, settings.observation, execution)
        folder.write_text(RESULTS_FILE, found.to_json())
        shown = suite_timelines(found, suite, scenarios, settings.observation, execution)
        write_report(found, shown, folder.path)
        with folder.writing(FINISHED) as part:
            write_suite(found.scenarios, part)
        for name in (CELLS_FOLDER, SCENARIOS_FOLDER):
            shutil.rmtree(folder.path / name, ignore_errors=True)
    print(f"\n{suite_text(found)}\n\nresults: {folder.path}\nreport: {folder.path / REPORT_FILE}")
    return found


def _date_of(file: Path) -> str:
    """Returns when the suite was begun that goes on."""
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
        return str(held["suite"]["date"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def write_suite(scenarios: Sequence[ScenarioResult], path: Path) -> None:
    """Writes one line per scenario and router; an unstable one has its growth and nothing else."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["scenario", "load", "qps", "router", "growth_rps"]
        ratios = [f"{key}_vs_{other}" for other in ("baseline", "best") for key in RATIOS]
        for name in (*COLUMNS, *ratios):
            header += [name, f"{name}_low", f"{name}_high"]
        writer.writerow(header)
        for scenario in scenarios:
            load = "" if scenario.load is None else f"{scenario.load:g}"
            common = [scenario.name, load, f"{scenario.qps:.6g}"]
            for one in scenario.results:
                line = [*common, one.router, ""]
                for key in COLUMNS:
                    line += cells(one.metrics[key])
                for table in (scenario.ratio_to_baseline, scenario.ratio_to_best):
                    for key in RATIOS:
                        line += cells(table.get(key, {}).get(one.router))
                writer.writerow(line)
            for router, growth in scenario.unstable.items():
                blank = [""] * (len(header) - len(common) - 2)
                writer.writerow([*common, router, f"{growth:.6g}", *blank])
