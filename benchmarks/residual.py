"""Measures what PPO adds to the rule `frontier`: trainings of `+exp=frontier` over the rule itself.

    python benchmarks/residual.py            # train, serve, print; half an hour on one core
    python benchmarks/residual.py --write    # and fill benchmarks/README.md
    python benchmarks/residual.py --quick    # see that it works

Every training serves the requests that the rule is measured on, which none has trained on or was
chosen by. Trainings are kept in a folder: a second call goes on where the first was interrupted.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from frontier_cases import CASES, SEED, Case
from frontier_runs import FRONTIER, counts_of, p99, serve_case, with_interval
from joblib import Parallel, delayed
from measuring import DATA, origin, table
from reports import command_of, report
from tqdm import tqdm
from trainings import FloatArray, Options, composed, train_once

from llmroute_gym.compare.statistics import Estimate, estimate
from llmroute_gym.routers import Router, make

NAME = "residual"
BASE = "+exp=frontier"
SEEDS, QUICK_SEEDS = 5, 2
QUICK_OVERRIDES = ("training.ppo_requests=9216", "domains.kept_runs=2", "domains.kept_requests=100")


class Gain(NamedTuple):
    """P99 end to end of trained policies over that of the rule, in one case."""

    case: Case
    rule_s: Estimate
    ratios: FloatArray
    """(n_rows,), the requests of all trainings together; the estimate first."""
    seeds: FloatArray
    """(n_seeds,)"""


def trained(options: Options) -> dict[str, Router]:
    """Trains what is not there yet; returns the policies by their names, one per seed."""
    import torch

    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import router_of

    torch.set_num_threads(1)
    changed = QUICK_OVERRIDES if options.quick else ()
    policies: dict[str, Router] = {}
    for seed in tqdm(range(options.seeds), desc="trainings", unit="training"):
        name = f"{NAME}-{seed}"
        settings = composed(BASE, *changed, f"seed={seed}")
        policies[name] = router_of(Checkpoint.load(train_once(settings, options.folder, name)))
    return policies


def gain(case: Case, policies: Mapping[str, Router], runs: int | None) -> Gain:
    """Serves a case by the rule and by every policy."""
    n_runs = runs or case.runs
    rules = {FRONTIER: make(FRONTIER), **policies}
    served, _ = serve_case(case, rules, str(DATA / "traces"), n_runs)
    counts = counts_of(n_runs)
    rule = p99(served[FRONTIER].e2e_s, counts)
    together = [
        np.concatenate(of_run)
        for of_run in zip(*(served[name].e2e_s for name in policies), strict=True)
    ]
    each = [p99(served[name].e2e_s, counts[:1])[0] / rule[0] for name in policies]
    return Gain(case, estimate(rule), p99(together, counts) / rule, np.array(each))


def measure(options: Options) -> list[Gain]:
    """Trains, and serves every case in which no output lengths are told."""
    policies = trained(options)
    cases = [case for case in CASES if not case.predicted]
    tasks = (delayed(gain)(case, policies, 3 if options.quick else None) for case in cases)
    found = Parallel(n_jobs=options.jobs, return_as="generator")(tasks)
    return list(tqdm(found, total=len(cases), desc="cases"))


def section(gains: Sequence[Gain], options: Options) -> str:
    """Returns the README's section."""
    rows = [
        [
            one.case.name,
            f"{one.rule_s.value:.2f}",
            with_interval(estimate(one.ratios)),
            f"{one.seeds.min():.3f} to {one.seeds.max():.3f}",
        ]
        for one in gains
    ]
    mean = estimate(np.exp(np.mean([np.log(one.ratios) for one in gains], axis=0)))
    rows.append(["**geometric mean**", "", f"**{with_interval(mean)}**", ""])
    settings = composed(BASE)
    return "\n".join(
        [
            "## What PPO adds to the shipped rule",
            "",
            origin(command_of(NAME, options, SEEDS)),
            "",
            f"`{BASE}`, seeds 0 to {options.seeds - 1}: a network that corrects the scores of "
            f"`frontier`, {settings.training.ppo_requests:,} requests of "
            f"{len(settings.domains.scenarios)} scenarios, weights kept by the tail in "
            f"{len(settings.domains.kept_by)} others, those of the start among them. P99 "
            "end to end over that of `frontier`, the requests of all trainings together, with 95% "
            "intervals (paired bootstrap over runs), and the lowest and highest of a training. "
            f"Requests are of seed {SEED}, as above.",
            "",
            table(["case", "P99 of the rule (s)", "trained / rule", "of one training"], rows),
        ]
    )


def write_csv(gains: Sequence[Gain], path: Path) -> None:
    """Writes one line per case and training."""
    lines = ["case,seed,p99_ratio"]
    for one in gains:
        lines += [f'"{one.case.name}",{seed},{x:.5f}' for seed, x in enumerate(one.seeds)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Trains, serves, reports, and writes if asked; returns the exit code."""
    options = Options.read(__doc__.splitlines()[0], SEEDS, QUICK_SEEDS)
    return report(
        NAME,
        options,
        lambda: measure(options),
        lambda gains: section(gains, options),
        {".csv": write_csv},
    )


if __name__ == "__main__":
    sys.exit(main())
