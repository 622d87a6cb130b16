"""Measures what the tuning log leaves open: batches, demonstrations and networks, over many seeds.

    python benchmarks/learner.py            # train, serve, print; an hour or two on one core
    python benchmarks/learner.py --write    # and fill benchmarks/README.md, learner.csv, .png
    python benchmarks/learner.py --quick    # see that it works

Each training of `latency_tuned` has large or small batches, constant or rising load, demonstrations
or none, and one of two networks; it serves the same requests at four loads, the last of which is
beyond what any has trained at. Trainings are kept in a folder: a second call goes on where the
first was interrupted. Without --write the files go there too.
"""

import csv
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from measuring import origin, table
from reports import command_of, report
from trainings import (
    Cell,
    Evaluation,
    FloatArray,
    Options,
    Served,
    Training,
    composed,
    serve_once,
    serve_router,
    train_all,
)

from llmroute_gym.compare.statistics import Estimate, Resampling, change, estimate
from llmroute_gym.config import EvaluationConfig, TrainConfig

NAME = "learner"
BASE = "+exp=latency_tuned"
BASELINE, RULES = "round_robin", ("lor", "lor_hybrid")
LOADS = (2.5, 3.5, 4.5, 5.5)
PERCENTS = (95, 99)
TICKS = (1, 1.5, 3, 10)
QUICK_OVERRIDES = (
    "training.ppo_requests=1024",
    "warm_start.epochs=2",
    "warm_start.decisions=100",
    "stabilization.steps=20",
)


class Sizes(NamedTuple):
    """How much is trained and measured."""

    seeds: int
    runs: int
    requests: int
    resamples: int
    overrides: tuple[str, ...] = ()
    """Of all trainings."""


FULL = Sizes(seeds=10, runs=20, requests=1000, resamples=1000)
QUICK = Sizes(seeds=2, runs=4, requests=100, resamples=50, overrides=QUICK_OVERRIDES)


class Configuration(NamedTuple):
    """An option for each thing that is varied."""

    batches: str
    load: str
    start: str
    network: str

    @property
    def name(self) -> str:
        """What folders and lines are called."""
        return "-".join(self)

    def training(self, seed: int, overrides: Sequence[str] = ()) -> Training:
        """Returns one of its trainings."""
        cloning = self.start == "demonstrations"
        # A setting of demonstrations would have no effect without them.
        chosen = [one for one in overrides if cloning or "warm_start" not in one]
        settings: TrainConfig = composed(
            BASE,
            f"learner={self.batches}_batches",
            f"curriculum={'qps_ramp' if self.load == 'ramp' else 'none'}",
            f"warm_start={self.start}",
            f"model={self.network}",
            *chosen,
            f"seed={seed}",
        )
        return Training(f"{NAME}-{self.name}-{seed}", settings)


CONFIGURATIONS = tuple(
    Configuration(batches, load, start, network)
    for network, batches, load, start in product(
        ("replica_set", "mlp"),
        ("large", "small"),
        ("constant", "ramp"),
        ("demonstrations", "none"),
    )
)


class Tails(NamedTuple):
    """P95 and P99 of the end-to-end latency against round robin's, as ratios, at one load."""

    pooled: tuple[Estimate, Estimate]
    seeds: FloatArray
    """(n_seeds, 2)"""

    @property
    def worst(self) -> float:
        """The largest ratio of a single seed."""
        return float(self.seeds.max())


Measured = dict[str, list[Tails]]
"""Configuration or rule to its tails at each of `LOADS`."""


def measure(sizes: Sizes, folder: Path, jobs: int) -> Measured:
    """Trains and serves what is not there yet, seed by seed; returns all, then the rules."""
    config = EvaluationConfig(
        runs=sizes.runs, requests=sizes.requests, resamples=sizes.resamples
    ).validate()
    evaluation = Evaluation.draw([Cell("poisson", qps) for qps in LOADS], config)
    trainings = {
        one.name: [one.training(seed, sizes.overrides) for seed in range(sizes.seeds)]
        for one in CONFIGURATIONS
    }
    in_order = [one for round_ in zip(*trainings.values(), strict=True) for one in round_]
    folders = train_all(in_order, folder, evaluation, jobs)
    served = {
        name: Served.of_seeds([serve_once(folders[one.name], evaluation) for one in some])
        for name, some in trainings.items()
    }
    served |= {rule: serve_router(rule, evaluation) for rule in RULES}
    return compared(served, serve_router(BASELINE, evaluation), config)


def compared(served: dict[str, Served], baseline: Served, config: EvaluationConfig) -> Measured:
    """Returns the ratios of all to the baseline's percentiles."""
    n_seeds = max(len(one.e2e) for one in served.values())
    resampling = Resampling.draw(n_seeds, config)
    measured: Measured = {}
    for name, one in served.items():
        measured[name] = []
        for load in range(len(LOADS)):
            base = resampling.percentiles(baseline.e2e[:, load : load + 1], PERCENTS)
            own = resampling.percentiles(one.e2e[:, load : load + 1], PERCENTS)
            p95, p99 = (estimate(1 + change(own[:, i], base[:, i])) for i in (0, 1))
            each = np.percentile(one.e2e[:, load].reshape(len(one.e2e), -1), PERCENTS, axis=1)
            measured[name].append(Tails((p95, p99), each.T / base[0]))
    return measured


# Reports


