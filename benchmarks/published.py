"""Compares simulated with measured clusters: llm-d's published runs of many prompts under few.

    python benchmarks/published.py            # simulate and show the tables
    python benchmarks/published.py --write    # and fill benchmarks/README.md and published.png
    python benchmarks/published.py --seeds 5  # fewer runs

Reads `published/` in `../shared/data` beside the checkout, or in `$LLMROUTE_DATA`. No constant is
fitted to these measurements: profiles, their limits and the scheduler are those that ship.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring import ROOT, origin, table, write_section
from published_runs import (
    APART_S,
    COMPARISONS,
    GPT_OSS_TOKEN,
    METRICS,
    PUBLISHED,
    QWEN,
    RATES,
    SCORERS,
    TOKEN,
    Result,
    simulate_all,
)

from llmroute_gym.ground.arrays import FloatArray

PICTURE = ROOT / "benchmarks" / "published.png"
SEEDS = 10
PLATEAU_RPS = 30
"""Rate from which a cluster of the tables gives no more, whatever comes."""
TOP_RPS = 60
TITLES = {
    "output_tps": "output tokens/s",
    "ttft_mean_s": "TTFT mean (s)",
    "ttft_p50_s": "TTFT P50 (s)",
    "ttft_p90_s": "TTFT P90 (s)",
}
PANELS = (("output_tps",), ("ttft_p50_s", "ttft_mean_s"), ("ttft_p90_s",))
NAMES = {SCORERS: "scorers", TOKEN: "token", GPT_OSS_TOKEN: "token"}
MARKERS = {SCORERS: "o", TOKEN: "s", GPT_OSS_TOKEN: "s"}
"""Of the files, in the picture."""
PLATEAU_BAR, TTFT_BAR = 0.15, 0.25
PROSE = f"""
llm-d's runs of inference-perf's shared prefixes (150 system prompts of 6,000 tokens, 5 questions \
each) on `vllm_v1` with the profiles' own limits, prefix caching on; simulated: means of {{seeds}} \
seeds. A stage's output tokens are divided by the time from its first request to its last end; the \
plateau is the mean over {PLATEAU_RPS} to {TOP_RPS} requests/s. Nothing is fitted to these numbers.

