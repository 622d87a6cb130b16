"""The picture of published measurements: simulated lines and measured points."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from published_runs import GPT_OSS_TOKEN, RATES, SCORERS, TOKEN, Result

ROWS = (SCORERS, TOKEN, GPT_OSS_TOKEN)
BESIDE = SCORERS
"""The file in whose row stands what nobody measured."""
NAMES = {
    "output_tps": "Output tokens/s",
    "ttft_mean_s": "TTFT mean (s)",
    "ttft_p50_s": "TTFT P50 (s)",
    "ttft_p90_s": "TTFT P90 (s)",
}


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws simulated lines, with the range of the seeds, and measured points against the rate."""
    figure = Figure(figsize=(13, 3.9 * len(ROWS)), layout="constrained")
    rows = figure.subplots(len(ROWS), 3, squeeze=False)
    for row, file in zip(rows, ROWS, strict=True):
        members = [
            one
            for one in results
            if not one.comparison.what_if
            and one.comparison.file in (file, *([""] if file == BESIDE else []))
        ]
        middle = members[0].ttft
        for panel, metric in zip(row, ("output_tps", middle, "ttft_p90_s"), strict=True):
            _panel(panel, members, metric)
        row[0].set_title(f"{members[0].comparison.setup.name}, {file}", loc="left", fontsize=10)
        handles, labels = row[0].get_legend_handles_labels()
        row[1].legend(handles, labels, frameon=False, fontsize="small", loc="upper left")
    for panel in rows[-1]:
        panel.set_xlabel("Requests/s")
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, results: Sequence[Result], metric: str) -> None:
    for colour, one in enumerate(results):
        runs = one.runs[metric]
        rule = one.comparison.rule
        panel.plot(
            *(RATES, runs.mean(axis=0)),
            color=f"C{colour}",
            linestyle="-" if one.measured else "--",
            label=f"{rule}, simulated",
        )
        panel.fill_between(
            *(RATES, runs.min(axis=0), runs.max(axis=0)),
            color=f"C{colour}",
            alpha=0.2,
            linewidth=0,
        )
        if metric in one.measured:
            panel.plot(
                *(RATES, one.measured[metric]),
                linestyle="",
                marker="o",
                color=f"C{colour}",
                markeredgecolor="black",
                label=f"{rule}, measured",
            )
    panel.set_ylabel(NAMES[metric])
    if metric == "output_tps":
        panel.set_ylim(0, None)
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if metric != "ttft_p90_s":
            panel.set_ylim(top=60 * panel.get_ylim()[1])  # room for the legend
    panel.grid(alpha=0.3, which="both")
