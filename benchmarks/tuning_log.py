"""Measures what the tuning log changed: each group of settings alone, together, and taken back.

    python benchmarks/tuning_log.py            # train, serve, print; about an hour
    python benchmarks/tuning_log.py --write    # and fill benchmarks/README.md, tuning_log.csv, .png
    python benchmarks/tuning_log.py --quick    # see that it works

Sixteen configurations are trained with several seeds and serve the same requests at three loads
under three kinds of arrivals, beside round robin and least outstanding requests. Trainings are kept
in a folder: a second call goes on where the first was interrupted. Without --write the files go
there too. Reads `../shared/data` beside the checkout, or `$LLMROUTE_DATA`.
"""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from measuring import DATA, ROOT, origin, table, write_section
from reports import command_of
from tqdm import tqdm
from trainings import (
    LATENCIES,
    Cell,
    Evaluation,
    FloatArray,
    IntArray,
    Options,
    Served,
    Training,
    composed,
    logged,
    serve_once,
    serve_router,
    train_all,
)

from llmroute_gym.compare.statistics import Estimate, Resampling, change, estimate
from llmroute_gym.config import EvaluationConfig, TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent

TRACE = DATA / "traces" / "azure_conv_2023.csv"
GROUPS = ("reward", "exploration", "kl", "temperature", "training")
OLD, NEW, FALLBACK = "original", "latency_tuned", "conservative"
ALONE = ", no demos"
BASELINE, LOR = "round_robin", "lor"
ARRIVALS = ("poisson", "trace", "bursty")
LOADS = (2.5, 3.5, 4.5)
ALL = "all"

