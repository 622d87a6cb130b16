"""One table over all jobs of a multirun: ``summary.csv`` in the sweep's folder."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.metrics import short_titles
from llmroute_gym.runs.folder import FINISHED

SUMMARY_FILE = "summary.csv"
OVERRIDES_FILE = "overrides.yaml"
REFUSED_FILE = "refused.txt"
"""What was wrong with the input of a job."""
_SHOWN = ("e2e_mean_s", "e2e_p95_s", "e2e_p99_s", "ttft_p99_s")
_CHANGED = ("e2e_p95_s", "e2e_p99_s")


class Job(NamedTuple):
    """A finished job of a multirun."""

    name: str
    """Of its folder."""
    overrides: dict[str, str]
    """Key to value, as typed."""
    result: dict[str, str]
    """The policy's line of its ``comparison.csv``."""


class SweepSummary(Callback):
    """Hydra's hook: notes each job's overrides, and sums the jobs up when all have ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Notes what the job was started with, in its folder."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.runtime.output_dir)
        with complete_or_absent(folder / OVERRIDES_FILE) as part:
            part.write_text(yaml.safe_dump(list(config.hydra.overrides.task)), encoding="utf-8")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Notes where the jobs will be."""
        _SWEEPS.append(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes and prints the table."""
        report()


_SWEEPS: list[Path] = []
"""Folder of the multirun of this process, if there is one."""


def report() -> None:
    """Writes and prints the table of the jobs that have finished, if this is a multirun."""
    for folder in _SWEEPS:
        jobs = finished_jobs(folder)
        if jobs:
            varied = varied_keys(jobs)
            with complete_or_absent(folder / SUMMARY_FILE) as part:
                write_summary(jobs, varied, part)
            print(f"\n{summary_table(jobs, varied)}\n\nsummary: {folder / SUMMARY_FILE}")
        if refused := refused_jobs():
            print(f"refused: job {', '.join(refused)}; see their {REFUSED_FILE}")


def refused_jobs() -> list[str]:
    """Returns the jobs of this process's multirun that ended with a sentence and no result."""
    names = [noted.parent.name for folder in _SWEEPS for noted in folder.glob(f"*/{REFUSED_FILE}")]
    return sorted(names, key=lambda name: (len(name), name))


def finished_jobs(folder: Path) -> list[Job]:
    """Returns the jobs of a sweep's folder that have a comparison, by their numbers."""
    jobs = []
    for noted in folder.glob(f"*/{OVERRIDES_FILE}"):
        comparison = noted.parent / FINISHED
        if comparison.is_file():
            typed = [str(one).partition("=") for one in yaml.safe_load(noted.read_text("utf-8"))]
            overrides = {key.lstrip("+~"): value for key, _, value in typed}
            with comparison.open(newline="", encoding="utf-8") as file:
                jobs.append(Job(noted.parent.name, overrides, next(csv.DictReader(file))))
    return sorted(jobs, key=lambda job: (len(job.name), job.name))


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """Returns the overrides in which the jobs differ, in the order they were typed."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def write_summary(jobs: Sequence[Job], varied: Sequence[str], path: Path) -> None:
    """Writes one line per job: its number, what varies, and the policy's metrics."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["job", *varied, *jobs[0].result])
        for job in jobs:
            chosen = [job.overrides.get(key, "") for key in varied]
            writer.writerow([job.name, *chosen, *job.result.values()])


def summary_table(jobs: Sequence[Job], varied: Sequence[str]) -> str:
    """Lays the jobs out as text."""
    changed = [f"{title} change" for title in short_titles(_CHANGED)]
    lines = [["job", *varied, *short_titles(_SHOWN), *changed]]
    for job in jobs:
        numbers = [f"{float(job.result[name]):.2f}" for name in _SHOWN]
        changes = [_change(job.result, f"{name}_vs_baseline") for name in _CHANGED]
        chosen = [job.overrides.get(key, "") for key in varied]
        lines.append([job.name, *chosen, *numbers, *changes])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return (
        f"{text}\nThe trained policies, in seconds; change: against the baseline, with the "
        "interval over the requests of one training."
    )


def _change(result: dict[str, str], name: str) -> str:
    if not result.get(name):
        return ""
    value, low, high = (float(result[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):  # both infinite
        return "n/a"
    return f"{value:+.1%} ({low:+.1%}..{high:+.1%})"