- **When a stage begins.** inference-perf waits until all requests of a stage are finished, then \
{APART_S:g} s (`run_stage` in its load generator). So does this replay, as one run whose caches \
and turns carry over. The clock alone ("stages by the clock") would pile up a queue of 20 minutes, \
which nobody measured. inference-perf also begins each stage with the first prompt; here prompts \
go on in turn, as strict turns would otherwise meet at 15 requests/s the very replicas that had \
the same prompts one stage before.
- **Round robin.** A Kubernetes Service spreads connections, often at random; "at random" bounds \
it from the other side. In between lie both plateaus measured of Qwen3-32B, and its mean TTFT at \
15 requests/s, where strict turns leave hardly anybody waiting.
- **TTFT in `{TOKEN}`** below 49 requests/s contradicts the tokens/s beside it: at 25 requests/s, \
750 requests arrive within 30 s, last two minutes at 6,350 tokens/s, and the eight servers hold \
some 290 at once, so that half of them cannot start within 0.4 s. The source says that isolated \
stages had empty latency histograms. From 49 requests/s on simulation and measurement agree.
- **P90** in `{SCORERS}` is about 50% shorter than simulated at 20 to 35 requests/s, where means \
differ by 7% to 15%. Outputs are equally long, so requests are admitted in waves, and a percentile \
lies in one wave or the next; whether that is all of it is open.
- **gpt-oss-120b** is simulated too slow once its queue grows, with several times the TTFT. The \
profile's memory holds 96,368 tokens, 14 of these requests; the source's mean of 20.9 ms between \
tokens and 14,500 tokens/s mean 19 at once on each server. With 1.5 times the KV blocks plateau \
and TTFT are near. So the measured servers had more room than the profile; why is open.
""".strip()


def plateau(values: FloatArray) -> float:
    """Returns the mean over the stages in which the cluster has more than it can do."""
    return float(values[RATES >= PLATEAU_RPS].mean())


def error(simulated: float, measured: float) -> str:
    """Returns the relative error, nothing where nothing was measured."""
    return "" if np.isnan(measured) else f"{simulated / measured - 1:+.0%}"


def shown(metric: str, value: float) -> str:
    """Returns a number for the tables."""
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if metric == "output_tps" or value >= 100 else f"{value:.3g}"


def detail(result: Result) -> str:
    """Returns the table of one comparison, a row for each rate."""
    metrics = [metric for metric in METRICS if metric in result.measured]
    columns = ["requests/s"]
    for metric in metrics:
        columns += [TITLES[metric], "measured", "error"]
    rows = [
        [
            f"{rate:g}",
            *_cells(
                (metric, result.mean(metric)[stage], result.measured[metric][stage])
                for metric in metrics
            ),
        ]
        for stage, rate in enumerate(RATES)
    ]
    whole = (plateau(result.mean("output_tps")), plateau(result.measured["output_tps"]))
    rows.append([f"{PLATEAU_RPS} to {TOP_RPS}", *_cells([("output_tps", *whole)])])
    rows[-1] += [""] * (len(columns) - len(rows[-1]))
    return table(columns, rows)


def _cells(values: Iterable[tuple[str, float, float]]) -> list[str]:
    cells = []
    for metric, ours, theirs in values:
        cells += [f"**{shown(metric, ours)}**", shown(metric, theirs), error(ours, theirs)]
    return cells


def summary(results: Sequence[Result]) -> str:
    """Returns the table of plateaus and of the middle TTFT at the highest rate."""
    columns = ["cluster", "simulated", "file", "plateau (tokens/s)", "measured", "error"]
    columns += [f"TTFT at {TOP_RPS}/s", "simulated (s)", "measured (s)", "error"]
    rows = []
    for one in results:
        comparison = one.comparison
        whole = (plateau(one.mean("output_tps")), plateau(one.measured["output_tps"]))
        top = (float(one.mean(one.ttft)[-1]), float(one.measured[one.ttft][-1]))
        rows.append(
            [
                comparison.setup.name,
                comparison.what_if or f"`{comparison.router}`",
                f"`{comparison.file}`",
                *_cells([("output_tps", *whole)]),
                "median" if one.ttft == "ttft_p50_s" else "mean",
                *_cells([(one.ttft, *top)]),
            ]
        )
    return table(columns, rows)


def verdict(results: Sequence[Result]) -> str:
    """Says whether the bars are met."""
    ours = [one for one in results if one.comparison.setup == QWEN and not one.comparison.what_if]
    simulated = plateau(ours[0].mean("output_tps"))
    measured = float(np.mean([plateau(one.measured["output_tps"]) for one in ours]))
    token = next(one for one in ours if one.comparison.file == TOKEN)
    first = (float(token.mean("ttft_p50_s")[-1]), float(token.measured["ttft_p50_s"][-1]))
    met = [
        "met" if abs(one / other - 1) <= bar else "**missed**"
        for one, other, bar in ((simulated, measured, PLATEAU_BAR), (*first, TTFT_BAR))
    ]
    return (
        f"**Qwen3-32B under round robin: plateau {simulated:,.0f} output tokens/s, measured "
        f"{measured:,.0f} (mean of both tables), {error(simulated, measured)}** (bar "
        f"{PLATEAU_BAR:.0%}: {met[0]}); **TTFT P50 at {TOP_RPS} requests/s {first[0]:.1f} s, "
        f"measured {first[1]:.1f} s, {error(*first)}** (bar {TTFT_BAR:.0%}: {met[1]})."
    )


def section(results: Sequence[Result], seeds: int, command: str) -> str:
    """Returns the README's section."""
    lines = [
        "## Published measurements",
        "",
        origin(command),
        "",
        verdict(results),
        "",
        PROSE.format(seeds=seeds),
        "",
        summary(results),
        "",
        f"![Simulated and measured output tokens/s and TTFT]({PICTURE.name})",
    ]
    for one in results:
        if not one.comparison.what_if:
            title = f"### {one.comparison.setup.name}, `{one.comparison.router}`"
            lines += ["", f"{title}, `{one.comparison.file}.csv`", "", detail(one)]
    return "\n".join(lines)


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws simulated lines, with the range of the seeds, and measured points against the rate."""
    shown_results = [one for one in results if not one.comparison.what_if]
    groups: dict[str, list[Result]] = {}
    for one in shown_results:
        name = f"{one.comparison.setup.name}, {one.comparison.router}"
        groups.setdefault(name, []).append(one)
    figure = Figure(figsize=(13, 3.9 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 3, squeeze=False)
    for row, (name, members) in zip(panels, groups.items(), strict=True):
        for panel, metrics in zip(row, PANELS, strict=True):
            _panel(panel, members, metrics)
        row[0].set_title(name, loc="left")
    for panel in panels[-1]:
        panel.set_xlabel("Requests/s")
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, results: Sequence[Result], metrics: Sequence[str]) -> None:
    colour = 0
    for metric in metrics:
        measured = [one for one in results if metric in one.measured]
        if not measured:
            continue
        runs = measured[0].runs[metric]
        name = TITLES[metric].removesuffix(" (s)")
        panel.plot(RATES, runs.mean(axis=0), color=f"C{colour}", label=f"{name}, simulated")
        panel.fill_between(
            RATES, runs.min(axis=0), runs.max(axis=0), color=f"C{colour}", alpha=0.25, linewidth=0
        )
        for one in measured:
            panel.plot(
                *(RATES, one.measured[metric]),
                linestyle="",
                marker=MARKERS[one.comparison.file],
                color=f"C{colour}",
                markeredgecolor="black",
                label=f"{name}, measured ({NAMES[one.comparison.file]})",
            )
        colour += 1
    if metrics == ("output_tps",):
        panel.set(ylabel="Output tokens/s", ylim=(0, None))
    else:
        panel.set(ylabel="Seconds", yscale="log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_ylim(top=10 * panel.get_ylim()[1])  # room for the legend
    panel.grid(alpha=0.3, which="both")
    if metrics == ("output_tps",):
        panel.legend(frameon=False, fontsize="small", loc="lower right")
    else:
        panel.legend(frameon=False, fontsize="small", loc="upper left")


def main() -> int:
    """Simulates, prints, and writes if asked; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="runs of each, default %(default)s"
    )
    parser.add_argument("--write", action="store_true", help="fill benchmarks/README.md")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"expected at least 1 seed, got --seeds {options.seeds}")
    missing = [
        path
        for path in (PUBLISHED / f"{one.file}.csv" for one in COMPARISONS)
        if not path.is_file()
    ]
    if missing:
        print(f"no {missing[0]}; set LLMROUTE_DATA to the folder of the data", file=sys.stderr)
        return 2
    results = simulate_all(options.seeds)
    command = "python benchmarks/published.py"
    if options.seeds != SEEDS:
        command += f" --seeds {options.seeds}"
    text = section(results, options.seeds, command)
    print(text)
    if options.write:
        write_section("published", text)
        draw(results, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
