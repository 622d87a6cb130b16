"""The picture of a search's course."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from llmroute_gym.compare.search.history import Candidate
from llmroute_gym.compare.search.space import Constants, Space

PICTURE = "search.png"
NAMED = 12
"""Constants that are named one by one; a legend of more would cover the picture."""


def plot_course(
    candidates: Sequence[Candidate], space: Space, found: Constants, path: Path, title: str
) -> None:
    """Draws how the objective and the constants went from generation to generation.

    Args:
        candidates: all of them.
        space: of the constants.
        found: the constants that were chosen.
        path: a PNG file.
        title: of the picture.
    """
    bred = candidates[1:-1]
    generations = sorted({one.generation for one in bred})
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = [
        np.exp([one.score.objective for one in bred if one.generation == number]) - 1
        for number in generations
    ]
    left.axhline(0, color="grey", linewidth=0.8)
    left.plot(generations, [np.median(one) for one in ratios], label="median")
    left.plot(generations, [one.min() for one in ratios], label="best")
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    left.set(ylabel="Change against the rule as it starts")
    left.legend(frameon=False)
    points = [
        np.median([space.point(one.constants) for one in bred if one.generation == number], axis=0)
        for number in generations
    ]
    where = space.point(found)
    for index, name in enumerate(space.ranges):
        (line,) = right.plot(generations, [point[index] for point in points], label=name)
        right.plot(generations[-1:], where[index : index + 1], "o", color=line.get_color())
    right.set(ylim=(-0.02, 1.02), ylabel="Place in the constant's range, median; dot: chosen")
    if len(space.ranges) <= NAMED:
        right.legend(frameon=False, fontsize="small")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("Generation")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
