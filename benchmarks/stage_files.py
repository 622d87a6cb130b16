"""What the benchmark of the stages writes: every training in a table, and a picture."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from courses import EARLY, END, START, CloneAccuracy, Course, Movement, movement
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from stage_numbers import (
    BASELINE,
    CLONES,
    LIGHT_AND_HEAVY,
    LOADS,
    NEAR,
    P95,
    PERCENTS,
    RULES,
    SETTLED,
    Measured,
    demonstrated,
    needed,
    own_changes,
    own_tail,
)

from llmroute_gym.sim.outcome import percentile

Facts = Callable[[int, int], dict[str, Any]]
"""Seed and index of the load to further cells of a line."""


def write_csv(measured: Measured, path: Path) -> None:
    """Writes one line per training or rule, kept policy and load."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for name in RULES:
            _write_policy(writer, measured, name, END, lambda *_: {})
        for name, watched in measured.courses.items():
            near = [needed(measured, name, load) for load in range(len(LOADS))]
            more = demonstrated(measured.settings[name])
            for point in (START, EARLY, END):
                _write_policy(writer, measured, name, point, _facts(watched, point, near, more))
        for name, found in measured.accuracies.items():
            _write_policy(writer, measured, name, END, _clone_facts(found, CLONES[name][-1]))


