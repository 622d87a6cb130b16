"""Measures both engines and the vector environment on one core.

    python benchmarks/engine.py            # measure
    python benchmarks/engine.py --write    # and fill benchmarks/README.md and scaling.png
    python benchmarks/engine.py --quick    # see that it works
    python benchmarks/engine.py --only vllm   # a part: engine, environment, vllm

Reads `../shared/data` beside the checkout, or `$LLMROUTE_DATA`. Kernels are compiled before a
measurement; what compiling costs is measured apart, in processes of their own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import vllm_observed
import vllm_speeds
from matplotlib.figure import Figure
from measuring import (
    DATA,
    ROOT,
    Target,
    load_average,
    median_seconds,
    millions,
    origin,
    seconds,
    table,
    verdict,
    write_section,
)

from llmroute_gym.envs import LLMRouteVectorEnv
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.batch_time import TableBatchTime
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload

PICTURE = ROOT / "benchmarks" / "scaling.png"
TRACE = DATA / "traces" / "azure_conv_2023.csv"
TABLES = {
    "a100-llama-2-7b": DATA / "batch_time" / "a100_llama2-7b_tp1.npz",
    "a100-internlm-20b": DATA / "batch_time" / "a100_internlm-20b_tp1.npz",
}
SCHEDULERS = ("chunked", "prefill_first")
MAX_TOKENS = 4096  # of a request, prompt and output
REPETITIONS = 10  # of the trace
REPLICAS = 4
MEMORY_BOUND_QPS = 4.5
LOR_QPS = 1.75  # per replica
IN_PYTHON = "lor_hybrid"  # a router that the kernels do not know
RATIO_BAR = 2000  # times the reference engine
ENV_QPS = 2.5  # per REPLICAS replicas
EPISODE = 500  # steps, as by default
PARTS = ("engine", "environment", "vllm")
FIRST_CALLS = ("round_robin", "lor", "environment")
COLD_BAR_S, WARM_BAR_S = 20.0, 1.0


class Sizes(NamedTuple):
    """How much to measure."""

    repeats: int
    requests: int | None
    reference_requests: int
    lor_reference_requests: int
    lor_replicas: tuple[int, ...]
    env_counts: tuple[int, ...]
    env_replicas: tuple[int, ...]
    env_steps: int
    """Steps of all environments together in one timed stretch, at `REPLICAS` replicas."""


FULL = Sizes(
    repeats=5,
    requests=None,
    reference_requests=2000,
    lor_reference_requests=200,
    lor_replicas=(4, 16, 64, 256, 1024),
    env_counts=(1, 8, 64, 256),
    env_replicas=(4, 16, 64, 256, 1024),
    env_steps=640_000,
)
QUICK = Sizes(
    repeats=2,
    requests=4000,
    reference_requests=200,
    lor_reference_requests=50,
    lor_replicas=(4, 64),
    env_counts=(1, 64),
    env_replicas=(4, 64),
    env_steps=32_000,
)


class Case(NamedTuple):
    """A workload on a cluster behind a router."""

    profile: str
    batch_times: str
    scheduler: str
    router: str
    replicas: int
    target: Target | None

    @property
    def cluster(self) -> Cluster:
        """The replicas, with the profile's limits."""
        changes: dict[str, Any] = {"scheduler": self.scheduler}
        if self.batch_times == "table":
            changes["batch_time"] = exact_table(self.profile)
        return Cluster.from_profile(self.profile, self.replicas, **changes)

    @property
    def workload(self) -> Workload:
        """The requests at this case's rate."""
        if self.router == "lor":
            return repeated_trace().with_qps(LOR_QPS * self.replicas)
        return memory_bound() if self.profile == "a100-internlm-20b" else repeated_trace()


class Speed(NamedTuple):
    """Medians of one case, requests per second."""

    case: Case
    compiled: float
    without_setup: float
    """The same without the start of the run: its checks and the layout of its memory."""
    reference: float

    @property
    def ratio(self) -> float:
        """How many times faster the compiled engine is."""
        return self.compiled / self.reference


class EnvSpeed(NamedTuple):
    """Environment steps per second, all environments together."""

    num_envs: int
    replicas: int
    steps_per_s: float
    target: Target | None


class FirstCall(NamedTuple):
    """Seconds of the first call in a fresh process."""

    what: str
    cold_s: float
    warm_s: float
    process_s: float
    """The whole warm process, with Python's start and all imports."""


@cache
def exact_table(profile: str) -> TableBatchTime:
    """Returns the exact batch times that a profile was fitted to."""
    return TableBatchTime.from_npz(TABLES[profile])