PERCENTILES = (50, 95, 99)
METRICS = tuple(f"{latency}_p{q}_s" for latency in LATENCIES for q in PERCENTILES)
COMPARED = ("e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "ttft_p95_s", "ttft_p99_s")
"""Metrics whose changes are reported."""
P95, P99 = "e2e_p95_s", "e2e_p99_s"
TICKS = (-0.3, -0.1, -0.03, 0, 0.03, 0.1, 0.3, 1, 3, 9)
TO_BASELINE, TO_BASE = f"_vs_{BASELINE}", "_vs_changed"
SWING, EARLY_STOP = "swing", "early_stop"


class Sizes(NamedTuple):
    """How much is trained and measured."""

    seeds: int
    runs: int
    requests: int
    resamples: int
    overrides: tuple[str, ...] = ()
    """Of all trainings."""


# Twenty windows of a thousand requests are the whole trace, nearly without overlap.
FULL = Sizes(seeds=10, runs=20, requests=1000, resamples=1000)
QUICK = Sizes(
    seeds=2,
    runs=4,
    requests=100,
    resamples=50,
    overrides=("training.ppo_requests=1024", "warm_start.epochs=2", "warm_start.decisions=100"),
)


class Configuration(NamedTuple):
    """An option for each group."""

    name: str
    options: Mapping[str, str]
    changed: str | None = None
    """The configuration that this one is a change of."""
    more: tuple[str, ...] = ()
    """Settings beside the groups."""

    def training(self, seed: int, overrides: Sequence[str] = ()) -> Training:
        """Returns one of its trainings."""
        options = [f"{group}={option}" for group, option in self.options.items()]
        # A setting of demonstrations would have no effect without them.
        overrides = [one for one in overrides if not self.more or "warm_start" not in one]
        settings: TrainConfig = composed(*options, *self.more, *overrides, f"seed={seed}")
        return Training(f"{self.name.replace(', ', '-').replace(' ', '')}-{seed}", settings)


class Policy(NamedTuple):
    """A rule, or all trainings of one configuration."""

    name: str
    served: Served
    changed: str | None = None
    learning: Mapping[str, FloatArray] | None = None
    """`SWING` and `EARLY_STOP` of each training, (n_seeds,)."""


class Where(NamedTuple):
    """What a line of the CSV file is about; `ALL` pools."""

    name: str
    seed: str = ALL
    arrivals: str = ALL
    qps: float | str = ALL


Numbers = dict[Where, dict[str, Estimate]]


def configurations() -> list[Configuration]:
    """Returns the log's three configurations, and the first two with one group changed.

    And all three without demonstrations, PPO alone.
    """
    old, new = dict.fromkeys(GROUPS, OLD), dict.fromkeys(GROUPS, NEW)
    alone = [
        Configuration(
            one + ALONE,
            dict.fromkeys(GROUPS, one),
            None if one == OLD else OLD + ALONE,
            ("warm_start=none",),
        )
        for one in (OLD, NEW, FALLBACK)
    ]
    return [
        Configuration(OLD, old),
        *(Configuration(f"{OLD} + {one}", old | {one: NEW}, OLD) for one in GROUPS),
        Configuration(NEW, new, OLD),
        *(Configuration(f"{NEW} - {one}", new | {one: OLD}, NEW) for one in GROUPS),
        Configuration(FALLBACK, dict.fromkeys(GROUPS, FALLBACK), OLD),
        *alone,
    ]


def draw_requests(sizes: Sizes) -> Evaluation:
    """Draws what everything serves: each kind of arrivals at each load."""
    config = EvaluationConfig(runs=sizes.runs, requests=sizes.requests, resamples=sizes.resamples)
    cells = [Cell(arrivals, qps) for arrivals, qps in product(ARRIVALS, LOADS)]
    return Evaluation.draw(cells, config.validate(), TRACE)


def measure(sizes: Sizes, evaluation: Evaluation, folder: Path, jobs: int) -> list[Policy]:
    """Trains and serves what is not there yet; returns all configurations, then the rules."""
    trainings = {
        one.name: [one.training(seed, sizes.overrides) for seed in range(sizes.seeds)]
        for one in configurations()
    }
    # Seed by seed, so that an interrupted benchmark has something of each configuration.
    in_order = [one for round_ in zip(*trainings.values(), strict=True) for one in round_]
    folders = train_all(in_order, folder, evaluation, jobs)
    policies = []
    for one in configurations():
        done = [folders[training.name] for training in trainings[one.name]]
        learning = {
            SWING: np.array([_mean(logged(training, "replica/swing")) for training in done]),
            EARLY_STOP: np.array(
                [_mean(logged(training, "train/early_stop")) for training in done]
            ),
        }
        served = Served.of_seeds([serve_once(training, evaluation) for training in done])
        policies.append(Policy(one.name, served, one.changed, learning))
    return policies + [Policy(name, serve_router(name, evaluation)) for name in (BASELINE, LOR)]


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else math.nan


def estimate_all(policies: Sequence[Policy], sizes: Sizes, evaluation: Evaluation) -> Numbers:
    """Estimates every metric in every cell and pooled, per seed and over all seeds."""
    resampling = Resampling.draw(sizes.seeds, evaluation.config)
    found: Numbers = {}
    places = list(product((*ARRIVALS, ALL), (*LOADS, ALL)))
    for arrivals, qps in tqdm(places, desc="intervals", unit="cell"):
        cells = evaluation.where(
            None if arrivals == ALL else arrivals, None if isinstance(qps, str) else qps
        )
        pooled = {one.name: _percentiles(one.served, cells, resampling) for one in policies}
        once = {
            name: {key: value[:1] for key, value in one.items()} for name, one in pooled.items()
        }
        for one in policies:
            whole = Where(one.name, ALL, arrivals, qps)
            found[whole] = _compared(one, pooled[one.name], pooled)
            for seed in range(sizes.seeds if one.learning else 0):
                alone = _percentiles(one.served.seed(seed), cells, resampling.once())
                found[whole._replace(seed=str(seed))] = _compared(one, alone, once)
    for one in policies:
        for name, values in (one.learning or {}).items():
            found[Where(one.name)][name] = estimate(resampling.means(values))
            for seed, value in enumerate(values):
                found[Where(one.name, str(seed))][name] = Estimate(float(value), math.nan, math.nan)
    return found


def _percentiles(served: Served, cells: IntArray, resampling: Resampling) -> dict[str, FloatArray]:
    metrics: dict[str, FloatArray] = {}
    for latency, values in zip(LATENCIES, served.at(cells), strict=True):
        names = (f"{latency}_p{q}_s" for q in PERCENTILES)
        metrics |= zip(names, resampling.percentiles(values, PERCENTILES).T, strict=True)
    return metrics


def _compared(
    policy: Policy, own: Mapping[str, FloatArray], others: Mapping[str, Mapping[str, FloatArray]]
) -> dict[str, Estimate]:
    estimates = {name: estimate(own[name]) for name in METRICS}
    for suffix, other in ((TO_BASELINE, BASELINE), (TO_BASE, policy.changed)):
        if other is not None and other != policy.name:
            for name in COMPARED:
                estimates[name + suffix] = estimate(change(own[name], others[other][name]))
    return estimates


# Reports


def write_csv(numbers: Numbers, policies: Sequence[Policy], path: Path) -> None:
    """Writes one line per configuration, seed, arrivals and load; seeds alone have no intervals."""
    changes = [name + suffix for suffix in (TO_BASELINE, TO_BASE) for name in COMPARED]
    names = [*METRICS, *changes, SWING, EARLY_STOP]
    changed = {one.name: one.changed or "" for one in policies}
    with complete_or_absent(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
        writer.writerow(["configuration", "changed", "seed", "arrivals", "qps", *ends])
        for where, estimates in numbers.items():
            line = [where.name, changed[where.name], *where[1:]]
            for name in names:
                one = estimates.get(name, Estimate(math.nan, math.nan, math.nan))
                line += [
                    "" if math.isnan(x) else f"{x:.4g}" for x in (one.value, one.low, one.high)
                ]
            writer.writerow(line)


def _seconds(one: Estimate) -> str:
    return _cell(*(f"{x:#.3g}".rstrip(".") for x in (one.value, one.low, one.high)))


def _percent(one: Estimate | None) -> str:
    """Returns a change, bold where the interval leaves zero out."""
    if one is None:
        return ""
    value, low, high = (f"{x:+.1%}" for x in (one.value, one.low, one.high))
    return _cell(f"**{value}**" if excludes_zero(one) else value, low, high)


def _share(one: Estimate | None) -> str:
    if one is None:
        return ""
    return _cell(*(f"{x:.1%}" for x in (one.value, one.low, one.high)))


def _cell(value: str, low: str, high: str) -> str:
    return f"{value}<br><sub>{low} … {high}</sub>"


def excludes_zero(one: Estimate) -> bool:
    """Whether an interval says in which direction a change goes."""
    return one.low > 0 or one.high < 0


def summary_table(numbers: Numbers, policies: Sequence[Policy]) -> str:
    """Returns the one table: all cells pooled, the change at each load, and the learning."""
    columns = [
        "configuration",
        *(f"{name} P{q} (s)" for name in ("E2E", "TTFT") for q in (50, 95, 99)),
    ]
    columns += [f"P99 at {qps:g} QPS" for qps in LOADS]
    columns += ["P99 by the change", "swing", "early stops"]
    rows = []
    for one in policies:
        pooled = numbers[Where(one.name)]
        at_load = (numbers[Where(one.name, qps=qps)].get(P99 + TO_BASELINE) for qps in LOADS)
        rows.append(
            [
                f"`{one.name}`",
                *(_seconds(pooled[name]) for name in METRICS),
                *map(_percent, at_load),
                _percent(pooled.get(P99 + TO_BASE)),
                _share(pooled.get(SWING)),
                _share(pooled.get(EARLY_STOP)),
            ]
        )
    return table(columns, rows)


def findings(numbers: Numbers) -> list[str]:
    """Words what the log expects with the numbers that were found, whatever they are."""

    def words(one: Estimate) -> str:
        return f"{one.value:+.1%} ({one.low:+.1%} to {one.high:+.1%})"

    old, new = numbers[Where(OLD)], numbers[Where(NEW)]
    alone_old, alone_new = numbers[Where(OLD + ALONE)], numbers[Where(NEW + ALONE)]
    loads = ", ".join(
        f"{words(numbers[Where(NEW, qps=qps)][P99 + TO_BASELINE])} at {qps:g}" for qps in LOADS
    )
    kinds = ", ".join(
        f"{words(numbers[Where(NEW, arrivals=one)][P99 + TO_BASELINE])} with {one}"
        for one in ARRIVALS
    )
    alone = {f"{OLD} + {one}": f"`{one}`" for one in GROUPS}
    back = {f"{NEW} - {one}": f"`{one}`" for one in GROUPS}
    return [
        f"`{NEW}` against `{OLD}`, everything pooled: E2E P95 {words(new[P95 + TO_BASE])}, "
        f"P99 {words(new[P99 + TO_BASE])}; the swing of the action shares goes from "
        f"{old[SWING].value:.1%} to {new[SWING].value:.1%}, updates stopped early from "
        f"{old[EARLY_STOP].value:.0%} to {new[EARLY_STOP].value:.0%}; without demonstrations "
        f"P99 changes by {words(alone_new[P99 + TO_BASE])}, from "
        f"{words(alone_old[P99 + TO_BASELINE])} against `{BASELINE}` to "
        f"{words(alone_new[P99 + TO_BASELINE])}.",
        f"`{NEW}` against `{BASELINE}`, E2E P99: {loads} requests/s; {kinds} arrivals.",
        f"One group alone, added to `{OLD}`: {_sorted_out(numbers, alone)}. One group taken back "
        f"from `{NEW}`: {_sorted_out(numbers, back)}.",
    ]


def _sorted_out(numbers: Numbers, names: Mapping[str, str]) -> str:
    """Names the groups whose interval of the pooled P99 leaves zero out, and how many do not."""
    changes = {group: numbers[Where(name)][P99 + TO_BASE] for name, group in names.items()}
    clear = {group: one for group, one in changes.items() if excludes_zero(one)}
    told = [f"{group} changes P99 by {one.value:+.1%}" for group, one in clear.items()]
    unclear = [group for group in changes if group not in clear]
    if unclear:
        told.append(f"the intervals of {', '.join(unclear)} include no change")
    return "; ".join(told)


def sampling_swing(decisions: int, replicas: int) -> float:
    """Returns the expected total variation between two samples of one even distribution.

    From the normal approximation of multinomial counts.
    """
    share = 1 / replicas
    deviation = math.sqrt(2 * share * (1 - share) / decisions)
    return 0.5 * replicas * math.sqrt(2 / math.pi) * deviation


def section(numbers: Numbers, policies: Sequence[Policy], sizes: Sizes, command: str) -> str:
    """Returns the README's section."""
    defaults = TrainConfig()
    decisions = defaults.env.num_envs * defaults.training.rollout_steps
    independent = sampling_swing(decisions, defaults.cluster.replicas)
    trained = {
        one.name: one.training(0).settings.training
        for one in configurations()
        if one.name in (OLD, FALLBACK, NEW)
    }
    lengths = ", ".join(
        f"`{name}` {one.ppo_requests:,} requests at {one.qps:g} requests/s"
        for name, one in trained.items()
    )
    return "\n".join(
        [
            "## The tuning log, measured",
            "",
            origin(command),
            "",
            "Each configuration is trained on the default cluster with seeds 0 to "
            f"{sizes.seeds - 1}, for as long and at the load that its group `training` says: "
            f"{lengths}. `+ group` sets that group of `{OLD}` to `{NEW}`'s, `- group` sets that "
            f"group of `{NEW}` back; all start from a clone of demonstrations but those with *no "
            "demos*, which are PPO alone. All serve the same requests: "
            f"{', '.join(f'{qps:g}' for qps in LOADS)} requests/s, each with Poisson and bursty "
            "arrivals (lengths drawn as in training) and with windows spread evenly over the "
            f"Azure conversation trace at its own times, stretched; {sizes.runs} runs of "
            f"{sizes.requests:,} requests in each of these {len(LOADS) * len(ARRIVALS)} cells.",
            "",
            "Percentiles are over all requests, seeds and cells together, so that the slowest "
            "cells, those with bursts, make the tail; [tuning_log.csv](tuning_log.csv) has each "
            "cell and each seed alone. *P99 at … QPS* is the change of the end-to-end P99 against "
            f"`{BASELINE}`, *P99 by the change* that of the pooled one against the configuration "
            f"that was changed: `{NEW}` where a group is set back, else `{OLD}`, also without "
            "demonstrations. *Swing* is the "
            "mean total variation between the action shares of consecutive rollouts of a training "
            f"({decisions} decisions each; decisions drawn evenly and independently of the load "
            f"would show {independent:.1%}), *early stops* the share of updates that `target_kl` "
            "ended early. Below each number stands its 95% interval, training seeds and whole runs "
            "resampled, the same ones for all; bold changes are those whose interval leaves zero "
            "out, of which some do so by chance among this many.",
            "",
            *(f"- {finding}" for finding in findings(numbers)),
            "",
            summary_table(numbers, policies),
            "",
            "![P99 against round robin, by configuration, load and arrivals](tuning_log.png)",
        ]
    )


def draw(numbers: Numbers, policies: Sequence[Policy], path: Path) -> None:
    """Draws each configuration's change of P99: estimate, interval, and a dot for each seed."""
    shown = [one for one in policies if one.name != BASELINE]
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(1, len(LOADS), sharex=True, sharey=True)
    for panel, qps in zip(panels, LOADS, strict=True):
        for row, one in enumerate(shown):
            for index, arrivals in enumerate(ARRIVALS):
                height = row + 0.26 * (index - 1)
                _forest_row(
                    panel, numbers, Where(one.name, ALL, arrivals, qps), height, f"C{index}"
                )
            if row % 2:
                panel.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
        panel.axvline(0, color="0.3", linewidth=1)
        panel.set_title(f"{qps:g} requests/s")
        panel.tick_params(axis="x", labelsize="small")
        panel.grid(axis="x", alpha=0.3)
    # Changes of a few percent and of half as much again shall both be read.
    panels[0].set_xscale("symlog", linthresh=TICKS[4], linscale=0.6)
    panels[0].xaxis.set_major_locator(FixedLocator(TICKS))
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].xaxis.set_major_formatter(FuncFormatter(_change))
    panels[0].set_yticks(range(len(shown)), [one.name for one in shown])
    for label in panels[0].get_yticklabels():
        label.set_fontweight(
            "bold" if label.get_text().removesuffix(ALONE) in (OLD, NEW, FALLBACK) else "normal"
        )
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    for index, arrivals in enumerate(ARRIVALS):
        panels[0].plot([], [], "D-", color=f"C{index}", markersize=5, label=arrivals)
    panels[0].plot([], [], "o", color="0.4", markersize=3, alpha=0.6, label="one seed")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    figure.supxlabel(
        f"Change of the end-to-end P99 against {BASELINE}, with 95% intervals "
        f"(logarithmic beyond {TICKS[4]:.0%})"
    )
    with complete_or_absent(path) as part:
        figure.savefig(part, dpi=110)


def _change(value: float, _: int) -> str:
    """Words a change as short as it can be read."""
    return f"×{1 + value:g}" if value >= 1 else f"{value:+.0%}" if value else "0"


def _forest_row(panel: Axes, numbers: Numbers, where: Where, height: float, color: str) -> None:
    one = numbers[where][P99 + TO_BASELINE]
    panel.plot([one.low, one.high], [height, height], color=color, linewidth=1.5)
    panel.plot(one.value, height, "D", color=color, markersize=5)
    seeds = [other for other in numbers if other.seed != ALL and other._replace(seed=ALL) == where]
    values = [numbers[other][P99 + TO_BASELINE].value for other in seeds]
    panel.plot(values, [height] * len(values), "o", color=color, markersize=3, alpha=0.5)


def report(numbers: Numbers, policies: Sequence[Policy], text: str, folder: Path) -> None:
    """Writes the CSV file and the picture, and prints the section."""
    write_csv(numbers, policies, folder / "tuning_log.csv")
    draw(numbers, policies, folder / "tuning_log.png")
    print(f"{text}\n\n{folder / 'tuning_log.csv'}\n{folder / 'tuning_log.png'}")


def main() -> int:
    """Trains, serves, reports, and writes if asked; returns the exit code."""
    options = Options.read(__doc__.splitlines()[0], FULL.seeds, QUICK.seeds)
    sizes = (QUICK if options.quick else FULL)._replace(seeds=options.seeds)
    if not TRACE.is_file():
        print(f"no {TRACE}; set LLMROUTE_DATA to the folder of the data", file=sys.stderr)
        return 2
    command = command_of("tuning_log", options, FULL.seeds)
    try:
        evaluation = draw_requests(sizes)
        policies = measure(sizes, evaluation, options.folder, options.jobs)
        numbers = estimate_all(policies, sizes, evaluation)
        text = section(numbers, policies, sizes, command)
        report(numbers, policies, text, ROOT / "benchmarks" if options.write else options.folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if options.write:
        write_section("tuning-log", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
