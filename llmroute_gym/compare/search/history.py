"""The file of all candidates: each a line, appended as soon as it is measured."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from llmroute_gym.compare.search.scoring import Score
from llmroute_gym.compare.search.space import Constants, Space
from llmroute_gym.errors import InputError

OWN = ("candidate", "generation", "objective", "ttft_p99_ratio", "ttft_p99_excess")
"""The columns before those of the constants."""


class Candidate(NamedTuple):
    """A line of the file."""

    generation: int
    constants: Constants
    score: Score


class History:
    """The candidates of a search so far, in memory and in a file.

    Numbers are written in full, so that a search which reads them again goes on exactly.

    Args:
        path: a CSV file; one that is there goes on, but for a line that is not whole.
        space: of the constants.

    Raises:
        InputError: the file is of another search.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self.path = path
        self.candidates: list[Candidate] = []
        self._header = [*OWN, *space.ranges]
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            whole = ",".join(self._header) + "\n"
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        lines = list(csv.reader(whole.splitlines()))
        if lines[0] != self._header:
            raise self._foreign()
        try:
            self.candidates = [self._candidate(line, space) for line in lines[1:]]
        except ValueError as error:
            raise self._foreign() from error

    def append(self, candidate: Candidate) -> None:
        """Adds a candidate."""
        number, ratio = len(self.candidates), candidate.score.ttft_p99
        cells: list[object] = [number, candidate.generation, repr(candidate.score.objective)]
        cells += ["" if math.isnan(ratio) else repr(ratio), repr(candidate.score.excess)]
        cells += map(repr, candidate.constants.values())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join(map(str, cells)) + "\n")
        self.candidates.append(candidate)

    def check(self, number: int, generation: int, constants: Constants) -> None:
        """Checks that a candidate in the file is the one that the settings lead to.

        Raises:
            InputError: it is another.
        """
        there = self.candidates[number]
        if (there.generation, there.constants) != (generation, constants):
            raise self._foreign()

    def _candidate(self, line: list[str], space: Space) -> Candidate:
        generation, objective, ratio, excess = line[1:5]
        constants: Constants = {
            name: int(cell) if limits.whole else float(cell)
            for (name, limits), cell in zip(space.ranges.items(), line[5:], strict=True)
        }
        score = Score(float(objective), float(ratio) if ratio else math.nan, float(excess))
        return Candidate(int(generation), constants, score)

    def _foreign(self) -> InputError:
        return InputError(
            f"{self.path} holds candidates of another search; start a new run with another run_dir"
        )