@cache
def repeated_trace() -> Workload:
    """Returns the trace at its own times, again and again, its requests in shuffled order."""
    trace = load_trace(TRACE)
    n = len(trace)
    period_s = float(trace.arrived_at_s[-1]) * n / (n - 1)
    starts_s = period_s * np.arange(REPETITIONS)
    order = np.random.default_rng(0).permutation(REPETITIONS * n) % n
    output = trace.output_tokens[order]
    return Workload(
        (starts_s[:, None] + trace.arrived_at_s).ravel(),
        np.minimum(trace.prompt_tokens[order], MAX_TOKENS - output),
        output,
    )


@cache
def memory_bound() -> Workload:
    """Returns the same requests with Poisson arrivals, near what the cluster can serve."""
    trace = repeated_trace()
    gaps_s = np.random.default_rng(1).exponential(1.0 / MEMORY_BOUND_QPS, len(trace))
    return trace.with_arrivals(np.cumsum(gaps_s))


def cases(lor_replicas: Sequence[int]) -> list[Case]:
    """Returns what the engines are measured on."""
    light = {"prefill_first": Target(4, 8), "chunked": Target(3, 6)}
    lor = {64: Target(3, 4), 256: Target(2.6, 4), 1024: Target(2.3, 4)}
    found = [
        Case("a100-llama-2-7b", times, scheduler, "round_robin", REPLICAS, light[scheduler])
        for scheduler, times in product(SCHEDULERS, ("table", "profile"))
    ]
    found += [
        Case("a100-internlm-20b", times, scheduler, "round_robin", REPLICAS, Target(2, 3))
        for scheduler, times in product(SCHEDULERS, ("table", "profile"))
    ]
    found += [
        Case("a100-llama-2-7b", "table", scheduler, "lor", replicas, lor.get(replicas))
        for scheduler, replicas in product(SCHEDULERS, lor_replicas)
    ]
    found.append(Case("a100-llama-2-7b", "table", "chunked", IN_PYTHON, REPLICAS, None))
    return found


def measure_case(case: Case, sizes: Sizes) -> Speed:
    """Times `simulate` on both engines, the reference on the workload's first requests."""
    cluster, workload = case.cluster, case.workload
    workload = workload.slice(0, sizes.requests)
    few = sizes.lor_reference_requests if case.router == "lor" else sizes.reference_requests
    prefix = workload.slice(0, few)

    simulate(workload, cluster, case.router)  # compiles
    whole_s, served_s = zip(
        *(compiled_seconds(workload, cluster, case.router) for _ in range(sizes.repeats)),
        strict=True,
    )
    reference_s = median_seconds(
        lambda: simulate(prefix, cluster, case.router, engine="reference"), sizes.repeats
    )
    n = len(workload)
    return Speed(case, n / median(whole_s), n / median(served_s), len(prefix) / reference_s)


def compiled_seconds(workload: Workload, cluster: Cluster, router: str) -> tuple[float, float]:
    """Returns the seconds of one `simulate` call, whole and without the start of its run."""
    start_run = ENGINES["compiled"]
    setup_s = 0.0

    def start_timed(*args: Any, **kwargs: Any) -> Run:
        nonlocal setup_s
        start_s = perf_counter()
        run = start_run(*args, **kwargs)
        setup_s = perf_counter() - start_s
        return run

    with patch.dict(ENGINES, compiled=start_timed):
        whole_s = seconds(lambda: simulate(workload, cluster, router))
    return whole_s, whole_s - setup_s


def env_targets() -> dict[tuple[int, int], Target]:
    """Returns the bars by number of environments and replicas."""
    return {(64, 4): Target(1.5, 2), (8, 4): Target(0.4, 0.8), (64, 64): Target(0.15, 0.3)}


def measure_env(num_envs: int, replicas: int, sizes: Sizes) -> EnvSpeed:
    """Times `step` with actions drawn before, over whole episodes."""
    env = LLMRouteVectorEnv(num_envs, replicas=replicas, qps=ENV_QPS * replicas / REPLICAS)
    steps = sizes.env_steps * REPLICAS // (num_envs * replicas)
    episodes = min(max(round(steps / EPISODE), 1), 20)
    actions = np.random.default_rng(0).integers(replicas, size=(episodes * EPISODE, num_envs))

    def run(rows: np.ndarray[Any, np.dtype[np.int64]] = actions) -> None:
        for row in rows:
            env.step(row)

    env.reset(seed=0)
    run(actions[:EPISODE])  # compiles and fills the caches
    duration_s = median_seconds(run, sizes.repeats)
    target = env_targets().get((num_envs, replicas))
    return EnvSpeed(num_envs, replicas, actions.size / duration_s, target)


