"""Checks known results of rules on equal replicas, and measures how fast every rule routes.

    python benchmarks/routers.py            # simulate and measure
    python benchmarks/routers.py --write    # and fill benchmarks/README.md and herd.png
    python benchmarks/routers.py --quick    # see that it works
    python benchmarks/routers.py --only order   # a part: order, herd, speed

Speeds are of one core; decisions are compiled before, in a process of their own.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measuring import ROOT, load_average, origin, table, write_section
from router_runs import (
    FRESH_S,
    HERD_REPLICAS,
    LOAD,
    MAX_TOKENS,
    ORDER,
    POLLS,
    PROFILE,
    SCHEDULER,
    STALE_S,
    Compared,
    equal_replicas,
    herd,
    herd_rule,
    means,
    serve,
    source_at,
)
from router_speeds import OF_UPPER_BOUNDS, REPLICAS, SHARED_PROFILE, measure, speed_table

from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.routers import available

PICTURE = ROOT / "benchmarks" / "herd.png"
PARTS = ("order", "herd", "speed")
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
COMMAND = "python benchmarks/routers.py"


class Sizes(NamedTuple):
    """How much to simulate."""

    runs: int
    requests: int
    """Of each run of the known results."""
    speed_requests: int
    shared_requests: int
    repeats: int


FULL = Sizes(runs=20, requests=20_000, speed_requests=200_000, shared_requests=20_000, repeats=3)
QUICK = Sizes(runs=3, requests=2000, speed_requests=2000, shared_requests=500, repeats=1)


def shown(one: Estimate, digits: int = 3) -> str:
    """Returns a number with its interval."""
    return f"**{one.value:.{digits}f}** ({one.low:.{digits}f} to {one.high:.{digits}f})"


def order_section(replica_counts: Sequence[int], sizes: Sizes) -> str:
    """Returns the README's section on the order of rules on equal replicas."""
    rows, separated = [], []
    for replicas in replica_counts:
        cluster = equal_replicas(replicas)
        source = source_at(cluster)
        found = means(serve(cluster, source, ORDER, sizes.runs, sizes.requests))
        for one in found:
            over = shown(one.ratio) if one.rule != ORDER[-1] else ""
            rows.append([f"{replicas}", f"{source.qps:.1f}", f"`{one.rule}`", shown(one.value)])
            rows[-1].append(over)
        separated += [one.ratio.high < 1 for one in found[:-1]]
    verdict = "met" if all(separated) else "**missed**"
    columns = ["replicas", "requests/s", "rule", "mean E2E (s)", "over the next"]
    return "\n".join(
        [
            "## Rules on equal replicas",
            "",
            origin(f"{COMMAND} --only order"),
            "",
            f"{PROFILE}, {SCHEDULER}, Azure's lengths up to {MAX_TOKENS} tokens, Poisson arrivals "
            f"at {LOAD:.0%} of the capacity; {sizes.runs} runs of {sizes.requests:,} requests, the "
            "same for every rule, 95% intervals of a bootstrap over runs, paired for one rule "
            f"over another. **`{'` <= `'.join(ORDER)}`, each separated from the next: {verdict}.**",
            "",
            table(columns, rows),
        ]
    )


def herd_section(found: Mapping[str, Compared], sizes: Sizes) -> str:
    """Returns the README's section on metrics that are old."""
    fresh, stale = found[herd_rule(FRESH_S)].ratio, found[herd_rule(STALE_S)].ratio
    met = ["met" if one else "**missed**" for one in (fresh.high < 1, stale.low > 1)]
    rows = [[f"`{one.rule}`", shown(one.value), shown(one.ratio, 2)] for one in found.values()]
    return "\n".join(
        [
            "## The herd",
            "",
            origin(f"{COMMAND} --only herd"),
            "",
            f"{HERD_REPLICAS} x {PROFILE}, {SCHEDULER}, at {LOAD:.0%} of the capacity; "
            f"{sizes.runs} runs of {sizes.requests:,} requests. `vllm_dp` sends every request to "
            "the replica that the last poll showed to be idlest, all of them until the next poll. "
            f"**P99 TTFT over `random`'s: with a poll of {FRESH_S:g} s {fresh.value:.2f} (bar: "
            f"better, {met[0]}), of {STALE_S:g} s {stale.value:.2f} (bar: worse, {met[1]}).**",
            "",
            table(["rule", "P99 TTFT (s)", "over `random`"], rows),
            "",
            f"![P99 TTFT over the age of the metrics]({PICTURE.name})",
        ]
    )


def draw(found: Mapping[str, Compared], polls: Sequence[float], path: Path) -> None:
    """Draws the P99 TTFT over the age of the metrics, with bands of 95%."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    polled = [found[herd_rule(poll_s)].value for poll_s in polls]
    panel.plot(polls, [one.value for one in polled], marker="o", color="C0", label="vllm_dp")
    panel.fill_between(
        polls, [one.low for one in polled], [one.high for one in polled], color="C0", alpha=0.25
    )
    for colour, rule in (("C3", "random"), ("C2", "lor")):
        one = found[rule].value
        panel.axhline(one.value, color=colour, label=rule)
        panel.axhspan(one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    panel.set(xscale="log", yscale="log", xlabel="Seconds between polls of the metrics")
    panel.set(ylabel="P99 TTFT (s)", xlim=(min(polls), max(polls)))
    panel.set_title(f"{HERD_REPLICAS} equal replicas at {LOAD:.0%}", loc="left")
    low, high = panel.get_ylim()
    panel.set_xticks(polls)
    panel.set_yticks([tick for tick in SECONDS if low <= tick <= high])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def speed_section(sizes: Sizes, load: float) -> str:
    """Returns the README's section on the speed of every rule."""
    names = list(available())
    speeds = measure(names, sizes.speed_requests, sizes.shared_requests, sizes.repeats)
    return "\n".join(
        [
            "## Speed of the rules",
            "",
            origin(f"{COMMAND} --only speed", load),
            "",
            f"Requests per second of whole `simulate` calls at {REPLICAS} replicas on one core: "
            f"{PROFILE}, {SCHEDULER}, {sizes.speed_requests:,} requests of Azure's lengths at "
            f"{LOAD:.0%} of the capacity; rules that look at prefixes also on {SHARED_PROFILE} "
            f"with {sizes.shared_requests:,} requests under shared prefixes. Medians of "
            f"{sizes.repeats}. The bar is lower for rules that learn online or keep trees. "
            f"An upper bound gets {OF_UPPER_BOUNDS:.0%} of the requests. Compiling is that of a "
            "decision in a process without caches, in this order; blocks that several "
            "share count for the first. The one kernel that serves all is not in it.",
            "",
            speed_table(speeds),
        ]
    )


def main() -> int:
    """Reads the options, simulates and measures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--write", action="store_true", help="fill benchmarks/README.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="only these parts")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick only shows that the benchmark works; leave out --write")
    sizes = QUICK if options.quick else FULL
    parts = options.only or PARTS
    load = load_average() if "speed" in parts else 0.0
    sections = {}
    if "order" in parts:
        sections["order"] = order_section((4, 8), sizes)
    if "herd" in parts:
        found = herd(sizes.runs, sizes.requests)
        sections["herd"] = herd_section(found, sizes)
        if options.write:
            draw(found, POLLS, PICTURE)
    if "speed" in parts:
        sections["speed"] = speed_section(sizes, load)
    print(*sections.values(), sep="\n\n")
    if options.write:
        for name, text in sections.items():
            write_section(name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
