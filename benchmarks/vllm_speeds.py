"""The speed of the scheduler `vllm_v1`: workloads with and without contents, and the environment.

A part of `engine.py`, which runs it: `python benchmarks/engine.py --only vllm`.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from measuring import (
    DATA,
    Target,
    median_seconds,
    millions,
    origin,
    seconds,
    table,
    verdict,
)

from llmroute_gym.envs import LLMRouteVectorEnv
from llmroute_gym.ground.arrays import IntArray
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim.batch_time import FormulaBatchTime
from llmroute_gym.sim.compiled.paths import paths_of
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.conversations import MultiTurn
from llmroute_gym.sim.prefixes import SharedPrefix
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.sources import TraceWorkload, WorkloadSource
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload

AZURE = DATA / "traces" / "azure_conv_2023.csv"
MOONCAKE = DATA / "traces" / "mooncake_conversation.jsonl"
SESSIONS = DATA / "vllm" / "f_sessions_on" / "input.jsonl.gz"
TIGHT = DATA / "vllm" / "c_tight_on" / "input.jsonl.gz"
FILES = (AZURE, MOONCAKE, SESSIONS, TIGHT)
BATCH_TIME = FormulaBatchTime(0.008, 5.5e-5, 0, 3.5e-8, 2.5e-9)
"""That of the runs of vLLM's own scheduler (`vllm/`)."""
PROFILE = "h100-llama-3.1-8b"
FEW, MANY = 4, 64  # replicas
PREPARED_BAR_S = 2e-6  # per request
READ_BARS = {AZURE: 3e6, MOONCAKE: 2e5}  # rows per second
ENV_COUNT, EPISODE = 64, 500
CHATS, DRAWN, PREFIXES = "sessions", "multi_turn", "shared_prefix"
ENV_TARGETS = {
    (CHATS, FEW): Target(0.5, 1),
    (CHATS, MANY): Target(0.1, None),
    (PREFIXES, FEW): Target(0.5, 1),
    (PREFIXES, MANY): Target(0.1, None),
    (DRAWN, FEW): None,
    (DRAWN, MANY): None,
}
"""By where the requests are from and the number of replicas."""


class Source(NamedTuple):
    """A trace, again and again, and what it is served on."""

    name: str
    path: Path
    repetitions: int
    qps: float | None
    """Requests/s per replica; None keeps the trace's own times on `FEW` replicas."""
    limits: dict[str, Any]


class Case(NamedTuple):
    """A workload on so many replicas."""

    source: Source
    replicas: int
    target: Target | None
    profile: str | None = None
    """None for the formula."""

    @property
    def cluster(self) -> Cluster:
        """The replicas."""
        if self.profile is not None:
            return Cluster.from_profile(self.profile, self.replicas, **self.source.limits)
        one = Replica(BATCH_TIME, scheduler="vllm_v1", **self.source.limits)
        return Cluster((one,) * self.replicas)

    @property
    def workload(self) -> Workload:
        """The requests at this case's rate."""
        workload = repeated(self.source.path, self.source.repetitions)
        if self.source.qps is not None:
            return workload.with_qps(self.source.qps * self.replicas)
        return workload.with_qps(workload.qps * self.replicas / FEW)


class Speed(NamedTuple):
    """Medians of one case."""

    case: Case
    requests: int
    simulated: float
    """Requests per second of whole calls."""
    prepared_s: float | None
    """Seconds per request that the tree of contents takes, None without contents."""
    cached: float
    """Share of the prompt tokens found in a cache."""
    preemptions: float
    """Per request."""


class EnvSpeed(NamedTuple):
    """Environment steps per second, all environments together."""

    requests_from: str
    replicas: int
    steps_per_s: float
    without_resets: float
    """The same without the drawing of workloads, their contents and the first observations."""
    cached: float
    """Mean of the prefix column."""


class Reading(NamedTuple):
    """How fast a trace is read."""

    path: Path
    rows: int
    rows_per_s: float


