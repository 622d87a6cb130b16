"""Explains the rule `frontier`: what it prefers, a formula of few constants, and what that loses.

python benchmarks/explain.py            # five minutes on one core
python benchmarks/explain.py --write    # and write docs/explained.md with its pictures
python benchmarks/explain.py --search   # first search formula and constants anew, half an hour
python benchmarks/explain.py --quick    # see that it works
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from explain_decisions import changed, without_terms
from explain_formula import n_terms, stated
from explain_losses import Losses, losses, mean_ratio
from explain_page import FORMULA, Explained, page
from explain_pictures import draw_duels, draw_responses, draw_terms
from explain_search import FRONTIER, Searches, exported, found_sizes
from explain_views import FLEETS, PROMPT_RANGE, duels, limits, panels, recordings, shares
from frontier_cases import CASES, Case
from measuring import DATA, ROOT
from tqdm import tqdm

from llmroute_gym.routers import Router, make
from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.shipped import shipped_options

DOCS = ROOT / "docs"
FOUND = ROOT / "benchmarks" / "explained.yaml"
LEFT_OUT = ("Arrivals and traces",)
"""Groups of cases that replay traces, or where all replicas are equal and the load changes."""
WITHOUT, SIZE = "without ", "constants: "
QUICK_RUNS, QUICK_SHARE = 2, 0.01


def searched(share: float, quick: bool) -> dict[str, Any]:
    """Returns what the searches find, and for which constants of `frontier`."""
    searches = Searches(share, quick)
    return {
        "frontier": shipped_options(FRONTIER),
        "per_constant": searches.per_constant,
        "scenarios": len(searches.pools),
        "sizes": [one._asdict() for one in found_sizes(searches)],
        "exports": exported(searches),
    }


def kept_from_before() -> dict[str, Any]:
    """Returns what the last searches found, be it while `frontier` had other constants."""
    if not FOUND.is_file():
        sys.exit(f"{FOUND} is missing; python benchmarks/explain.py --search writes it")
    found: dict[str, Any] = yaml.safe_load(FOUND.read_text(encoding="utf-8"))
    return found


def cases(quick: bool) -> list[Case]:
    """Returns the cases that rules are measured on."""
    some = [case for case in CASES if case.group not in LEFT_OUT]
    return [case for case in some if case.name.endswith("70% (i)")] if quick else some


def served_by(case: Case, found: dict[str, Any]) -> dict[str, Router]:
    """Returns the rules that a case is served with beside `frontier` and simple ones."""
    rules = {FORMULA: make(found["sizes"][-1]["rule"])}
    rules |= {text: make(text) for text in found["exports"]}
    if case.name.startswith(FLEETS) and "replicas" not in case.name and not case.predicted:
        own = cast(EstimatedLatency, make(FRONTIER))
        rules |= {WITHOUT + term: rule for term, rule in without_terms(own).items()}
        rules |= {
            SIZE + str(number): make(one["rule"]) for number, one in enumerate(found["sizes"])
        }
    return rules


def explained(found: dict[str, Any], folder: Path, traces: str, runs: int, quick: bool) -> str:
    """Measures, draws the pictures into a folder, and returns the page."""
    rule = cast(EstimatedLatency, make(FRONTIER))
    formula = cast(EstimatedLatency, make(found["sizes"][-1]["rule"]))
    recorded = recordings(rule, traces, (70,) if quick else (50, 70, 85))
    mixed = recorded.internlm["mixed"]
    results = [
        losses(case, served_by(case, found), traces, runs)
        for case in tqdm(cases(quick), desc="cases", disable=None)
    ]
    decided = shares(rule, recorded.every)
    sizes = []
    for number, one in enumerate(found["sizes"]):
        simple = cast(EstimatedLatency, make(one["rule"]))
        ratios = means(results, SIZE + str(number))
        sizes.append((len(stated(simple)), n_terms(simple), ratios))
    rules = {FRONTIER: rule, FORMULA: formula, "speed_lor": EstimatedLatency()}
    draw_responses(panels(rule, recorded.internlm), folder / "explained_responses.png")
    points = [(constants, ratio) for constants, _, ratio in sizes]
    draw_terms(decided, points[:-1], points[-1], folder / "explained_terms.png")
    draw_duels(duels(rules, mixed, PROMPT_RANGE), folder / "explained_duels.png")
    return page(
        Explained(
            shares=decided,
            without={term: means(results, WITHOUT + term) for term in decided},
            limits=limits(rules, mixed),
            formula=found["sizes"][-1]["rule"],
            sizes=sizes,
            agreement={
                fleet: 1 - changed(rule, formula, recorded.every[fleet]) for fleet in FLEETS
            },
            losses=results,
            exports=found["exports"],
            per_constant=found["per_constant"],
            scenarios=found["scenarios"],
            earlier=found["frontier"] != shipped_options(FRONTIER),
            runs=runs,
        )
    )


def means(results: Sequence[Losses], title: str) -> dict[str, float]:
    """Returns a rule's mean ratio of P99 by fleet."""
    return {fleet: mean_ratio(results, title, fleet) for fleet in FLEETS}


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/explained.md")
    parser.add_argument("--search", action="store_true", help="search formula and constants anew")
    parser.add_argument("--share", type=float, default=1.0, help="of the searches' budget")
    parser.add_argument("--runs", type=int, default=40, help="at most, of a case")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    given = parser.parse_args()
    if not 0 < given.share <= 1:
        parser.error(f"--share must be a number above 0 and at most 1, got {given.share:g}")
    if given.runs < 2:
        parser.error(f"--runs must be at least 2, so that there are intervals, got {given.runs}")
    if given.search or given.quick:
        found = searched(QUICK_SHARE if given.quick else given.share, given.quick)
    else:
        found = kept_from_before()
    if given.search and not given.quick:
        FOUND.write_text(yaml.safe_dump(found, sort_keys=False, width=100), encoding="utf-8")
    keep = given.write and not given.quick
    with tempfile.TemporaryDirectory() as temporary:
        folder = DOCS if keep else Path(temporary)
        runs = QUICK_RUNS if given.quick else given.runs
        text = explained(found, folder, str(DATA / "traces"), runs, given.quick)
    print(text)
    if keep:
        (DOCS / "explained.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
