"""Measures the rule `frontier` against every other rule, each as it ships and tuned.

python benchmarks/frontier.py            # all cases, a quarter of an hour on two cores
python benchmarks/frontier.py --write    # and fill benchmarks/README.md
python benchmarks/frontier.py --only mixed   # the cases with this in their name
python benchmarks/frontier.py --quick    # see that it works
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby

from frontier_cases import CASES, SEED, Case
from frontier_runs import FAMILY, Budgets, Found, Ratio, measure, with_interval
from joblib import Parallel, delayed
from measuring import DATA, origin, table, write_section
from tqdm import tqdm

COMMAND = "python benchmarks/frontier.py"
FULL = Budgets(plain=200, family=1500, family_searches=5)
QUICK = Budgets(plain=20, family=30, family_searches=2)
TTFT_BAR, PLAIN_BAR, FAMILY_BAR = 1.10, 1.00, 1.05


def shown(one: Ratio | None, bar: float | None, *, named: bool = True) -> str:
    """Returns a ratio with its interval, the bar that it has, and with what it was compared."""
    if one is None:
        return ""
    text = with_interval(one.value)
    if bar is not None:
        met = one.value.value <= bar
        text = f"**{text}** ≤ {bar:g}" if met else f"**{text} missed {bar:g}**"
    return f"{text} `{one.best}`" if named else text


def missed(found: Found) -> list[str]:
    """Returns the bars that a case misses, in words."""
    case = found.case
    bars = [
        ("simple", found.simple, case.simple),
        ("zoo", found.zoo, case.zoo),
        ("tuned", found.tuned, PLAIN_BAR),
        (f"tuned {FAMILY}", found.family, FAMILY_BAR),
        ("slow", found.slow, case.slow),
        ("TTFT", found.ttft, TTFT_BAR),
    ]
    return [
        f"{case.name}: {what} {one.value.value:.3f} > {bar:g}"
        for what, one, bar in bars
        if one is not None and bar is not None and one.value.value > bar
    ]


def section(results: Sequence[Found]) -> str:
    """Returns the README's section."""
    parts = [
        "## The shipped rule against all others",
        "",
        origin(COMMAND),
        "",
        "`frontier` with the same constants everywhere. Cells are its P99 end-to-end latency over "
        "that of the best of each kind in that very case, pooled over all requests of all runs, "
        "with 95% intervals (paired bootstrap over runs). *Simple*: `round_robin`, `lor`, "
        "`lor_hybrid`, `speed_lor`, `least_tokens`, `jsq`, `power_of_two`. *Rule*: every rule of "
        "the package as it ships, a minimum over them taken on the test runs, which favours them. "
        "*Tuned*: the same and each with the constants of a search of "
        f"{FULL.plain} candidates on that very scenario; *family*: the estimated latency so, the "
        f"best of {FULL.family_searches} searches of {FULL.family} candidates, without the limit "
        "of the TTFT that `frontier` keeps. The last column is P99 TTFT over that of `lor`. "
        f"Requests are of seed {SEED}, which no search has used.",
        "",
    ]
    for group, found in groupby(results, key=lambda one: one.case.group):
        rows = []
        for one in found:
            case, tuned = one.case, ""
            if one.tuned is not None:
                tuned = shown(one.tuned, PLAIN_BAR)
            family = shown(one.family, FAMILY_BAR, named=False)
            slow = shown(one.slow, case.slow)
            rows.append(
                [
                    case.name,
                    f"{one.e2e_p99_s.value:.2f}",
                    shown(one.round_robin, None, named=False),
                    shown(one.simple, case.simple),
                    shown(one.zoo, case.zoo),
                    *([tuned, family] if one.tuned else []),
                    *([slow] if one.case.group.startswith("A replica") else []),
                    shown(one.ttft, TTFT_BAR, named=False),
                ]
            )
        columns = ["case", "P99 (s)", "over round robin", "over simple", "over rule"]
        if len(rows[0]) == 8:
            columns += ["over tuned", "over family"]
        elif len(rows[0]) == 7:
            columns += ["over simple while slow"]
        columns += ["TTFT over lor"]
        parts += [f"### {group}", "", table(columns, rows), ""]
    failed = [line for one in results for line in missed(one)]
    parts.append("Bars missed: " + "; ".join(failed) + "." if failed else "Every bar is met.")
    return "\n".join(parts)


def chosen_cases(only: str | None) -> list[Case]:
    """Returns the cases with a text in their name, all of them without one."""
    return [case for case in CASES if only is None or only in case.name]


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="fill benchmarks/README.md")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--only", help="cases with this in their name")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    cases = chosen_cases(given.only)
    if not cases:
        sys.exit(f"no case has {given.only!r} in its name; there are {[c.name for c in CASES]}")
    budgets, runs = (QUICK, 3) if given.quick else (FULL, None)
    traces = str(DATA / "traces")
    # The longest first, so that no process waits for the other at the end.
    order = sorted(range(len(cases)), key=lambda at: not cases[at].tuned)
    tasks = (delayed(measure)(cases[at], budgets, traces, runs) for at in order)
    found = Parallel(n_jobs=given.workers, return_as="generator")(tasks)
    results = dict(zip(order, tqdm(found, total=len(cases), desc="cases"), strict=True))
    text = section([results[at] for at in range(len(cases))])
    print(text)
    if given.write and not given.quick and given.only is None:
        write_section("frontier", text)


if __name__ == "__main__":
    main()