def measure_envs(sizes: Sizes) -> list[EnvSpeed]:
    """Times the environments, first by their number, then by their replicas."""
    shapes = [(count, REPLICAS) for count in sizes.env_counts]
    shapes += [(64, replicas) for replicas in sizes.env_replicas if replicas != REPLICAS]
    speeds = []
    for num_envs, replicas in shapes:
        speed = measure_env(num_envs, replicas, sizes)
        print(f"{num_envs} x {replicas}: {millions(speed.steps_per_s)} M steps/s", flush=True)
        speeds.append(speed)
    return speeds


def first_call(what: str) -> float:
    """Returns how long the first call takes in this process, Numba's import left out."""
    import numba  # noqa: F401

    if what == "environment":
        env = LLMRouteVectorEnv(8)
        actions = np.zeros(8, dtype=np.int64)

        def call() -> None:
            env.reset(seed=0)
            env.step(actions)
    else:
        workload, cluster = repeated_trace().slice(0, 1000), Cluster.from_profile("a100-llama-2-7b")

        def call() -> None:
            simulate(workload, cluster, what)

    return seconds(call)


def measure_first_call(what: str, repeats: int) -> FirstCall:
    """Times the first call in fresh processes, without and with kernels on disk."""
    with tempfile.TemporaryDirectory() as folder:

        def fresh_process() -> float:
            command = [sys.executable, __file__, "--first-call", what]
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            return float(json.loads(done.stdout))

        cold_s = fresh_process()
        warm_s = median(fresh_process() for _ in range(repeats))
        return FirstCall(what, cold_s, warm_s, seconds(fresh_process))


def peak_mb() -> float:
    """Returns the most memory that this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def engine_section(
    speeds: Sequence[Speed],
    calls: Sequence[FirstCall],
    memory_mb: Sequence[float],
    sizes: Sizes,
    load: float,
) -> str:
    """Returns the README's section on the engines."""
    rows = [
        [
            one.case.profile,
            one.case.batch_times,
            one.case.scheduler,
            f"`{one.case.router}`",
            one.case.replicas,
            f"**{millions(one.compiled)}**",
            *verdict(one.compiled, one.case.target),
            millions(one.without_setup),
            f"{one.reference:,.0f}",
            f"{one.ratio:,.0f}",
        ]
        for one in speeds
    ]
    columns = ["profile", "batch times", "scheduler", "router", "replicas", "compiled (M/s)"]
    columns += ["bar", "reach", "met", "without set-up (M/s)", "reference (1/s)", "ratio"]
    call_rows = [
        [one.what, *(f"{value:.2f}" for value in (one.cold_s, one.warm_s, one.process_s))]
        for one in calls
    ]
    call_columns = ["first call", "cold (s)", "warm (s)", "whole warm process (s)"]
    return "\n".join(
        [
            "## Engine",
            "",
            origin("python benchmarks/engine.py", load),
            "",
            "Requests per second of one `simulate` call, set-up included, on one core; medians of "
            f"{sizes.repeats}, kernels compiled before. The workload is the Azure conversation "
            f"trace {REPETITIONS} times, its requests in shuffled order, prompts clipped so that "
            f"prompt and output are at most {MAX_TOKENS} tokens. a100-llama-2-7b under "
            "round_robin sees the trace's own arrival times, a100-internlm-20b (bound by memory) "
            f"Poisson arrivals at {MEMORY_BOUND_QPS} requests/s, `lor` the trace's times at "
            f"{LOR_QPS} requests/s per replica; `{IN_PYTHON}` (the first times again) is asked in "
            "Python, as a router of one's own is. The reference engine runs the first "
            f"{sizes.reference_requests:,} requests ({sizes.lor_reference_requests} with `lor`); "
            f"the ratio's bar is {RATIO_BAR:,}.",
            "",
            table(columns, rows),
            "",
            "The first call of a fresh process, without and with the kernels in the disk cache "
            f"(bars: {COLD_BAR_S:g} s and {WARM_BAR_S:g} s), the imports of the package and of "
            "Numba left out; the last column has them in.",
            "",
            table(call_columns, call_rows),
            "",
            f"Peak memory of the process: {memory_mb[0]:,.0f} MB with all imports, "
            f"{memory_mb[1]:,.0f} MB after these runs.",
            "",
            f"![Speed against replicas and environments]({PICTURE.name})",
        ]
    )


