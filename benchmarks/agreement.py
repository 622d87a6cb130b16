"""Compares the compiled engine with the reference engine on many random cases.

    python benchmarks/agreement.py                        # 20,000 cases in two processes
    python benchmarks/agreement.py --write                # and report them in benchmarks/README.md
    python benchmarks/agreement.py --seeds 5000 5100      # other cases
    python benchmarks/agreement.py --quick                # a hundred cases

The cases and comparisons are those of `tests/sim/test_engines_agree.py`, which runs the first few
hundred seeds: each case is stepped on both engines side by side and then simulated whole, placed in
advance and by a router. Exits with 1 if one of them differs.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from measuring import ROOT, origin, write_section
from tqdm import tqdm

sys.path.insert(0, str(ROOT))  # the tests are no part of the installed package

from tests.sim.strategies import random_case
from tests.sim.test_engines_agree import (
    assert_simulated_alike,
    assert_stepped_alike,
)

SEEDS = (10_000, 30_000)
QUICK_SEEDS = (10_000, 10_100)
PROCESSES = 2
SHOWN_FAILURES = 20


class Finding(NamedTuple):
    """One case."""

    seed: int
    requests: int
    difference: str | None
    """Where the engines differ, or how one failed."""


def examine(seed: int) -> Finding:
    """Draws a case and compares the engines on it."""
    warnings.filterwarnings("ignore", message="a batch lies outside the batch-time table")
    requests = 0
    try:
        case = random_case(seed)
        requests = len(case.workload)
        assert_stepped_alike(case)
        assert_simulated_alike(case, seed)
    except Exception:  # a case that breaks an engine is a finding, not the end
        return Finding(seed, requests, traceback.format_exc())
    return Finding(seed, requests, None)


def examine_all(seeds: range, processes: int) -> list[Finding]:
    """Examines all cases with a progress bar; shows differences as they come."""
    findings = []
    failures = 0
    with (
        ProcessPoolExecutor(processes) as pool,
        tqdm(total=len(seeds), unit="case", smoothing=0.02) as bar,
    ):
        for finding in pool.map(examine, seeds, chunksize=10):
            findings.append(finding)
            bar.update()
            if finding.difference is not None:
                failures += 1
                bar.set_postfix(failures=failures)
                if failures <= SHOWN_FAILURES:
                    bar.write(f"random_case({finding.seed}):\n{finding.difference}")
    return findings


def section(findings: Sequence[Finding], duration_s: float, command: str, processes: int) -> str:
    """Returns the README's section."""
    failed = [finding.seed for finding in findings if finding.difference is not None]
    lines = [
        "## Agreement",
        "",
        origin(command),
        "",
        "Random clusters and workloads (`tests/sim/strategies.py`: both schedulers, all batch-time "
        "models, memory so tight that requests restart, slowdowns, speeds, bursts, equal arrival "
        "times, stale observations, requests too long for a replica). Each is stepped on both "
        "engines side by side, comparing clock, mask, observation rows and reward integrals at "
        "every decision, and simulated whole with placed requests and with a router, comparing "
        "every field of every request: times to 1e-9 relative on tables and 1e-6 on formulas and "
        "profiles, counts exactly.",
        "",
        f"**{len(findings):,} cases (seeds {findings[0].seed} to {findings[-1].seed}), "
        f"{sum(finding.requests for finding in findings):,} requests, {len(failed)} failures, "
        f"{duration_s:,.0f} s in {processes} processes.**",
    ]
    if failed:
        lines += ["", f"Seeds that failed: {', '.join(map(str, failed[:SHOWN_FAILURES]))}."]
    return "\n".join(lines)


def main() -> int:
    """Compares, reports, and writes if asked; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", nargs=2, type=int, metavar=("FIRST", "STOP"), help=f"default {SEEDS}"
    )
    parser.add_argument("--processes", type=int, default=PROCESSES, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--write", action="store_true", help="report in benchmarks/README.md")
    options = parser.parse_args()
    first, stop = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    if not 0 <= first < stop or options.processes < 1:
        parser.error(
            f"expected 0 <= FIRST < STOP and at least 1 process, got --seeds {first} {stop} "
            f"--processes {options.processes}"
        )
    examine(first)  # compiles the kernels once for all processes
    start_s = time.perf_counter()
    findings = examine_all(range(first, stop), options.processes)
    duration_s = time.perf_counter() - start_s
    command = f"python benchmarks/agreement.py --seeds {first} {stop}"
    text = section(findings, duration_s, command, options.processes)
    print(text)
    if options.write:
        write_section("agreement", text)
    return int(any(finding.difference is not None for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
