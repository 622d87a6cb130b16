"""The course of a search: generation after generation of candidates."""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from tqdm import tqdm

from llmroute_gym.compare.search.history import Candidate, History
from llmroute_gym.compare.search.measuring import Batch, Stage
from llmroute_gym.compare.search.proposals import Proposals, usual_population
from llmroute_gym.compare.search.scoring import Score, score
from llmroute_gym.compare.search.space import Constants, Space
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.config import SearchingConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.notices import notices
from llmroute_gym.routers import Router


class Course:
    """One search: what it measures, and what it has written down.

    The first candidate is the rule as it starts, the last one the middle of the distribution that
    the others led to, whose merit is no luck of one draw.

    Args:
        space: of the constants.
        settings: the budget, and how candidates are bred.
        limiting: the rule that limits the time to first token, if one does.
        workers: measure.
        history: of this search, which goes on from there.

    Raises:
        InputError: the budget does not cover one generation.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchingConfig,
        limiting: Router | None,
        workers: Workers,
        history: History,
    ) -> None:
        self.space, self.settings, self.limiting = space, settings, limiting
        self.workers, self.history = workers, history
        self.population = population_of(space, settings)
        self._measured = 0
        self._known: dict[tuple[float, ...], Score] = {}

    def run(self, bar: "tqdm[Any]") -> None:
        """Breeds and measures until the budget is spent or nothing new would be found.

        Args:
            bar: is told of each candidate.

        Raises:
            InputError: the history is of another search.
        """
        proposals = Proposals(
            self.space.point(self.space.start),
            self.settings.sigma,
            self.population,
            self.settings.seed,
        )
        self._measure(0, [self.space.start], bar)
        left, generation = self.settings.budget - 2, 0
        while left > 0 and not proposals.converged:
            points = proposals.ask(min(self.population, left))
            scores = self._measure(generation, list(map(self.space.constants, points)), bar)
            if len(points) == self.population:
                proposals.tell(points, [one.told for one in scores])
            left -= len(points)
            generation += 1
        if left > 0:
            notices.info("the search has converged: %d candidates are not needed", left)
        self._measure(generation, [self.space.constants(proposals.middle)], bar)

    def _measure(
        self, generation: int, candidates: Sequence[Constants], bar: "tqdm[Any]"
    ) -> list[Score]:
        """Returns the candidates' scores; those that are not in the history yet are added."""
        if self.settings.fresh:
            self._known.clear()
        first, scores = self._measured, []
        self._measured += len(candidates)
        held = self.history.candidates[first : self._measured]
        for number, (constants, there) in enumerate(zip(candidates, held, strict=False), first):
            self.history.check(number, generation, constants)
            self._known[_key(constants)] = there.score
            scores.append(there.score)
            bar.update()
        new = candidates[len(held) :]
        unknown = {_key(one): one for one in new if _key(one) not in self._known}
        found = self._scores(generation, list(unknown.values()))
        for constants in new:
            if _key(constants) not in self._known:
                self._known[_key(constants)] = next(found)
            scores.append(self._known[_key(constants)])
            self.history.append(Candidate(generation, constants, scores[-1]))
            bar.update()
        # Not the best: with new workloads in each generation that is the luckiest.
        middle = math.exp(median(one.objective for one in scores)) - 1
        bar.set_postfix_str(f"median of generation {generation} {middle:+.1%}", refresh=False)
        return scores

    def _scores(self, generation: int, candidates: Sequence[Constants]) -> Iterator[Score]:
        """Yields scores in order, each against the references on the same workloads."""
        if not candidates:
            return
        batch = Batch(Stage.BREEDING, generation if self.settings.fresh else 0)
        references = [self.space.rule, *([self.limiting] if self.limiting else [])]
        rules = [self.space.with_constants(one) for one in candidates]
        found = self.workers.measured([*references, *rules], batch)
        start, *limiting = [next(found) for _ in references]
        for logs in found:
            yield score(self.workers.measuring, logs, start, _first(limiting))


def population_of(space: Space, settings: SearchingConfig) -> int:
    """Returns the number of candidates of a generation.

    Raises:
        InputError: the budget does not cover one generation.
    """
    population = settings.population or usual_population(len(space.ranges))
    if settings.budget < population + 2:
        raise InputError(
            f"search.budget={settings.budget} is too small; one generation of {population}, the "
            f"rule as it starts and what is found need {population + 2} candidates"
        )
    return population


def _first(one: Sequence[FloatArray]) -> FloatArray | None:
    return one[0] if one else None


def _key(constants: Constants) -> tuple[float, ...]:
    return tuple(constants.values())
