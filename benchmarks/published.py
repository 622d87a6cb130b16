"""Compares simulated with measured clusters and routers, as their makers published them.

    python benchmarks/published.py            # simulate and show the tables
    python benchmarks/published.py --write    # and fill benchmarks/README.md and published.png
    python benchmarks/published.py --seeds 5  # fewer runs

Reads `published/` in `../shared/data` beside the checkout, or in `$LLMROUTE_DATA`. No constant is
fitted to these measurements but where it is said; profiles and rules are those that ship.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from measuring import ROOT, origin, table, write_section
from published_cases import SMG_FILE, number, one_prefix_section, smg_section
from published_picture import draw
from published_runs import (
    ALONE,
    APART_S,
    AT_BEST,
    COMPARISONS,
    GAPS_S,
    METRICS,
    PUBLISHED,
    QWEN,
    RATES,
    SCORERS,
    TOKEN,
    Result,
    paired,
    simulate_all,
)

from llmroute_gym.compare.statistics import Estimate, Resampling, change, estimate
from llmroute_gym.config import EvaluationConfig
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
PLATEAU_BAR, TTFT_BAR = 0.15, 0.25
RATIO_RPS, TOKENS_BAR, FIRST_BAR = 40, 1.8, 50.0
"""At this rate `llmd_token` is to give so many times the tokens/s, and so much less TTFT P90."""
TIMES = {
    metric: f"{title.removesuffix(' (s)')}, times {'more' if metric == 'output_tps' else 'less'}"
    for metric, title in TITLES.items()
}
PROSE = f"""
llm-d's runs of inference-perf's shared prefixes (150 system prompts of 6,000 tokens, 5 questions \
each) on `vllm_v1`, prefix caching on; simulated: means of {{seeds}} seeds. A stage's output \
tokens are divided by the time from its first request to its last end; the plateau is the mean \
over {PLATEAU_RPS} to {TOP_RPS} requests/s. One number is chosen by these measurements, the \
profile's `shared_reads` of 0.44, by the time between tokens under `llmd_baseline` and by nothing \
else; so the numbers of the other rules are predictions. The profiles' limits are used but for the \
memory of Qwen3-32B, of which llm-d's guide gives vLLM 95%, not 90% ("90% of the memory" is the \
profile's own).

- **When a stage begins.** inference-perf waits until all requests of a stage are finished, then \
{APART_S:g} s (`run_stage` in its load generator). So does this replay, as one run whose caches \
and turns carry over. The clock alone ("stages by the clock") would pile up a queue of 20 \
minutes, which nobody measured. inference-perf also begins each stage with the first prompt; here \
prompts go on in turn, as strict turns would otherwise meet at 15 requests/s the very replicas \
that had the same prompts one stage before.
- **Round robin.** With the memory of the guide the P90 of `{SCORERS}`, too, is near at every \
rate from 20 requests/s on. A Kubernetes Service spreads connections, often at random; `random` \
bounds it from the other side, and its 0.8 s are the mean TTFT measured at 15 requests/s, where \
strict turns leave hardly anybody waiting.
- **TTFT in `{TOKEN}`** below 49 requests/s contradicts the tokens/s beside it: at 25 requests/s, \
750 requests arrive within 30 s, last two minutes at 6,350 tokens/s, and the eight servers hold \
some 320 at once, so that half of them cannot start within 0.4 s. The source says that isolated \
stages had empty latency histograms. From 49 requests/s on simulation and measurement agree.
- **The rules of llm-d** win as they were measured to: their requests start at once at every \
rate, mostly 0.07 to 0.09 s sooner than measured, which may be the way through gateway and \
tokenizer that is not simulated. Without shared reads ("{ALONE}") their tokens/s are too low, the \
more requests run at once, as the times between tokens above show: right under round robin, whose \
batches share little, and too long where all requests of a group are at one server. No profile \
can be right there that charges each request's reads of its context: even at the memory bandwidth \
of the data sheet ("{AT_BEST}") `llmd_baseline` is slower than measured. vLLM itself reads a \
prefix once only where all of a batch have it, which they do not here; what is left is the GPU's \
second-level cache, where requests of a group that are read at the same time find each other's \
blocks. If each of 132 processors takes one of the 4 KV heads that a GPU has, 33 requests are \
read at once, of 19 groups some 16: that would save at most 0.58 of all repeated reads. At the \
profile's share of 0.44 `llmd_baseline` has its measured time between tokens; then its plateau is \
the measured one, too, and round robin hardly changes. Other profiles have a share of 0: this \
measurement says little of other kernels and batches.
- **`llmd_token`** spreads groups by what is being prefilled when their first request comes, \
often by chance among idle replicas, and then stays: the fullest of eight replicas has 20 to 24 of \
the 150 groups (19 under `llmd_baseline`, whose no-hit rank deals them out), and a stage lasts as \
long as its fullest replica. So it did where it was measured: at 60 requests/s half of the \
requests took at most 43.9 s, and all 1.5 million tokens at 13,528 a second 111 s. Its plateau \
over that of `llmd_baseline` is simulated 0.80, measured 0.85. Filter, scorer and what counts as \
load were compared with llm-d-router's source.
- **gpt-oss-120b** is simulated too slow under round robin once its queue grows, with several \
times the TTFT. The profile's memory holds 96,368 tokens, 14 of these requests; the source's mean \
of 20.9 ms between tokens and 14,500 tokens/s mean 19 at once on each server. With 1.5 times the \
KV blocks plateau and TTFT are near. So the measured servers had more room than the profile; why \
is open. Under `llmd_token`, which needs less of it, both are near as it is, and so little is its \
measured gain that round robin's error makes all the difference between the ratios.
""".strip()


def plateau(values: FloatArray) -> float:
    """Returns the mean over the stages in which the cluster has more than it can do."""
    return float(values[RATES >= PLATEAU_RPS].mean())


def error(simulated: float, measured: float) -> str:
    """Returns the relative error, nothing where nothing was measured."""
    return "" if np.isnan(measured) else f"{simulated / measured - 1:+.0%}"


def shown(metric: str, value: float) -> str:
    """Returns a number for the tables."""
    return f"{value:,.0f}" if metric == "output_tps" else number(value)


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
        if not one.measured:
            continue
        whole = (plateau(one.mean("output_tps")), plateau(one.measured["output_tps"]))
        top = (float(one.mean(one.ttft)[-1]), float(one.measured[one.ttft][-1]))
        rows.append(
            [
                comparison.setup.name,
                f"`{comparison.rule}`" + (f", {comparison.what_if}" if comparison.what_if else ""),
                f"`{comparison.file}`",
                *_cells([("output_tps", *whole)]),
                TITLES[one.ttft].removeprefix("TTFT ").removesuffix(" (s)"),
                *_cells([(one.ttft, *top)]),
            ]
        )
    return table(columns, rows)


def verdict(results: Sequence[Result]) -> str:
    """Says whether the bars are met."""
    ours = [
        one
        for one in results
        if one.comparison.setup == QWEN
        and one.comparison.router == "round_robin"
        and not one.comparison.what_if
    ]
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


def times(rule: Result, base: Result, metric: str) -> tuple[FloatArray, FloatArray]:
    """Returns how many times better a rule is than round robin: simulated and measured, by stage.

    Better is more tokens, and less of the others; NaN where nothing was measured.
    """
    pairs = [(rule.mean(metric), base.mean(metric))]
    nothing = np.full(len(RATES), np.nan)
    pairs.append((rule.measured.get(metric, nothing), base.measured.get(metric, nothing)))
    better = [one / other if metric == "output_tps" else other / one for one, other in pairs]
    return better[0], better[1]


def interval(rule: Result, base: Result, stage: int) -> Estimate:
    """Returns how many times more tokens/s a rule gives in a stage, 95% over the seeds."""
    ours, theirs = (one.runs["output_tps"][:, stage] for one in (rule, base))
    counts = Resampling.of_runs(len(ours), EvaluationConfig(runs=max(len(ours), 2))).runs
    return estimate(1 + change(counts @ ours, counts @ theirs))


def ratio_table(rule: Result, base: Result) -> str:
    """Returns the table of how many times better a rule is, a row for each rate."""
    metrics = [metric for metric in METRICS if metric in rule.measured]
    columns = ["requests/s"]
    found = []
    for metric in metrics:
        columns += [TIMES[metric], "measured"]
        found.append(times(rule, base, metric))
    rows = []
    for stage, rate in enumerate(RATES):
        row = [f"{rate:g}"]
        for ours, theirs in found:
            row += [f"**{number(ours[stage])}**", number(theirs[stage])]
        rows.append(row)
    return table(columns, rows)


def rules_verdict(results: Sequence[Result], what_if: str = "") -> str:
    """Says whether the bars of the rules are met; of what is otherwise only what it gives."""
    rule, base = next(
        pair
        for pair in paired(results)
        if (pair[0].comparison.file, pair[0].comparison.what_if) == (TOKEN, what_if)
    )
    stage = int(np.flatnonzero(RATES == RATIO_RPS)[0])
    tokens = [float(one[stage]) for one in times(rule, base, "output_tps")]
    over = interval(rule, base, stage)
    first = [float(one[stage]) for one in times(rule, base, "ttft_p90_s")]
    met = [
        "met" if one >= bar else "**missed**"
        for one, bar in ((tokens[0], TOKENS_BAR), (first[0], FIRST_BAR))
    ]
    if what_if:
        return (
            f'With "{what_if}", that is with nothing chosen by a measurement, it is '
            f"{tokens[0]:.2f} ({over.low:.2f} to {over.high:.2f}) times and {first[0]:,.0f} times."
        )
    return (
        f"**`llmd_token` at {RATIO_RPS} requests/s: {tokens[0]:.2f} ({over.low:.2f} to "
        f"{over.high:.2f}) times the output tokens/s of round robin, measured {tokens[1]:.2f}** "
        f"(bar {TOKENS_BAR:g}: {met[0]}); **TTFT P90 {first[0]:,.0f} times lower, measured "
        f"{first[1]:,.0f}** (bar {FIRST_BAR:g}: {met[1]})."
    )


def gaps(results: Sequence[Result]) -> str:
    """Returns the table of mean times between tokens, by what the cluster is."""
    columns = ["time between tokens, mean of all stages (ms)", "measured"]
    words = ("", ALONE, AT_BEST)
    columns += ["as it ships", *words[1:]]
    rows = []
    for (router, file), measured_s in GAPS_S.items():
        row = [f"`{router}`", f"{measured_s * 1e3:.1f}"]
        for word in words:
            found = [
                one.gap_s
                for one in results
                if (one.comparison.router, one.comparison.file, one.comparison.what_if)
                == (router, file, word)
            ]
            row.append(f"**{found[0] * 1e3:.1f}**" if found else "")
        rows.append(row)
    return table(columns, rows)


def section(results: Sequence[Result], seeds: int, command: str) -> str:
    """Returns the README's section."""
    lines = [
        "## Published measurements",
        "",
        origin(command),
        "",
        verdict(results),
        "",
        rules_verdict(results),
        "",
        rules_verdict(results, ALONE),
        "",
        gaps(results),
        "",
        PROSE.format(seeds=seeds),
        "",
        summary(results),
        "",
        f"![Simulated and measured output tokens/s and TTFT]({PICTURE.name})",
    ]
    for rule, base in paired(results):
        one = rule.comparison
        if one.what_if not in (AT_BEST, "90% of the memory"):
            title = f"{one.setup.name}, `{one.rule}` over `round_robin`, `{one.file}.csv`"
            lines += ["", f"### {title}", ""]
            lines += [f"({one.what_if})", ""] if one.what_if else []
            lines.append(ratio_table(rule, base))
    for result in results:
        one = result.comparison
        if result.measured and not one.what_if:
            title = f"### {one.setup.name}, `{one.rule}`, `{one.file}.csv`"
            lines += ["", title, "", detail(result)]
    lines += ["", smg_section(seeds), "", one_prefix_section(max(seeds, 2))]
    return "\n".join(lines)


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
        for path in (
            PUBLISHED / f"{name}.csv"
            for name in (*(one.file for one in COMPARISONS if one.file), SMG_FILE)
        )
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