def environment_section(
    speeds: Sequence[EnvSpeed], memory_mb: float, sizes: Sizes, load: float
) -> str:
    """Returns the README's section on the vector environment."""
    rows = [
        [
            one.num_envs,
            one.replicas,
            f"**{millions(one.steps_per_s)}**",
            *verdict(one.steps_per_s, one.target),
        ]
        for one in speeds
    ]
    return "\n".join(
        [
            "## Environment",
            "",
            origin("python benchmarks/engine.py", load),
            "",
            "Steps per second of all environments together through `LLMRouteVectorEnv.step` on "
            "one core: default cluster and workload, full observations, random actions drawn "
            f"before, {ENV_QPS} requests/s per {REPLICAS} replicas, whole episodes of {EPISODE} "
            f"steps with their resets; medians of {sizes.repeats}.",
            "",
            table(["environments", "replicas", "M steps/s", "bar", "reach", "met"], rows),
            "",
            f"Peak memory of the process, after the engines' runs: {memory_mb:,.0f} MB.",
        ]
    )


def draw(speeds: Sequence[Speed], env_speeds: Sequence[EnvSpeed], path: Path) -> None:
    """Draws how both speeds grow or fall with replicas and environments."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for scheduler in SCHEDULERS:
        lor = [one for one in speeds if (one.case.router, one.case.scheduler) == ("lor", scheduler)]
        points = [(one.case.replicas, one.compiled / 1e6) for one in lor]
        panels[0].plot(*zip(*points, strict=True), marker="o", label=scheduler)
    panels[0].legend(frameon=False)
    few = sorted((one.num_envs, one.steps_per_s) for one in env_speeds if one.replicas == REPLICAS)
    many = sorted((one.replicas, one.steps_per_s) for one in env_speeds if one.num_envs == 64)
    for panel, points in zip(panels[1:], (few, many), strict=True):
        panel.plot(*zip(*points, strict=True), marker="o", color="C2")
        panel.set_yscale("log")
    labels = (
        ("Replicas", "Million requests/s", f"lor, {LOR_QPS} QPS per replica"),
        ("Environments", "Steps/s", f"Vector environment, {REPLICAS} replicas"),
        ("Replicas", "Steps/s", "Vector environment, 64 environments"),
    )
    for panel, (x, y, title) in zip(panels, labels, strict=True):
        panel.set(xlabel=x, ylabel=y, title=title)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def measure_all(sizes: Sizes, parts: Sequence[str], write: bool) -> None:
    """Measures everything, or those parts, prints it, and writes it if asked."""
    load = load_average()
    sections = {}
    speeds: list[Speed] = []
    env_speeds: list[EnvSpeed] = []
    if "engine" in parts:
        memory_mb = [peak_mb()]
        calls = [measure_first_call(what, sizes.repeats) for what in FIRST_CALLS]
        for call in calls:
            print(f"first {call.what}: cold {call.cold_s:.2f} s, warm {call.warm_s:.2f} s")
        for case in cases(sizes.lor_replicas):
            speed = measure_case(case, sizes)
            shown = f"{millions(speed.compiled)} M/s, {speed.ratio:,.0f} times"
            print(*case[:5], shown, flush=True)
            speeds.append(speed)
        memory_mb.append(peak_mb())
        sections["engine"] = engine_section(speeds, calls, memory_mb, sizes, load)
    if "environment" in parts:
        env_speeds = measure_envs(sizes)
        sections["environment"] = environment_section(env_speeds, peak_mb(), sizes, load)
    if "vllm" in parts:
        text = vllm_speeds.measure(sizes.repeats, sizes.requests, sizes.env_steps, load)
        observed = vllm_observed.measure(sizes.repeats, sizes.requests)
        sections["vllm"] = f"{text}\n\n{observed}"
    print(*sections.values(), sep="\n\n")
    if write:
        for name, text in sections.items():
            write_section(name, text)
        if speeds and env_speeds:
            draw(speeds, env_speeds, PICTURE)


def main() -> int:
    """Reads the options and measures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--write", action="store_true", help="fill benchmarks/README.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure only these")
    parser.add_argument("--first-call", choices=FIRST_CALLS, help="time only this, here and now")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick only shows that the benchmark works; leave out --write")
    parts = options.only or PARTS
    files = [TRACE, *TABLES.values(), *(vllm_speeds.FILES if "vllm" in parts else ())]
    missing = [path for path in files if not path.is_file()]
    if missing:
        print(f"no {missing[0]}; set LLMROUTE_DATA to the folder of the data", file=sys.stderr)
        return 2
    if options.first_call:
        print(json.dumps(first_call(options.first_call)))
        return 0
    measure_all(QUICK if options.quick else FULL, parts, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
