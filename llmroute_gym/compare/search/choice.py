"""Who wins: the best candidates meet once more on common workloads that none was bred on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmroute_gym.compare.search.history import Candidate
from llmroute_gym.compare.search.measuring import Batch, Stage
from llmroute_gym.compare.search.scoring import objectives, score
from llmroute_gym.compare.search.space import Constants, Space
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.compare.statistics import Estimate, estimate
from llmroute_gym.config import SearchingConfig
from llmroute_gym.routers import Router

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What a search has found.

    Attributes:
        constants: of the winner.
        chosen_by: ratio of the metric to that of the rule as it starts, on the workloads that the
            winner was chosen by; above 1 only where the rule as it starts breaks the limit.
        proven: the same on workloads that nothing was chosen by, with its interval.
    """

    constants: Constants
    chosen_by: float
    proven: Estimate


def finalists(candidates: Sequence[Candidate], settings: SearchingConfig) -> list[Constants]:
    """Returns those who meet the rule as it starts: the best, and the last middle.

    None did worse than the rule as it starts where it was bred. Whether they keep the limit is seen
    when they meet: one generation has too few requests of each scenario to tell.
    """
    start = candidates[0]
    good = [one for one in candidates if one.score.told <= start.score.told]
    best: list[Constants] = []
    for one in sorted(good, key=lambda one: one.score.told):
        if one.constants not in (start.constants, *best):
            best.append(one.constants)
    best = best[: settings.finalists]
    middle = candidates[-1]
    if middle in good and middle.constants not in (start.constants, *best):
        best.append(middle.constants)
    return best


def chosen(
    space: Space,
    candidates: Sequence[Candidate],
    settings: SearchingConfig,
    limiting: Router | None,
    workers: Workers,
) -> Choice:
    """Chooses among the finalists and the rule as it starts.

    That stays unless another is better, or it breaks the limit and another does not.
    """
    measuring, limit = workers.measuring, settings.ttft_p99_at_most
    contestants = [space.start, *finalists(candidates, settings)]
    rules: list[Router] = [space.with_constants(one) for one in contestants]
    logs = list(workers.measured([*rules, *([limiting] if limiting else [])], Batch(Stage.CHOICE)))
    limits = logs[-1] if limiting else None
    scores = [score(measuring, one, logs[0], limits) for one in logs[: len(rules)]]
    kept = [number for number, one in enumerate(scores) if one.allowed(limit)]
    # The first of equals, so that the rule as it starts stays unless another is better.
    best = min(kept, key=lambda number: scores[number].objective, default=0)
    if not kept:
        log.warning(
            "no finalist keeps search.ttft_p99_at_most=%g in every scenario: the rule stays as it "
            "is; raise the limit, or search with a larger budget",
            limit,
        )
    better = [one.ttft_p99 for one in scores if one.objective < scores[best].objective]
    if kept and better:
        log.warning(
            "finalists that are better still (%d) exceed search.ttft_p99_at_most=%g: they come to "
            "%.3g at the least",
            len(better),
            limit,
            min(better),
        )
    start, winner = workers.measured([rules[0], rules[best]], Batch(Stage.PROOF))
    ratios = np.exp(objectives(measuring, winner, start))
    return Choice(contestants[best], float(np.exp(scores[best].objective)), estimate(ratios))
