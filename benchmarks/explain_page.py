"""The page docs/explained.md, written from what was found."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import yaml
from explain_formula import n_terms, options, stated, used_symbols, written
from explain_losses import Losses, kept, mean_ratio
from explain_pictures import PROMPTS
from frontier_cases import SEED
from frontier_runs import with_interval
from measuring import origin, table

from llmroute_gym.routers import make
from llmroute_gym.routers.estimated_latency import EstimatedLatency

COMMAND = "python benchmarks/explain.py"
FORMULA, SIMPLE = "formula", "simple"


class Explained(NamedTuple):
    """All that the page says."""

    shares: Mapping[str, Mapping[str, float]]
    """Of decisions that change without a term, by fleet."""
    without: Mapping[str, Mapping[str, float]]
    """P99 without it, over that with it, by fleet."""
    limits: Sequence[tuple[str, str, list[str]]]
    formula: dict[str, Any]
    sizes: Sequence[tuple[int, int, Mapping[str, float]]]
    """Constants, terms and the mean ratio of P99 by fleet."""
    agreement: Mapping[str, float]
    """Share of decisions in which formula and `frontier` agree, by fleet."""
    losses: Sequence[Losses]
    exports: Sequence[str]
    """Rules of other systems, as texts."""
    per_constant: int
    """Candidates of the searches, for each constant."""
    scenarios: int
    """That these measured on."""
    earlier: bool
    """Whether `frontier` had other constants at that time."""
    runs: int
    """Most workloads of a case."""


def page(found: Explained) -> str:
    """Returns the page."""
    earlier = (
        " `frontier` had other constants then; what they lose is measured against those of today."
        if found.earlier
        else ""
    )
    parts = [
        "# What `frontier` prefers",
        "",
        f"Written by {origin(COMMAND)} Requests are of seed {SEED}, which no search has used; the "
        "formula and the constants below were searched by the same command with `--search`, on "
        f"{found.scenarios} of the scenarios of `conf/search/frontier.yaml` and "
        f"`frontier_mixed.yaml` in which nothing is cached.{earlier}",
        "",
        *_responses(),
        *_terms(found),
        *_duels(found),
        *_formula(found),
        *_exports(found),
        *_losses(found),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _responses() -> list[str]:
    return [
        "## Score against each signal",
        "",
        "The request goes where the score is lowest. A panel varies one signal of one replica, all "
        "else as recorded, and shows the score as a factor of what it is with the median of that "
        "signal and speed 1: 2 counts as if the request took twice as long there. Lines are "
        "medians, bands the middle 80% of the rows of replicas of speed 1 that were recorded on "
        "mixed and on equal fleets at 50, 70 and 85% of capacity (`a100-internlm-20b`). Real "
        "replicas do not change in one signal alone: with the requests in flight go context, KV "
        "usage and the time to first token. `slowness`, which the rule takes from its memory, is "
        "in no panel.",
        "",
        "![Score against each signal](explained_responses.png)",
        "",
    ]


def _terms(found: Explained) -> list[str]:
    fleets = list(next(iter(found.shares.values())))
    columns = [
        "term",
        *(f"decisions changed, {fleet}" for fleet in fleets),
        *(f"P99 without it, {fleet}" for fleet in fleets),
    ]
    order = sorted(found.shares, key=lambda term: -max(found.shares[term].values()))
    rows = [
        [
            term,
            *(f"{found.shares[term][fleet]:.1%}" for fleet in fleets),
            *(f"{found.without[term][fleet]:.3f}" for fleet in fleets),
        ]
        for term in order
    ]
    return [
        "## How often each term decides",
        "",
        "Of decisions recorded on mixed (speeds 2, 1, 1, 0.5) and equal fleets, two profiles, 50, "
        "70 and 85%: the share in which another replica is chosen if the term is left out and "
        "nothing else is tuned; and what P99 becomes if a whole run is served so, over that of "
        "`frontier` (geometric mean over the loads and profiles of such fleets). A term may decide "
        "much and matter little, where the replicas it decides between are as good.",
        "",
        table(columns, rows),
        "",
        "![Terms and constants](explained_terms.png)",
        "",
    ]


def _duels(found: Explained) -> list[str]:
    rows = [[pair, f"`{rule}`", *most] for pair, rule, most in found.limits]
    return [
        "## A fast busy replica or a slow idle one",
        "",
        "Up to how many requests in flight more the fast one is chosen, by the prompt's tokens; "
        "all other signals of both as they were recorded on mixed fleets with so many in flight "
        "and no prefill pending (the most recorded stands after *over*). `formula` is the one of "
        "the next section.",
        "",
        table(["pair", "rule", *(f"{prompt} tokens" for prompt in PROMPTS)], rows),
        "",
        "![Who wins](explained_duels.png)",
        "",
        "Blue: the fast one is chosen; on the line both score the same.",
        "",
    ]


def _formula(found: Explained) -> list[str]:
    rule = cast(EstimatedLatency, make(found.formula))
    text, n_constants, terms = written(rule), len(stated(rule)), n_terms(rule)
    fleets = list(found.sizes[0][2])
    rows = [
        [constants, n, *(f"{means[fleet]:.3f}" for fleet in fleets)]
        for constants, n, means in found.sizes
    ]
    means = {fleet: f"{found.sizes[-1][2][fleet]:.3f}" for fleet in fleets}
    agree = ", ".join(f"{found.agreement[fleet]:.0%} on {fleet} fleets" for fleet in fleets)
    return [
        "## A formula",
        "",
        f"{n_constants} constants, {terms} terms; the lowest score wins:",
        "",
        "```text",
        text,
        "```",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in used_symbols(rule).items()),
        "",
        "Constants were left out one after another, those first that are missed least; what was "
        f"left was searched again, finally with {found.per_constant} candidates per constant, and "
        f"rounded to two digits. It decides as `frontier` does in {agree}. P99 over that of "
        "`frontier`, geometric means: "
        + ", ".join(f"{means[fleet]} on {fleet} fleets" for fleet in fleets)
        + f", so that {kept(found.losses, FORMULA, 'mixed'):.0%} of what `frontier` gains over the "
        "best simple rule on mixed fleets is kept. As a router:",
        "",
        "```yaml",
        yaml.safe_dump(options(rule), sort_keys=False).strip(),
        "```",
        "",
        "P99 over that of `frontier` by size; the last line is the formula above, the others had a "
        "short search each:",
        "",
        table(["constants", "terms", *(f"{fleet} fleets" for fleet in fleets)], rows),
        "",
    ]


def _exports(found: Explained) -> list[str]:
    rows = []
    for text in found.exports:
        means = [f"{mean_ratio(found.losses, text, kind):.3f}" for kind in ("mixed", "equal")]
        rows.append([f"`{text}`", *means, f"{kept(found.losses, text, 'mixed'):.0%}"])
    return [
        "## As constants of other systems' rules",
        "",
        "The constants with which rules of SMG, llm-d and Envoy come nearest, by the same search "
        f"on the same scenarios ({found.per_constant} candidates per constant) without a limit of "
        "TTFT, which would cost them most. None of them holds the formula: SMG's rule reads the "
        "speed and the polled queue, but does not weigh the prompt's length against what a "
        "replica has to do; llm-d's scores read no speed, and each is "
        "relative to the other replicas; Envoy's reads the speed and the requests in flight. The "
        "weight of llm-d's cached prefix stays, since nothing is cached here. The last column is "
        "how much of the gain over the best simple rule is kept on mixed fleets; below 0 the "
        "simple rule is better.",
        "",
        table(["rule", "P99, mixed", "P99, equal", "gain kept"], rows),
        "",
    ]


def _losses(found: Explained) -> list[str]:
    titles = [FORMULA, *found.exports]
    names = [FORMULA, *(_short(text) for text in found.exports)]
    rows = []
    for one in found.losses:
        others = [f"{one.ratios[title].value:.3f}" for title in titles[1:]]
        rows.append(
            [
                one.case.name,
                f"{one.e2e_p99_s.value:.2f}",
                f"{one.ratios[one.simple].value:.3f} `{one.simple}`",
                with_interval(one.ratios[FORMULA]),
                *others,
                f"{one.ttft['frontier'].value:.2f}",
                f"{one.ttft[FORMULA].value:.2f}",
            ]
        )
    columns = ["case", "P99 (s)", "best simple", *names, "TTFT", "TTFT, formula"]
    return [
        "## What they lose, case by case",
        "",
        "P99 end-to-end latency of `frontier` in seconds; that of others over it, above 1 is a "
        "loss (the formula's with 95% intervals, paired bootstrap over runs); and P99 TTFT over "
        "that of `lor`. Cases are those of `benchmarks/frontier_cases.py`, of which at most "
        f"{found.runs} runs are served here.",
        "",
        table(columns, rows),
        "",
    ]


def _short(text: str) -> str:
    rule = make(text)
    poll = getattr(rule, "poll_s", None)
    return f"`{rule.name}`" + ("" if poll is None else f", {poll:g} s")