def write_csv(measured: Measured, path: Path) -> None:
    """Writes one line per configuration or rule, seed and load; ``all`` pools the seeds."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"p{q}{end}" for q in PERCENTS for end in ("", "_low", "_high")]
        writer.writerow([*Configuration._fields, "seed", "qps", *ends])
        options = {one.name: tuple(one) for one in CONFIGURATIONS}
        for name, loads in measured.items():
            labels = options.get(name, ("", "", name, ""))
            for qps, tails in zip(LOADS, loads, strict=True):
                pooled = [x for one in tails.pooled for x in (one.value, one.low, one.high)]
                writer.writerow([*labels, "all", qps, *(f"{x:.4g}" for x in pooled)])
                for seed, (p95, p99) in enumerate(tails.seeds if name in options else ()):
                    cells = (f"{p95:.4g}", "", "", f"{p99:.4g}", "", "")
                    writer.writerow([*labels, seed, qps, *cells])


def summary(measured: Measured) -> str:
    """Returns the table: P99, the worst seed of P95 and P99, and how many seeds lose somewhere."""
    rows: list[list[object]] = []
    for one in CONFIGURATIONS:
        loads = measured[one.name]
        losing = np.any([tails.seeds.max(axis=1) > 1 for tails in loads], axis=0)
        labels = [f"`{one.network}`", one.batches, one.load, one.start]
        rows.append([*labels, *map(_cell, loads), f"{losing.sum()} of {len(losing)}"])
    for rule in RULES:
        rows.append([f"`{rule}`", "", "", "a rule", *map(_cell, measured[rule]), ""])
    titles = ["network", "batches", "trained at", "start", *(f"at {qps:g}" for qps in LOADS)]
    return table([*titles, "seeds that lose"], rows)


def _cell(tails: Tails) -> str:
    p95, p99 = tails.pooled
    return (
        f"{p95.value:.3f}, {p99.value:.3f}<br><sub>{p99.low:.3f} … {p99.high:.3f}; "
        f"worst {tails.worst:.3f}</sub>"
    )


def section(measured: Measured, sizes: Sizes, command: str) -> str:
    """Returns the README's section."""
    shown = [composed(BASE, f"learner={one}_batches") for one in ("large", "small")]
    geometries = " and ".join(
        f"`{name}` {one.env.num_envs} environments x {one.training.rollout_steps} decisions a "
        f"rollout, minibatches of {one.training.minibatch_size:,} x {one.training.epochs} epochs, "
        f"episodes of {one.env.requests_per_episode} requests, `warm_start.keep="
        f"{one.warm_start.keep}`"
        for name, one in zip(("large", "small"), shown, strict=True)
    )
    return "\n".join(
        [
            "## What the tuning log leaves open",
            "",
            origin(command),
            "",
            f"`{BASE}` with seeds 0 to {sizes.seeds - 1}: {geometries}; load 2.5 requests/s or "
            "`curriculum=qps_ramp`; demonstrations or `warm_start=none`; two networks. All serve "
            f"the same {sizes.runs} runs of {sizes.requests:,} requests at each load; 5.5 "
            "requests/s are beyond all trainings and what the cluster can sustain.",
            "",
            "P95 and P99 of the end-to-end latency as shares of round robin's, all seeds together; "
            "below, the 95% interval of P99 (seeds and runs resampled), and the worst P95 or P99 "
            "of a seed. A seed loses that is above 1 in either at any load.",
            "",
            summary(measured),
            "",
            "![P99 of each training against round robin](learner.png)",
        ]
    )


def draw(measured: Measured, path: Path) -> None:
    """Draws the P99 of each configuration at each load: pooled, interval, and a dot per seed."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(1, len(LOADS), sharex=True, sharey=True)
    names = [one.name for one in CONFIGURATIONS] + list(RULES)
    for load, panel in enumerate(panels):
        for row, name in enumerate(names):
            _row(panel, measured[name][load], row, single=name in RULES)
        panel.axvline(1, color="0.3", linewidth=1)
        panel.set_title(f"{LOADS[load]:g} requests/s")
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="x", labelsize="small")
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(FixedLocator(TICKS))
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    labels = [" ".join(one) for one in CONFIGURATIONS] + list(RULES)
    panels[0].set_yticks(range(len(names)), labels)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(f"End-to-end P99 / {BASELINE}'s, with 95% intervals; a dot is one training")
    figure.savefig(path, dpi=110)


def _row(panel: Axes, tails: Tails, row: int, *, single: bool) -> None:
    one = tails.pooled[1]
    panel.plot([one.low, one.high], [row, row], color="C0", linewidth=1.5)
    panel.plot(one.value, row, "D", color="C0", markersize=5)
    if not single:
        each = tails.seeds[:, 1]
        panel.plot(each, [row] * len(each), "o", color="C1", markersize=3, alpha=0.6)


def main() -> int:
    """Trains, serves, reports, and writes if asked; returns the exit code."""
    options = Options.read(__doc__.splitlines()[0], FULL.seeds, QUICK.seeds)
    sizes = (QUICK if options.quick else FULL)._replace(seeds=options.seeds)
    command = command_of(NAME, options, FULL.seeds)
    return report(
        NAME,
        options,
        lambda: measure(sizes, options.folder, options.jobs),
        lambda measured: section(measured, sizes, command),
        {".csv": write_csv, ".png": draw},
    )


if __name__ == "__main__":
    sys.exit(main())