TAILS = ("e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "ttft_p95_s", "ttft_p99_s")
COLUMNS = (
    *("configuration", "seed", "updates", "decisions", "demonstrations", "qps", "e2e_mean_s"),
    *TAILS,
    *("e2e_p95_vs_round_robin", "e2e_p99_vs_round_robin", "decisions_to_within_2pct"),
    *(f"moved_{name}" for name in Movement._fields),
    *CloneAccuracy._fields,
)


def _clone_facts(found: Sequence[CloneAccuracy], demonstrations: int) -> Facts:
    def facts(seed: int, load: int) -> dict[str, Any]:
        accuracies = {name: _short(value) for name, value in found[seed]._asdict().items()}
        return {"demonstrations": demonstrations, **accuracies}

    return facts


def _facts(
    watched: Sequence[Course], point: int, near: Sequence[Sequence[int | None]], more: int
) -> Facts:
    def facts(seed: int, load: int) -> dict[str, Any]:
        one = watched[seed]
        row = {
            "updates": one.updates[one.points[point]],
            "decisions": one.decisions[one.points[point]],
            "demonstrations": more,
        }
        if point == END:
            moved = movement(one, SETTLED)
            first = near[load][seed]
            row |= {
                "decisions_to_within_2pct": "never" if first is None else first,
                **{f"moved_{name}": _short(share) for name, share in moved._asdict().items()},
            }
        return row

    return facts


def _write_policy(
    writer: "csv.DictWriter[str]",
    measured: Measured,
    name: str,
    point: int,
    facts: Facts,
) -> None:
    served = measured.served(name, point)
    for seed in range(len(served.e2e)):
        for load, qps in enumerate(LOADS):
            row = {"configuration": name, "qps": qps, **facts(seed, load)}
            if name not in RULES:
                row["seed"] = seed
            row["e2e_mean_s"] = _short(served.e2e[seed, load].mean())
            for title in TAILS:
                latency, of, _ = title.split("_")
                values = getattr(served, latency)[seed, load].ravel()
                row[title] = _short(percentile(values, int(of[1:])))
            for percent in PERCENTS:
                there = own_tail(measured, BASELINE, load, percent)[0]
                here = percentile(served.e2e[seed, load].ravel(), percent)
                row[f"e2e_p{percent}_vs_round_robin"] = _short(here / there - 1)
            writer.writerow(row)


def _short(value: float) -> str:
    return f"{value:.5g}"


LINEAR = 0.05
"""Up to this change the picture's axes are linear, beyond it logarithmic."""
TICKS = (-0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3, 9, 29, 99)


def plot(measured: Measured, path: Path) -> None:
    """Draws the learning curves of stages 1 and 3 and every training of stage 2."""
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    panels = figure.subplots(2, 2)
    for panel, load in zip(panels[0], LIGHT_AND_HEAVY, strict=True):
        shown = {
            "none-no-reference-unstabilised": "PPO alone, no reference, off",
            "none-no-reference": "PPO alone, no reference, on",
            "demos-unstabilised": "demonstrations, off",
            "demos": "demonstrations, on",
        }
        title = f"Stage 1: stabilisation, trained at {LOADS[0]}, served at {LOADS[load]} requests/s"
        _curves(panel, measured, shown, load, title)
    _dots(panels[1, 0], measured)
    shown = {
        "none": "PPO alone",
        "none-no-reference": "PPO alone, no reference",
        "demos": "demonstrations, then PPO",
        "demos-no-reference": "the same, no reference",
    }
    _curves(panels[1, 1], measured, shown, 0, f"Stage 3: demonstrations, at {LOADS[0]} requests/s")
    figure.supylabel("P95 of end-to-end latency against round robin")
    figure.savefig(path, dpi=100)


def _relative_axis(panel: Axes, title: str) -> None:
    panel.axhspan(-NEAR, NEAR, color="0.9", zorder=0)
    panel.axhline(0, color="0.4", linewidth=0.8)
    panel.set_yscale("symlog", linthresh=LINEAR, linscale=1.5)
    low, high = min(1.1 * panel.dataLim.ymin, -LINEAR), max(1.1 * panel.dataLim.ymax, LINEAR)
    panel.set_yticks([one for one in TICKS if low <= one <= high])
    panel.set_ylim(low, high)
    panel.yaxis.set_major_formatter(FuncFormatter(_change))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_title(title, fontsize="medium")
    panel.grid(alpha=0.3)


def _change(value: float, _: int) -> str:
    return f"×{1 + value:g}" if value >= 1 else f"{value:+.0%}" if value else "0"


def _curves(
    panel: Axes, measured: Measured, shown: Mapping[str, str], load: int, title: str
) -> None:
    there = own_tail(measured, BASELINE, load, P95)[0]
    for number, (name, label) in enumerate(shown.items()):
        watched = measured.courses[name]
        curves = np.array([one.p95_s[:, load] / there - 1 for one in watched])
        thousands = watched[0].decisions / 1000
        panel.plot(thousands, curves.T, color=f"C{number}", linewidth=0.6, alpha=0.6)
        panel.plot(
            thousands, np.median(curves, axis=0), color=f"C{number}", linewidth=2, label=label
        )
    panel.set_xlabel("Thousands of PPO's decisions (thin: each seed, thick: median)")
    _relative_axis(panel, title)
    _legend_below(panel)


def _dots(panel: Axes, measured: Measured) -> None:
    shown = [(start, suffix) for start in ("none", "demos") for suffix in ("", "-ramp", "-heavy")]
    starts = {"none": "PPO alone", "demos": "demonstrations"}
    at = {"": "2.5", "-ramp": "2.5 to 4.5", "-heavy": "4.5"}
    for number, (start, suffix) in enumerate(shown):
        colour = f"C{number % 3}"
        for load in range(len(LOADS)):
            changes = own_changes(measured, start + suffix, load, P95)
            place = load + 0.13 * (number - (len(shown) - 1) / 2)
            label = f"{starts[start]}, trained at {at[suffix]}"
            panel.plot(
                np.full(len(changes), place),
                changes,
                linestyle="none",
                marker="o" if start == "none" else "^",
                markersize=5,
                color=colour,
                alpha=0.6,
                label=label if load == 0 else None,
            )
    panel.set_xticks(range(len(LOADS)), [f"{load:g}" for load in LOADS])
    panel.set_xlabel("Served load (requests/s); one mark per seed")
    _relative_axis(panel, "Stage 2: rising load")
    _legend_below(panel)


def _legend_below(panel: Axes) -> None:
    panel.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small", ncols=2, frameon=False
    )
