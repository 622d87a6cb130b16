"""How far simulated times are from those of the log, stated and drawn."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from llmroute_gym.compare.calibration.fitting import LEVELS, Times
from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.compare.pictures import finish_shares, plot_shares
from llmroute_gym.compare.text import aligned
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.metrics import LATENCIES


class Row(NamedTuple):
    """One percentile; the field names are the columns of ``calibration.csv``."""

    latency: str
    """`ttft` or `e2e`."""
    part: str
    """`fitted` or `held out`."""
    requests: int
    percentile: int
    recorded_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Simulated against recorded, relative."""
        return self.simulated_s / self.recorded_s - 1


def pairs(recorded: Recorded, times: Times) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """Yields each latency with its simulated and recorded times, (n_requests,) seconds."""
    yield "ttft", times.ttft_s, recorded.ttft_s
    yield "e2e", times.e2e_s, recorded.e2e_s


def rows(recorded: Recorded, times: Times, fitted: BoolArray) -> list[Row]:
    """Returns the percentiles of both latencies.

    Args:
        recorded: the log.
        times: simulated.
        fitted: (n_requests,) the requests whose times were fitted to.
    """
    found = []
    for part, chosen in (("fitted", fitted), ("held out", ~fitted)):
        for latency, simulated_s, recorded_s in pairs(recorded, times):
            known = chosen & (recorded_s > 0)
            if known.any():
                levels = (np.percentile(one[known], LEVELS) for one in (recorded_s, simulated_s))
                for level, *values in zip(LEVELS, *levels, strict=True):
                    found.append(Row(latency, part, int(known.sum()), level, *map(float, values)))
    return found


def table(found: list[Row]) -> str:
    """Lays percentiles out as text, simulated ones with their error."""
    lines = [["", *(f"P{level}" for level in LEVELS for _ in range(2))]]
    lines.append(["seconds", *("recorded", "simulated") * len(LEVELS)])
    for place in range(0, len(found), len(LEVELS)):
        same = found[place : place + len(LEVELS)]
        cells = [f"{LATENCIES[same[0].latency].short}, {same[0].part}"]
        for row in same:
            cells += [f"{row.recorded_s:.3f}", f"{row.simulated_s:.3f} ({row.error:+.1%})"]
        lines.append(cells)
    return aligned(lines)


def by_backend(recorded: Recorded, times: Times) -> dict[str, float]:
    """Returns the median relative error of the end-to-end latency on each backend."""
    errors = times.e2e_s / recorded.e2e_s - 1
    found = {}
    for index, name in enumerate(recorded.backends):
        known = (recorded.backend == index) & np.isfinite(errors)
        if known.any():
            found[name] = float(np.median(errors[known]))
    return found


def stated(found: list[Row]) -> dict[str, str]:
    """Returns what a profile's file says of its errors: those of requests that were held out."""
    part = found[-1].part
    says: dict[str, str] = {}
    for row in found:
        if row.part == part:
            start = says.get(row.latency, f"{part}, {row.requests} requests:")
            says[row.latency] = f"{start} P{row.percentile} {row.error:+.1%}"
    return says


def write_rows(found: list[Row], path: Path) -> None:
    """Writes ``calibration.csv``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "error"])
        writer.writerows([*row, row.error] for row in found)


def plot(recorded: Recorded, times: Times, path: Path, title: str) -> None:
    """Draws how recorded and simulated latencies are distributed, shares stretched towards 1."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    both = list(pairs(recorded, times))
    for panel, (_, simulated_s, recorded_s) in zip(panels, both, strict=True):
        known = recorded_s > 0
        plot_shares(panel, recorded_s[known], label="recorded", color="0.2", linewidth=2.5)
        plot_shares(panel, simulated_s[known], label="simulated", color="C1", linestyle="--")
        panel.set_xscale("log")
    finish_shares(figure, panels, [latency for latency, _, _ in both], path, title)
