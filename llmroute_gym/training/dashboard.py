"""The picture of a training's course."""

import csv
from fnmatch import fnmatch
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.training.tracking import METRICS_FILE

DASHBOARD = "training.png"

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("KL (nats)", ("train/approx_kl", "train/kl_ref")),
    ("Entropy (nats)", ("train/entropy",)),
    ("Advantages, before normalisation", ("advantage/mean", "advantage/std")),
    ("Value loss", ("train/value_loss",)),
    ("Share of the requests", ("replica/share_*",)),
    ("Temperature", ("temperature/value",)),
    ("Coefficients", ("coef/entropy", "coef/kl", "coef/kl_ref")),
    ("Recent end-to-end latency (s)", ("latency/p50_s", "latency/p95_s", "latency/p99_s")),
    ("Arrivals (requests/s)", ("load/qps", "curriculum/qps")),
)
"""The dashboard of a training: titles, and the columns of ``metrics.csv`` that they show."""


_LABELS = {
    "train/approx_kl": "of the update",
    "train/kl_ref": "to the reference",
    "coef/kl": "KL",
    "coef/kl_ref": "reference KL",
    "load/qps": "seen",
    "curriculum/qps": "set",
}


FEW = 8
"""Points of a curve that are marked one by one."""
NAMED = 16
"""Curves that are named one by one; a legend of more would cover the picture."""


def _label(column: str) -> str:
    name = column.split("/")[1]
    if name.startswith("share_"):
        return f"replica {int(name.removeprefix('share_'))}"
    return _LABELS.get(column, name.removesuffix("_s"))


def write_dashboard(folder: RunFolder) -> None:
    """Draws the course of a run's training into its folder."""
    with folder.writing(DASHBOARD) as part:
        plot_training(folder.path / METRICS_FILE, part)


def plot_training(metrics: Path, path: Path) -> None:
    """Draws the course of a training.

    Args:
        metrics: the ``metrics.csv`` of a run.
        path: a PNG file.
    """
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = sorted({name for row in rows for name in row})
    figure = Figure(figsize=(13, 9), layout="constrained")
    for panel, (title, names) in zip(figure.subplots(3, 3).flat, PANELS, strict=True):
        for pattern in names:
            for name in (one for one in columns if fnmatch(one, pattern)):
                # An update is logged with the rollout after it.
                late = name.startswith(("train/", "coef/"))
                points = [
                    (int(dated["time/total_timesteps"]), row[name])
                    for dated, row in zip([rows[0], *rows] if late else rows, rows, strict=False)
                ]
                known = [(step, float(value)) for step, value in points if value]
                if known:
                    marker = "." if len(known) <= FEW else None
                    panel.plot(*zip(*known, strict=True), marker=marker, label=_label(name))
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}"))
        if 1 < len(panel.lines) <= NAMED:
            low, high = panel.get_ylim()
            panel.set_ylim(low, high + 0.2 * (high - low))
            panel.legend(
                fontsize="small",
                loc="upper center",
                frameon=False,
                ncols=4,
                handlelength=1.2,
                columnspacing=1.2,
            )
    figure.supxlabel("Thousands of requests")
    figure.savefig(path, dpi=110)