def sources() -> list[Source]:
    """Returns the workloads, with limits as in the runs of vLLM's own scheduler."""
    azure = {"max_batch": 256, "num_blocks": 27648}
    mooncake = {
        (size, room): {"max_batch": 256, "num_blocks": tokens // size, "block_size": size}
        for size in (16, 64)
        for room, tokens in (("ample", 6_400_000), ("tight", 393_216))
    }
    sessions = {"max_batch": 256, "max_batched_tokens": 2048, "num_blocks": 12288}
    tight = {"max_batch": 256, "max_batched_tokens": 1024, "num_blocks": 1200}
    return [
        Source("Azure, cache off", AZURE, 10, None, {**azure, "prefix_caching": False}),
        Source("Azure, cache on", AZURE, 10, None, azure),
        Source("Azure, loaded, cache on", AZURE, 10, 8.3, azure),
        *(
            Source(f"Mooncake, blocks of {size}, {room} memory", MOONCAKE, 4, qps, limits)
            for (size, room), limits in mooncake.items()
            for qps in (0.6 if room == "ample" else 0.5,)
        ),
        Source("sessions", SESSIONS, 20, 5.75, sessions),
        Source("much preemption", TIGHT, 40, 4.0, tight),
    ]


def cases() -> list[Case]:
    """Returns what is measured: each workload on few replicas, then on many."""
    targets = (Target(5, 9), Target(4, 8), None, *[Target(2, 4.5)] * 4)
    targets = (*targets, Target(1.2, 3), Target(1.5, 3.5))
    few = [Case(source, FEW, target) for source, target in zip(sources(), targets, strict=True)]
    azure = next(one for one in sources() if one.name == "Azure, cache on")
    profile = Case(azure, FEW, None, PROFILE)
    return [*few, profile, *(Case(source, MANY, None) for source in sources())]


@cache
def repeated(path: Path, repetitions: int) -> Workload:
    """Returns a trace at its own times, again and again; a repetition shares nothing with others.

    The order of requests is kept, as contents go on from each other.
    """
    trace = load_trace(path)
    n = len(trace)
    period_s = float(trace.arrived_at_s[-1]) * n / (n - 1)
    starts_s = period_s * np.arange(repetitions)
    return Workload(
        (starts_s[:, None] + trace.arrived_at_s).ravel(),
        np.tile(trace.prompt_tokens, repetitions),
        np.tile(trace.output_tokens, repetitions),
        None if trace.content is None else _fresh(trace.content, repetitions),
    )


def _fresh(content: Content, repetitions: int) -> Content:
    """Returns contents again and again, each time of streams of their own."""
    n, streams = len(content), content.streams
    apart = int(streams.max()) + 1
    pieces = len(streams)
    turns = np.arange(repetitions)[:, None]
    offsets = (content.offsets[:-1] + pieces * turns).ravel()
    return Content(
        np.append(offsets, pieces * repetitions),
        np.where(streams < 0, streams - n * turns, streams + apart * turns).ravel(),
        np.tile(content.lengths, repetitions),
    )


def measure_case(case: Case, repeats: int, requests: int | None) -> Speed:
    """Times the tree of contents, and `simulate` with it at hand."""
    cluster, workload = case.cluster, case.workload.slice(0, requests)
    n, size = len(workload), cluster[0].block_size
    prepared_s = None
    if workload.content is not None:
        paths_of(workload.slice(0, 10), size)  # compiles
        # A tree is remembered by its workload, so each is made of a new one.
        copies = [workload.slice(0) for _ in range(repeats)]
        prepared_s = median(seconds(partial(paths_of, one, size)) for one in copies) / n
    outcome = simulate(workload, cluster, "round_robin")  # compiles
    duration_s = median_seconds(lambda: simulate(workload, cluster, "round_robin"), repeats)
    return Speed(
        case,
        n,
        n / duration_s,
        prepared_s,
        outcome.cached_tokens.sum() / outcome.prompt_tokens.sum(),
        outcome.preemptions.mean(),
    )


def measure_env(requests_from: str, replicas: int, repeats: int, steps: int) -> EnvSpeed:
    """Times `step` with actions drawn before, over whole episodes of chats with their resets."""
    case = next(Case(one, replicas, None) for one in sources() if one.name == CHATS)
    chats: WorkloadSource = TraceWorkload(case.workload)
    if requests_from == DRAWN:
        chats = MultiTurn(case.workload.qps)
    elif requests_from == PREFIXES:
        chats = SharedPrefix(case.workload.qps)
    env = LLMRouteVectorEnv(ENV_COUNT, case.cluster, workload=chats, qps=None)
    column = env.observation_config.columns.index("cached_prefix")
    episodes = min(max(round(steps * FEW / (ENV_COUNT * replicas * EPISODE)), 1), 20)
    actions = np.random.default_rng(0).integers(replicas, size=(episodes * EPISODE, ENV_COUNT))

    def run(rows: IntArray) -> None:
        for row in rows:
            env.step(row)

    env.reset(seed=0)
    cached = [env.step(row)[0][..., column].mean() for row in actions[:EPISODE]]
    whole_s = median_seconds(lambda: run(actions), repeats)
    env.reset(seed=0)
    within = actions[: EPISODE - 1]  # the last step of an episode starts the next
    within_s = []
    for _ in range(repeats):
        within_s.append(seconds(lambda: run(within)))
        run(actions[-1:])
    return EnvSpeed(
        requests_from,
        replicas,
        actions.size / whole_s,
        within.size / median(within_s),
        float(np.mean(cached)),
    )


def measure_reading(path: Path, repeats: int) -> Reading:
    """Times `load_trace`, contents and all."""
    rows = len(load_trace(path))
    return Reading(path, rows, rows / median_seconds(lambda: load_trace(path), repeats))


def measure(repeats: int, requests: int | None, env_steps: int, load: float) -> str:
    """Measures everything and returns the README's section."""
    speeds = []
    for case in cases():
        speed = measure_case(case, repeats, requests)
        print(f"{_title(case)}, {case.replicas}: {millions(speed.simulated)} M/s", flush=True)
        speeds.append(speed)
    envs = []
    for requests_from, replicas in ENV_TARGETS:
        env = measure_env(requests_from, replicas, repeats, env_steps)
        print(f"{requests_from}, {ENV_COUNT} x {replicas}: {millions(env.steps_per_s)} M steps/s")
        envs.append(env)
    readings = [measure_reading(path, repeats) for path in READ_BARS]
    return section(speeds, envs, readings, repeats, load)


def _title(case: Case) -> str:
    return case.source.name + ("" if case.profile is None else f", {case.profile}")


def _met(value: float, bar: float) -> str:
    return "bar" if value >= bar else "**missed**"


def section(
    speeds: Sequence[Speed],
    envs: Sequence[EnvSpeed],
    readings: Sequence[Reading],
    repeats: int,
    load: float,
) -> str:
    """Returns the README's section."""
    return "\n".join(
        [
            "## vLLM v1",
            "",
            origin("python benchmarks/engine.py --only vllm", load),
            "",
            "Millions of requests per second of one `simulate` call with `vllm_v1` under "
            f"round_robin on one core, set-up included; medians of {repeats}, kernels compiled "
            "before. The workloads are traces again and again, each time of fresh contents, so "
            "that a repetition finds nothing of the one before: the Azure conversation trace 10 "
            "times at its own rate (a seventh of what the replicas can serve) or 80% of the "
            "capacity, Mooncake's conversation trace 4 times at 70%, the chats of "
            "`vllm/f_sessions_on` 20 times at 80%, `vllm/c_tight_on` 40 times at more than the "
            "replicas can serve. Batch times and limits are those of the runs in `vllm/`, or a "
            "profile's where it is named; more replicas get as many requests each. The tree of "
            "contents, which a workload keeps for all its runs, is timed apart (bar: "
            f"{PREPARED_BAR_S * 1e6:g} us per request).",
            "",
            speed_table(speeds),
            "",
            f"Steps per second of {ENV_COUNT} environments of `LLMRouteVectorEnv` together: "
            f"windows of the sessions above, and requests drawn anew by `{PREFIXES}` and "
            f"`{DRAWN}` at the same rate; "
            "all nineteen columns, with the share of the prompt in each replica's cache; random "
            f"actions drawn before, whole episodes of {EPISODE} steps with their resets.",
            "",
            env_table(envs),
            "",
            "Reading with `load_trace`, Mooncake's with contents.",
            "",
            reading_table(readings),
        ]
    )


def speed_table(speeds: Sequence[Speed]) -> str:
    """Returns the table of the engine."""
    columns = ["workload", "replicas", "requests", "in the cache", "preemptions per request"]
    columns += ["M/s", "bar", "reach", "met", "contents (us)", "met"]
    rows = []
    for one in speeds:
        prepared = ["", ""]
        if one.prepared_s is not None:
            met = _met(PREPARED_BAR_S, one.prepared_s)
            prepared = [f"{one.prepared_s * 1e6:.2f}", met]
        rows.append(
            [
                _title(one.case),
                one.case.replicas,
                f"{one.requests:,}",
                f"{one.cached:.0%}",
                f"{one.preemptions:.2f}",
                f"**{millions(one.simulated)}**",
                *verdict(one.simulated, one.case.target),
                *prepared,
            ]
        )
    return table(columns, rows)


def env_table(envs: Sequence[EnvSpeed]) -> str:
    """Returns the table of the environment."""
    rows = [
        [
            one.requests_from,
            ENV_COUNT,
            one.replicas,
            f"{one.cached:.0%}",
            f"**{millions(one.steps_per_s)}**",
            *verdict(one.steps_per_s, ENV_TARGETS[one.requests_from, one.replicas]),
            millions(one.without_resets),
        ]
        for one in envs
    ]
    columns = ["requests", "environments", "replicas", "in the cache", "M steps/s", "bar"]
    return table([*columns, "reach", "met", "without resets"], rows)


def reading_table(readings: Sequence[Reading]) -> str:
    """Returns the table of `load_trace`."""
    rows = [
        [
            f"`{one.path.name}`",
            f"{one.rows:,}",
            f"**{one.rows_per_s:,.0f}**",
            f"{READ_BARS[one.path]:,.0f}",
            _met(one.rows_per_s, READ_BARS[one.path]),
        ]
        for one in readings
    ]
    return table(["trace", "rows", "rows/s", "bar", "met"], rows)
