"""Fits the shipped profiles to iterations and replays the recorded runs with them.

    python benchmarks/fit_profiles.py            # fit, replay, write YAML and README
    python benchmarks/fit_profiles.py --no-fit   # replay with the YAML files as they are

Reads `../shared/data` beside the checkout, or `$LLMROUTE_DATA`. Deterministic: the same
measurements give the same files.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from measuring import DATA, ROOT, origin, table, write_section
from modern_targets import TIME_FACTOR, ModernTarget, modern_targets
from profile_pieces import composed_errors, fit_pieces, read_composed
from profile_replay import (
    FURTHER_REQUESTS,
    LOADS,
    REPLICAS,
    Results,
    median_errors,
    replay_all,
)
from profile_tables import fit_tables, iteration_errors, read_iterations
from profile_targets import TARGETS, Target

from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import load_profile
from llmroute_gym.sim.profile_writer import write_profile

PROFILES = ROOT / "llmroute_gym" / "sim" / "profiles"
HELD_OUT_EVERY = 5  # rows


def measured_error(
    target: Target, per_iteration: dict[str, float | int], results: Results
) -> dict[str, object]:
    """Returns what a profile file says of its own accuracy."""
    errors: dict[str, object] = {"per_iteration_held_out": per_iteration}
    for name, replays in (
        ("recorded_runs", results.recorded),
        ("runs_on_exact_tables", results.further),
    ):
        own = [one for one in replays if one.profile == target.name]
        if own:
            ttft, e2e = median_errors(own)
            errors[name] = {
                "runs": len(own),
                "ttft_p99_median": round(ttft, 5),
                "e2e_p99_median": round(e2e, 5),
            }
    return errors


Errors = dict[str, float | int]


def fit_modern(target: ModernTarget, *, fit: bool) -> Errors:
    """Fits and writes a profile of today's models, or reads it; returns its held-out errors."""
    batches = read_composed(DATA, target.name)
    held_out = np.arange(len(batches)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if fit:
        model = fit_pieces(batches.take(~held_out), target.most_decodes)
    else:
        shipped = load_profile(target.name).batch_time
        assert isinstance(shipped, PiecewiseBatchTime)
        model = shipped
    errors = composed_errors(model, batches.take(held_out))
    if fit:
        write_profile(
            target.profile(replace(model, time_factor=TIME_FACTOR)),
            PROFILES / f"{target.name}.yaml",
            errors={
                "per_iteration_held_out": errors,
                "against": "composed iterations before time_factor; there is no recorded run",
            },
        )
    print(target.name, errors, flush=True)
    return errors


def modern_section(errors: Mapping[ModernTarget, Errors]) -> str:
    """Returns the part of the README's section on the profiles of today's models."""
    rows = [
        (
            target.name,
            target.gpu,
            f"{own['median']:.2%}",
            f"{own['p95']:.2%}",
            "yes" if target.checked else "**no**",
        )
        for target, own in errors.items()
    ]
    columns = ("profile", "hardware", "median error", "P95", "published measurements")
    return "\n\n".join(
        [
            "Today's models: their iterations are not measured but composed from kernels that "
            "NVIDIA measured (`modern/`), four fifths of 7,500 fitted. The error of a batch's time "
            "is that on the other fifth (bars: median 0.7%, P95 4%); how far the composed times "
            "are from a server's is another matter. Published measurements suggest that a sum of "
            f"kernels is too short by about {TIME_FACTOR - 1:.0%}, which `time_factor` adds; of "
            "some GPUs and weights there were none to compare with. Their KV blocks are computed "
            "too: for one or two H100 within 0.5% of what vLLM logs, elsewhere unchecked.",
            table(columns, rows),
        ]
    )


def section(results: Results, modern: Mapping[ModernTarget, Errors]) -> str:
    """Returns the README's section on the shipped profiles."""
    ttft, e2e = median_errors(results.recorded)
    lines = [
        "## Shipped profiles",
        "",
        origin("python benchmarks/fit_profiles.py"),
        "",
        "Each profile is fitted to measured iterations (`iterations/`), four fifths of the rows; "
        "the YAML file states its error on the other fifth. Recorded runs of Microsoft Vidur are "
        "then replayed with the profile, the recorded replica of each request and the reference "
        "engine. The runs named `param_*` were timed by a formula and say nothing of a profile.",
        "",
        f"**Median error: TTFT P99 {ttft:.2%}, end-to-end P99 {e2e:.2%}** "
        f"over {len(results.recorded)} recorded runs (bar: 3% and 1%).",
        "",
        "The last column is a yardstick: the error that the *exact* tables make on the same run "
        "if all of them are 0.1% faster. With recorded placement under `lor`, near saturation, "
        "the tail follows such a change by percents: there an error of the profile says little.",
        "",
        "| recorded run | TTFT P99 recorded (s) | simulated (s) | error | E2E P99 recorded (s) "
        "| simulated (s) | error | TTFT P99, exact 0.1% faster |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one, faster in zip(results.recorded, results.faster, strict=True):
        lines.append(
            f"| {one.case} | {one.ttft_s:.4f} | {one.simulated_ttft_s:.4f} | {one.ttft_error:+.2%} "
            f"| {one.e2e_s:.3f} | {one.simulated_e2e_s:.3f} | {one.e2e_error:+.2%} "
            f"| {faster.ttft_error:+.2%} |"
        )
    lines += [
        f"| **median of absolute errors** | | | **{ttft:.2%}** | | | **{e2e:.2%}** "
        f"| {median_errors(results.faster)[0]:.2%} |",
        "",
        f"Further runs that no recorded run covers: {FURTHER_REQUESTS:,} requests of a random "
        f"window of the Azure trace, Poisson arrivals, round robin over {REPLICAS} replicas; the "
        "truth is the same simulation with the exact tables. Errors of P99 at "
        + ", ".join(f"{load:.0%}" for load in LOADS)
        + " of capacity.",
        "",
        "| profile | scheduler | TTFT P99 error | E2E P99 error |",
        "|---|---|---|---|",
    ]
    for start in range(0, len(results.further), len(LOADS)):
        group = results.further[start : start + len(LOADS)]
        name, scheduler, _ = group[0].case.split()
        ttfts = ", ".join(f"{one.ttft_error:+.2%}" for one in group)
        e2es = ", ".join(f"{one.e2e_error:+.2%}" for one in group)
        lines.append(f"| {name} | {scheduler} | {ttfts} | {e2es} |")
    ttft, e2e = median_errors(results.further)
    lines += [f"| **median of absolute errors** | | **{ttft:.2%}** | **{e2e:.2%}** |", ""]
    return "\n".join([*lines, modern_section(modern)])


def main() -> int:
    """Fits, replays and writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-fit", action="store_true", help="keep the YAML files as they are")
    options = parser.parse_args()
    if not (DATA / "iterations").is_dir():
        print(f"no measurements in {DATA}; set LLMROUTE_DATA to their directory", file=sys.stderr)
        return 2
    models: dict[str, BatchTimeModel] = {}
    per_iteration = {}
    for target in TARGETS:
        if options.no_fit:
            models[target.name] = load_profile(target.name).batch_time
            continue
        batches = read_iterations(DATA, target.combo)
        held_out = np.arange(len(batches)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        model = fit_tables(batches.take(~held_out), target)
        per_iteration[target.name] = iteration_errors(model, batches.take(held_out))
        models[target.name] = model
        print(target.name, per_iteration[target.name], flush=True)
    modern = {one: fit_modern(one, fit=not options.no_fit) for one in modern_targets(DATA)}
    results = replay_all(DATA, models)
    for target in TARGETS:
        if target.name in per_iteration:
            errors = measured_error(target, per_iteration[target.name], results)
            path = PROFILES / f"{target.name}.yaml"
            write_profile(target.profile(models[target.name]), path, errors=errors)
    text = section(results, modern)
    print(text)
    write_section("profiles", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
