"""The searches of an explanation: a formula of few constants, and other systems' rules.

All of them measure on those scenarios of ``conf/search/frontier.yaml`` and ``frontier_mixed.yaml``
in which no prefixes are cached, one gateway serves and metrics are fresh, by the metric and with as
many candidates for each constant as the former's budget gives to its own.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import yaml
from explain_formula import LEFT_OUT, n_terms, options, plain_values, rounded, stated
from measuring import ROOT
from tqdm import tqdm

from llmroute_gym.compare.search.choice import finalists
from llmroute_gym.compare.search.course import Course
from llmroute_gym.compare.search.history import History
from llmroute_gym.compare.search.measuring import Batch, Stage
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.proposals import usual_population
from llmroute_gym.compare.search.scoring import score
from llmroute_gym.compare.search.space import Space, tuned_ranges
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.config import SearchConfig, SearchingConfig
from llmroute_gym.ground.rules import rule_text
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.rule import Rule

CONF = ROOT / "conf" / "search"
FRONTIER = "frontier"
OTHERS = ("shared_prefix", "multi_turn", "agent_loop", "stale", "gateways")
"""How the names of scenarios begin that are left out, as formulas state nothing of these."""
MOST = 10
"""Constants of a formula that can be read, and terms."""
SHOWN, LEAST = 14, 3
"""Most and fewest constants of the formulas that are kept on the way down."""
FIRST_STEP = 10**6
"""Sets the workloads of a step apart from those of the generations of searches."""
ALLOWED = 0.01
"""What fewer constants may cost of the weighted tail, as a logarithm."""
PRICE = 0.0005
"""What a term or a constant has to gain of the weighted tail, as a logarithm, to be kept."""
AGAIN = 25
"""Candidates per constant at each step on the way down."""
ALL_SCENARIOS = 0.5
"""Share of the budget from which on all scenarios are measured on."""
QUICK_REQUESTS = 200
SEED = 23
"""Of all searches here; no other search has it."""
EXPORTS = (
    ("smg_least_load", ()),
    ("smg_least_load:poll_s=1", ()),
    ("smg_veto", ("queue", "kv")),
    ("llmd_default", ("queue", "kv")),
    ("envoy_weighted", ()),
)
"""Rules of other systems, and which constants are searched, if not all: of the prefix's weight the
scenarios, in which nothing is cached, say nothing. `smg_veto` stands before the last rule found."""


class Size(NamedTuple):
    """The best formula found of some number of constants."""

    objective: float
    """Of its weighted tail over that of `frontier`, the logarithm."""
    ttft: float
    """Its P99 TTFT over that of `lor`, worst scenario."""
    rule: dict[str, Any]


def _name(scenario: Any) -> str:
    return str(scenario if isinstance(scenario, str) else scenario["name"])


@dataclass
class Searches:
    """Measures and searches on the scenarios of `frontier`.

    Args:
        share: of the budget; of a small one every other scenario is left out.
        quick: whether it is only to be seen that it works.
    """

    share: float = 1.0
    quick: bool = False

    def __post_init__(self) -> None:
        """Builds the scenarios."""
        given, mixed = (
            yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
            for name in (FRONTIER, f"{FRONTIER}_mixed")
        )
        per_constant = given.pop("budget") / len(given.pop("constants"))
        self.per_constant = max(4, round(self.share * per_constant))
        given |= {"router": FRONTIER, "population": None, "workers": 1, "seed": SEED}
        given["final_runs"] = max(2, round(self.share * given["final_runs"]))
        given["scenarios"] = [
            one
            for one in (*given["scenarios"], *mixed["scenarios"])
            if not _name(one).startswith(OTHERS)
        ]
        if self.share < ALL_SCENARIOS:
            given["scenarios"] = given["scenarios"][::2]
        if self.quick:
            given |= {"scenarios": given["scenarios"][::8], "requests": QUICK_REQUESTS}
        self.settings = SearchingConfig(**given)
        self.pools = pools_of(SearchConfig(search=self.settings))
        self.limiting = make(self.settings.ttft_p99_of)
        self.workers = Workers(self.pools, self.settings)

    def unlimited(self) -> None:
        """Lets the time to first token be what it is from now on."""
        self.settings = replace(self.settings, ttft_p99_at_most=None)
        self.workers = Workers(self.pools, self.settings)

    def scores(self, rules: Sequence[Router], batch: Batch) -> list[Any]:
        """Returns the score of each rule beside `frontier` on common requests."""
        measured = self.workers.measured([make(FRONTIER), self.limiting, *rules], batch)
        start, limits, *found = measured
        return [score(self.workers.measuring, one, start, limits) for one in found]

    def tuned(
        self,
        rule: Rule,
        names: Sequence[str],
        budget: int,
        sigma: float,
        meeting: Batch = Batch(Stage.CHOICE),  # noqa: B008  (it is frozen)
    ) -> Rule:
        """Returns a rule with the best constants of a search; the limit of TTFT has its price.

        Args:
            rule: as the search starts.
            names: of the constants.
            budget: candidates.
            sigma: how far the first generation spreads.
            meeting: what the best candidates meet on, which none was bred on.
        """
        space = Space.of(rule.name, rule, names)
        population = usual_population(len(space.ranges))
        settings = replace(
            self.settings, budget=max(budget, population + 2), sigma=sigma, finalists=4
        )
        workers = Workers(self.pools, settings)
        with tempfile.TemporaryDirectory() as folder:
            history = History(Path(folder) / "history.csv", space)
            limiting = None if settings.ttft_p99_at_most is None else self.limiting
            course = Course(space, settings, limiting, workers, history)
            with tqdm(
                total=settings.budget, desc=f"{rule.name}, {len(names)}", disable=None, leave=False
            ) as bar:
                course.run(bar)
        known = [space.start, *finalists(history.candidates, settings)]
        rules = [space.with_constants(one) for one in known]
        told = [one.told for one in self.scores(rules, meeting)]
        return rules[int(np.argmin(told))]


def simpler(searches: Searches, rule: EstimatedLatency, step: int) -> EstimatedLatency:
    """Returns the rule with those constants plain that are missed least, many of them at once.

    A term and a constant cost `PRICE` each, so that of two plain values that which leaves no term
    is taken unless the other is better by more.
    """
    n = len(stated(rule))
    at_once = max(1, n // (3 if n > SHOWN else 6))
    tries = [
        (name, value)
        for name in tuned_ranges(rule)
        for value in plain_values(name)
        if name not in LEFT_OUT and size_of(replace(rule, **{name: value})) < size_of(rule)
    ]
    rules = [replace(rule, **{name: value}) for name, value in tries]
    scores = searches.scores(rules, Batch(Stage.BREEDING, step))
    costs = [one.told + PRICE * size_of(rule) for one, rule in zip(scores, rules, strict=True)]
    for at in np.argsort(costs).tolist():
        name, value = tries[at]
        fewer = replace(rule, **{name: value})
        if n - len(stated(rule)) < at_once and size_of(fewer) < size_of(rule):
            rule = fewer
    return rule


def size_of(rule: EstimatedLatency) -> int:
    """Returns how many constants and terms a formula has together."""
    return len(stated(rule)) + n_terms(rule)


def formulas(searches: Searches) -> Iterator[EstimatedLatency]:
    """Yields formulas of fewer and fewer constants, those of at most `SHOWN`.

    After each step what is left is searched again, shortly, or else it pays for what is missing.
    """
    shipped = cast(EstimatedLatency, make(FRONTIER))
    family = EstimatedLatency(**{name: getattr(shipped, name) for name in tuned_ranges(shipped)})
    rule, step = replace(family, **LEFT_OUT), 0
    while len(stated(rule)) > LEAST or n_terms(rule) > MOST:
        rule = simpler(searches, rule, FIRST_STEP + step)
        names = stated(rule)
        budget = round(searches.share * AGAIN * len(names))
        meeting = Batch(Stage.BREEDING, 2 * FIRST_STEP + step)
        rule = cast(EstimatedLatency, searches.tuned(rule, names, budget, 0.05, meeting))
        step += 1
        say(f"{len(names)} constants, {n_terms(rule)} terms: {options(rule)}")
        if len(names) <= SHOWN:
            yield rule


def found_sizes(searches: Searches) -> list[Size]:
    """Returns the formulas, the chosen one last and searched with the whole budget.

    Chosen is the one of the fewest constants whose tail is at most `ALLOWED` above the best that
    has at most `MOST` constants and terms.
    """
    rules = list(formulas(searches))
    scores = searches.scores(rules, Batch(Stage.CHOICE))
    short = [
        at for at, one in enumerate(rules) if len(stated(one)) <= MOST and n_terms(one) <= MOST
    ]
    bar = min(scores[at].told for at in short) + ALLOWED
    at = max(at for at in short if scores[at].told <= bar)
    names = stated(rules[at])
    last = searches.tuned(rules[at], names, searches.per_constant * len(names), 0.1)
    rules.append(rounded(cast(EstimatedLatency, last)))
    scores = searches.scores(rules, Batch(Stage.CHOICE))
    say(f"chosen: {options(rules[-1])}")  # type: ignore[arg-type]
    return [
        Size(one.objective, one.ttft_p99, options(rule))
        for rule, one in zip(rules, scores, strict=True)
    ]


def exported(searches: Searches) -> list[str]:
    """Returns the rules of other systems with the constants found, as texts.

    TTFT is not limited: the limit costs these rules more than all else, on mixed fleets.
    """
    searches.unlimited()
    found: list[str] = []
    for text, only in EXPORTS:
        start = f"{text}:rule=({found[-1]}),poll_s=1" if text == "smg_veto" else text
        rule = cast(Rule, make(start))
        names = list(only or tuned_ranges(rule))
        best = searches.tuned(rule, names, searches.per_constant * len(names), 0.25)
        constants = {name: float(f"{getattr(best, name):.3g}") for name in names}
        colon = "," if ":" in start else ":"
        found.append(rule_text(start + colon + ",".join(f"{k}={v}" for k, v in constants.items())))
        say(found[-1])
    return found


def say(text: str) -> None:
    """Says how far it is."""
    print(text, file=sys.stderr, flush=True)
