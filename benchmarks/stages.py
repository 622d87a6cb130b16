"""Measures the tuning log's three stages, and what cloning and the KL to its clone are worth.

    python benchmarks/stages.py                 # train, serve, print; an hour on one core
    python benchmarks/stages.py --write         # and fill benchmarks/README.md, stages.csv, .png
    python benchmarks/stages.py --seeds 10      # more trainings of each configuration
    python benchmarks/stages.py --quick         # see that it works

Stage 1 switches statistics stabilisation off and on, stage 2 raises the load while training, stage
3 starts from demonstrations. All policies, and many of each training as it went on, serve the same
requests at three loads, beside round robin and two rules that look at the load. Trainings that
stages share are run once and kept in a folder: a second call goes on where the first was
interrupted. Without --write the files go there too.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from courses import (
    EARLY,
    END,
    FIRST_UPDATES,
    START,
    CloneAccuracy,
    Movement,
    clone_accuracy,
    clone_once,
    course,
    movement,
    watch,
)
from measuring import origin, table
from reports import command_of, report
from stage_files import plot, write_csv
from stage_numbers import (
    BASE,
    BASELINE,
    CLONES,
    CONFIGURATIONS,
    LABELS,
    LIGHT_AND_HEAVY,
    LOADS,
    NEAR,
    OTHERS,
    P95,
    P99,
    PERCENTS,
    RULES,
    SETTLED,
    Measured,
    demonstrated,
    in_words,
    needed,
    own_changes,
    pooled_change,
    shares,
    tails,
)
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

from llmroute_gym.compare.statistics import Resampling, estimate
from llmroute_gym.config import EvaluationConfig, TrainConfig
from llmroute_gym.demos.collection import planned_episodes
from llmroute_gym.training.warm_start import collection

NAME = "stages"


class Sizes(NamedTuple):
    """How much is trained and measured."""

    overrides: tuple[str, ...]
    demonstrations: float
    """Share of those of `CLONES`."""
    seeds: int
    runs: int
    requests: int
    resamples: int


FULL = Sizes((), demonstrations=1, seeds=5, runs=20, requests=1000, resamples=1000)
QUICK = Sizes(
    ("training.ppo_requests=7168", "warm_start.decisions=150", "warm_start.epochs=5"),
    demonstrations=0.1,
    seeds=2,
    runs=4,
    requests=100,
    resamples=50,
)


def measure(sizes: Sizes, folder: Path, jobs: int) -> Measured:
    """Trains and clones what is not there yet and serves the common requests with everything."""
    config = EvaluationConfig(
        runs=sizes.runs, requests=sizes.requests, resamples=sizes.resamples
    ).validate()
    evaluation = Evaluation.draw([Cell("poisson", qps) for qps in LOADS], config)
    seeds = range(sizes.seeds)
    chosen = {
        (name, seed): composed(BASE, *options, *sizes.overrides, f"seed={seed}")
        for seed in seeds
        for name, options in CONFIGURATIONS.items()
    }
    imitated = {
        (name, seed): composed(BASE, *_clone_options(name, sizes), f"seed={seed}")
        for seed in seeds
        for name in CLONES
    }
    trained = train_all(_trainings(chosen), folder, evaluation, jobs, work=watch)
    cloned = train_all(_trainings(imitated), folder, evaluation, jobs, work=clone_once)
    clones = {name: [cloned[_title(name, seed)] for seed in seeds] for name in CLONES}
    return Measured(
        evaluation,
        Resampling.draw(sizes.seeds, config),
        {name: serve_router(name, evaluation) for name in RULES},
        {
            name: [course(trained[_title(name, seed)], evaluation) for seed in seeds]
            for name in CONFIGURATIONS
        },
        {
            name: Served.of_seeds([serve_once(one, evaluation) for one in done])
            for name, done in clones.items()
        },
        {name: [clone_accuracy(one) for one in done] for name, done in clones.items()},
        {name: chosen[name, 0] for name in CONFIGURATIONS},
    )


def _clone_options(name: str, sizes: Sizes) -> list[str]:
    router, network, decisions = CLONES[name]
    return [
        f"warm_start.policies=[{router}]",
        f"warm_start.decisions={round(decisions * sizes.demonstrations) or 1}",
        f"model={network}",
    ]


def _title(name: str, seed: int) -> str:
    return f"{NAME}-{name}-{seed}"


def _trainings(settings: Mapping[tuple[str, int], TrainConfig]) -> list[Training]:
    return [Training(_title(*key), one) for key, one in settings.items()]


# Tables


def stage_1(measured: Measured) -> str:
    """Returns the table of the first stage."""
    rows = []
    for off, on in (
        ("none-no-reference-unstabilised", "none-no-reference"),
        ("demos-unstabilised", "demos"),
    ):
        for name, switch in ((off, "off"), (on, "on")):
            moved = [movement(one, SETTLED) for one in measured.courses[name]]
            cells = [
                f"{pooled_change(measured, name, load, P95)}<br>"
                f"{_spread(own_changes(measured, name, load, P95))}"
                for load in range(len(LOADS))
            ]
            near = [in_words(needed(measured, name, load)) for load in LIGHT_AND_HEAVY]
            rows.append(
                [
                    LABELS[name],
                    switch,
                    *(_moved(moved, of) for of in ("mean", "variance")),
                    *cells,
                    pooled_change(measured, name, 0, P99),
                    *near,
                ]
            )
    titles = ["start", "stabilisation", "means move", "variances move"]
    titles += [*(f"P95 at {load}" for load in LOADS), f"P99 at {LOADS[0]}"]
    titles += [f"decisions to within 2% at {LOADS[load]}" for load in LIGHT_AND_HEAVY]
    return table(titles, rows)


def _spread(values: FloatArray) -> str:
    spread = f"{100 * values.std(ddof=1):.1f}" if len(values) > 1 else "unknown"
    return f"{shares(values)}; SD {spread}"


def _moved(moved: Sequence[Movement], of: str) -> str:
    average, most = (np.mean([getattr(one, name) for one in moved]) for name in (of, f"{of}_most"))
    return f"{_percent(average)}, at most {_percent(most)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 or share == 0 else f"{100 * share:.1f}%"


def stage_2(measured: Measured) -> str:
    """Returns the table of the second stage."""
    rows: list[list[object]] = []
    for start in ("none", "demos"):
        for suffix, rate in (("", "2.5"), ("-ramp", "2.5, 3.5, 4.5"), ("-heavy", "4.5")):
            name = start + suffix
            cells = [
                f"{pooled_change(measured, name, load, P95)}<br>"
                f"{shares(own_changes(measured, name, load, P95))}"
                for load in range(len(LOADS))
            ]
            rows.append(
                [LABELS[start], rate, *cells, in_words(needed(measured, name, len(LOADS) - 1))]
            )
    titles = [f"P95 at {load}" for load in LOADS]
    near = f"decisions to within 2% at {LOADS[-1]}"
    return table(["start", "trained at (requests/s)", *titles, near], rows)


def stage_3(measured: Measured) -> str:
    """Returns the table of the third stage."""
    rows: list[list[object]] = []
    for name, point, label in (
        ("none", END, LABELS["none"]),
        ("none-no-reference", END, LABELS["none-no-reference"]),
        ("demos", START, "demonstrations alone"),
        ("demos", END, LABELS["demos"]),
        ("demos-no-reference", END, LABELS["demos-no-reference"]),
        ("demos-hybrid", START, f"demonstrations of `{OTHERS[-1]}` alone"),
        ("demos-hybrid", END, LABELS["demos-hybrid"]),
        *((rule, END, f"`{rule}`") for rule in OTHERS),
    ):
        changes = [pooled_change(measured, name, load, P95, point) for load in range(len(LOADS))]
        near = ["", ""]
        if name in measured.courses and point == END:
            own = needed(measured, name, 0)
            near = [in_words(own), in_words(own, demonstrated(measured.settings[name]))]
        trained = name in measured.courses
        each = shares(own_changes(measured, name, 0, P95, point)) if trained else ""
        p99 = pooled_change(measured, name, 0, P99, point)
        rows.append([label, changes[0], each, *changes[1:], p99, *near])
    titles = [f"P95 at {LOADS[0]}", "of each seed (%)", *(f"P95 at {load}" for load in LOADS[1:])]
    near = ["decisions of PPO to within 2%", "with the demonstrations"]
    return table(["start", *titles, f"P99 at {LOADS[0]}", *near], rows)


def networks(measured: Measured) -> str:
    """Returns the table of the two kinds of networks."""
    rows = []
    for start in ("demos", "none"):
        for name, network in ((start, "replica_set"), (f"{start}-mlp", "mlp")):
            cells = [
                f"{pooled_change(measured, name, load, P95)}<br>"
                f"{shares(own_changes(measured, name, load, P95))}"
                for load in range(len(LOADS))
            ]
            rows.append([f"`{network}`", LABELS[start], *cells])
    return table(["network", "start", *(f"P95 at {load}" for load in LOADS)], rows)


def first_updates(measured: Measured) -> str:
    """Returns the table of what the first updates do to a clone."""
    rows = []
    for name, reference in (("demos", "with"), ("demos-no-reference", "without")):
        for percent in PERCENTS:
            clone = (name, START)
            rows.append(
                [
                    f"{reference} reference",
                    f"P{percent}",
                    *(
                        f"{pooled_change(measured, name, load, percent, EARLY, clone)}<br>"
                        f"{shares(own_changes(measured, name, load, percent, EARLY, clone))}"
                        for load in range(len(LOADS))
                    ),
                ]
            )
    return table(["PPO", "of E2E", *(f"at {load}" for load in LOADS)], rows)


def imitation(measured: Measured) -> str:
    """Returns the table of how well routers are cloned."""
    rows = []
    for name, (router, network, decisions) in CLONES.items():
        found = measured.accuracies[name]
        rows.append(
            [
                f"`{router}`",
                f"`{network}`",
                f"{decisions:,}",
                *(_accuracy([getattr(one, of) for one in found]) for of in CloneAccuracy._fields),
                *(
                    pooled_change(measured, name, load, P99, against=(router, END))
                    for load in range(len(LOADS))
                ),
            ]
        )
    titles = ["router", "network", "demonstrations", "accuracy", "attainable", "consistent"]
    return table([*titles, *(f"P99 at {load}" for load in LOADS)], rows)


def _accuracy(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f}% ({100 * min(values):.1f}..{100 * max(values):.1f})"


def rules(measured: Measured) -> str:
    """Returns the table of what all else is compared with."""
    rows = []
    for name in RULES:
        cells = []
        for load in range(len(LOADS)):
            for percent in PERCENTS:
                found = estimate(tails(measured, name, load)[:, PERCENTS.index(percent)])
                cells.append(f"{found.value:.2f} ({found.low:.2f}..{found.high:.2f})")
        rows.append([f"`{name}`", *cells])
    titles = [f"P{percent} at {load} (s)" for load in LOADS for percent in PERCENTS]
    return table(["router", *titles], rows)


def section(measured: Measured, command: str) -> str:
    """Returns the README's section."""
    config, base = measured.evaluation.config, measured.settings["demos"]
    some = measured.courses["demos"][0]
    per_update = int(some.decisions[-1] // some.updates[-1])
    demos = demonstrated(base)
    stabilising = base.stabilization.steps * base.env.num_envs
    episodes = len(planned_episodes(collection(base))) * len(base.warm_start.policies)
    lines = [
        "## Stages of the tuning log",
        "",
        origin(command),
        "",
        f"`{BASE}` on the default cluster and workload with {measured.seeds} training seeds, "
        f"{some.decisions[-1]:,} decisions each; every policy serves the same {config.runs} runs "
        f"of {config.requests:,} requests at each load (Poisson arrivals). P95 and P99 are of the "
        "end-to-end latency over all requests of all runs and trainings, relative to "
        f"`{BASELINE}` on the same requests; in parentheses 95% intervals, training seeds and runs "
        "resampled. Numbers in a row are those of the single trainings, in order of their seeds; "
        "`stages.csv` has each.",
        "",
        f"Decisions to within {NEAR:.0%}: the first policy whose P95 on these requests is at most "
        f"{1 + NEAR:g} times `{BASELINE}`'s, as are those of all later ones, one number per "
        f"training; policies are kept after each of the first {FIRST_UPDATES} updates and every "
        f"second one ({per_update} decisions each). Only decisions that PPO learns from count: not "
        f"the {stabilising:,} random ones of the stabilisation, nor the "
        f"{episodes * base.env.requests_per_episode:,} of the {episodes} episodes of which "
        f"{demos:,} are recorded as demonstrations.",
        "",
        rules(measured),
        "",
        "### Stage 1: statistics stabilisation",
        "",
        f"Trained at {LOADS[0]} requests/s. How far the observation statistics move over the first "
        f"{SETTLED} updates, on average over the columns and that which moves most (both averaged "
        "over the seeds): means in standard deviations, variances relative to themselves. Once "
        "filled they are frozen while there is a reference (or always, with "
        "`stabilization.freeze=true`), so that here only trainings without one move them: 200 "
        "random decisions per environment are the filling of an empty cluster, not its daily "
        "life. Where they are not stabilised a clone fills them from its demonstrations, and PPO "
        "alone starts without any (mean 0, variance 1).",
        "",
        stage_1(measured),
        "",
        "### Stage 2: rising load",
        "",
        "`curriculum=qps_ramp` gives each of its loads a third of the training. Demonstrations are "
        f"collected at 0.6 to 1.8 times `training.qps`, which is {LOADS[-1]} where all training is "
        f"at {LOADS[-1]} and {LOADS[0]} elsewhere.",
        "",
        stage_2(measured),
        "",
        "### Stage 3: demonstrations",
        "",
        f"{demos:,} decisions of {', '.join(f'`{one}`' for one in base.warm_start.policies)} are "
        "recorded, and those cloned that went no worse than the other router's on the same request "
        f"(`warm_start.keep={base.warm_start.keep}`); or half as many of `{OTHERS[-1]}` only.",
        "",
        stage_3(measured),
        "",
        "![P95 against decisions, and P95 of each training](stages.png)",
        "",
        "### Networks",
        "",
        f"Trained at {LOADS[0]} requests/s.",
        "",
        networks(measured),
        "",
        "### Cloning",
        "",
        f"What the first {FIRST_UPDATES} updates of PPO do to a clone: relative to the clone's own "
        "latency on the same requests.",
        "",
        first_updates(measured),
        "",
        "Clones of one router: how often they decide as it does on episodes that were not learned "
        "from, mean and range over the seeds (attainable: the rule itself, asked about the same "
        "rows without its memory, its random numbers and, for `replica_set`, the order that breaks "
        "its ties; consistent: the share of the clone's choices that the rule might have made, its "
        "ties decided anyhow), and P99 relative to that router's own.",
        "",
        imitation(measured),
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures, prints, and writes if asked; returns the exit code."""
    options = Options.read(__doc__.splitlines()[0], FULL.seeds, QUICK.seeds)
    sizes = (QUICK if options.quick else FULL)._replace(seeds=options.seeds)
    command = command_of(NAME, options, FULL.seeds)
    return report(
        NAME,
        options,
        lambda: measure(sizes, options.folder, options.jobs),
        lambda measured: section(measured, command),
        {".csv": write_csv, ".png": plot},
    )


if __name__ == "__main__":
    sys.exit(main())
