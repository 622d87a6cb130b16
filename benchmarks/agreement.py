"""Compares the compiled engine with the reference engine on many random cases.

    python benchmarks/agreement.py                        # 20,000 cases in two processes
    python benchmarks/agreement.py --write                # and report them in benchmarks/README.md
    python benchmarks/agreement.py --seeds 5000 5100      # other cases
    python benchmarks/agreement.py --quick                # a hundred cases
    python benchmarks/agreement.py --family vllm          # only those of one family

The cases and comparisons are those of `tests/sim/test_engines_agree.py` and, of `vllm_v1`,
`test_vllm_engines_agree.py`, which run the first few hundred seeds: each case is stepped on both
engines side by side and then simulated whole, placed in advance and by a router. Exits with 1 if
one of them differs.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from measuring import ROOT, origin, write_section
from tqdm import tqdm

sys.path.insert(0, str(ROOT))  # the tests are no part of the installed package

from tests.sim.strategies import Case, random_case, with_waiting
from tests.sim.test_engines_agree import (
    assert_simulated_alike,
    assert_stepped_alike,
)
from tests.sim.vllm_cases import random_vllm_case

SEEDS = (10_000, 30_000)
QUICK_SEEDS = (10_000, 10_100)
PROCESSES = 2
SHOWN_FAILURES = 20


WAITING = 3
"""Every third case of `vllm_v1` has arrivals that wait for the ends of others."""


class Family(NamedTuple):
    """Random cases of some kind."""

    draw: Callable[[int], Case]
    about: str


def vllm_case(seed: int) -> Case:
    """Draws a case of `vllm_v1`."""
    case = random_vllm_case(seed)
    return with_waiting(case, seed) if seed % WAITING == 0 else case


FAMILIES = {
    "old": Family(
        random_case,
        "`tests/sim/strategies.py`: `chunked` and `prefill_first`, all batch-time models, memory "
        "so tight that requests restart, slowdowns, speeds, bursts, equal arrival times, stale "
        "observations, requests too long for a replica",
    ),
    "vllm": Family(
        vllm_case,
        "`tests/sim/vllm_cases.py`: `vllm_v1`, alone or beside the others, the same and prompts "
        "made of each other and of outputs, blocks of 1 to 64 tokens, all its options, in every "
        "third case arrivals that wait for ends",
    ),
}


class Finding(NamedTuple):
    """One case."""

    family: str
    seed: int
    requests: int
    difference: str | None
    """Where the engines differ, or how one failed."""


def examine(family: str, seed: int) -> Finding:
    """Draws a case and compares the engines on it."""
    warnings.filterwarnings("ignore", message="a batch lies outside the batch-time table")
    requests = 0
    try:
        case = FAMILIES[family].draw(seed)
        requests = len(case.workload)
        placed = assert_stepped_alike(case)
        assert_simulated_alike(case, seed, placed)
    except Exception:  # a case that breaks an engine is a finding, not the end
        return Finding(family, seed, requests, traceback.format_exc())
    return Finding(family, seed, requests, None)


def examine_all(family: str, seeds: range, processes: int) -> list[Finding]:
    """Examines all cases with a progress bar; shows differences as they come."""
    findings = []
    failures = 0
    with (
        ProcessPoolExecutor(processes) as pool,
        tqdm(total=len(seeds), desc=family, unit="case", smoothing=0.02) as bar,
    ):
        for finding in pool.map(partial(examine, family), seeds, chunksize=10):
            findings.append(finding)
            bar.update()
            if finding.difference is not None:
                failures += 1
                bar.set_postfix(failures=failures)
                if failures <= SHOWN_FAILURES:
                    bar.write(f"{family}, seed {finding.seed}:\n{finding.difference}")
    return findings


class Examined(NamedTuple):
    """All cases of a family."""

    findings: list[Finding]
    duration_s: float

    @property
    def failed(self) -> list[int]:
        """The seeds on which the engines differ."""
        return [finding.seed for finding in self.findings if finding.difference is not None]


def section(examined: Sequence[Examined], command: str, processes: int) -> str:
    """Returns the README's section."""
    lines = [
        "## Agreement",
        "",
        origin(command),
        "",
        "Random clusters and workloads. Each is stepped on both engines side by side, comparing "
        "clock, mask, observation rows and reward integrals at every decision, and simulated "
        "whole with placed requests and with a router, comparing every field of every request: "
        "times to 1e-9 relative on tables and 1e-6 on formulas and profiles, to the bit where "
        "all times are multiples of a power of two, counts exactly.",
    ]
    for one in examined:
        first, last = one.findings[0], one.findings[-1]
        lines += [
            "",
            f"{FAMILIES[first.family].about}. **{len(one.findings):,} cases (seeds {first.seed} "
            f"to {last.seed}), {sum(finding.requests for finding in one.findings):,} requests, "
            f"{len(one.failed)} failures, {one.duration_s:,.0f} s in {processes} processes.**",
        ]
        if one.failed:
            seeds = ", ".join(map(str, one.failed[:SHOWN_FAILURES]))
            lines += ["", f"Seeds that failed: {seeds}."]
    return "\n".join(lines)


def main() -> int:
    """Compares, reports, and writes if asked; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", nargs=2, type=int, metavar=("FIRST", "STOP"), help=f"default {SEEDS}"
    )
    parser.add_argument("--family", choices=(*FAMILIES, "both"), default="both")
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
    examined = []
    for family in FAMILIES if options.family == "both" else (options.family,):
        examine(family, first)  # compiles the kernels once for all processes
        start_s = time.perf_counter()
        findings = examine_all(family, range(first, stop), options.processes)
        examined.append(Examined(findings, time.perf_counter() - start_s))
    command = f"python benchmarks/agreement.py --seeds {first} {stop}"
    if options.family != "both":
        command += f" --family {options.family}"
    text = section(examined, command, options.processes)
    print(text)
    if options.write:
        write_section("agreement", text)
    return int(any(one.failed for one in examined))


if __name__ == "__main__":
    sys.exit(main())
