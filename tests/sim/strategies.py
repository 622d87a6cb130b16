"""Random workloads on random clusters, for the tests that must hold for all of them."""

import os
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.routers import available
from llmroute_gym.sim.batch_time import BatchTimeModel, FormulaBatchTime, TableBatchTime
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import ProfileBatchTime, available_profiles, load_profile
from llmroute_gym.sim.replica import Cluster, OversizeMode, Replica
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.workload import Workload

TICK_S = 2.0**-6
"""Exact cases have all times on multiples of a power of two, so that events coincide."""
QUICK_CASES = 20
"""So many of a random suite's cases are not marked as slow."""


def n_cases(usual: int) -> int:
    """Returns how many cases a random suite has: `LLMROUTE_CASES`, by default the usual."""
    return int(os.environ.get("LLMROUTE_CASES") or usual)


def seeds(usual: int) -> pytest.MarkDecorator:
    """Runs a test with each `seed` from 0 to `n_cases` - 1; all but the first are slow."""
    return pytest.mark.parametrize(
        "seed",
        [
            pytest.param(seed, marks=pytest.mark.slow if seed >= QUICK_CASES else ())
            for seed in range(n_cases(usual))
        ],
    )


class Case(NamedTuple):
    """One random run.

    Attributes:
        workload: 5 to 60 requests, unless asked otherwise.
        cluster: 1 to 6 replicas.
        assignment: (n_requests,), a replica for each request that can run it or rejects it.
        router: the name of a rule.
        options: keyword arguments of a `Run`: observation, predictions, lateness.
        kind: of its batch times: formula, table or profile.
        exact: whether all times are multiples of a power of two.
    """

    workload: Workload
    cluster: Cluster
    assignment: IntArray
    router: str
    options: dict[str, Any]
    kind: str
    exact: bool

    @property
    def rtol(self) -> float:
        """The relative error in time that the two engines may differ by."""
        if self.exact:  # nothing rounds
            return 0.0
        return 1e-9 if self.kind == "table" else 1e-6

    def start(self, engine: str, **overrides: Any) -> Run:
        """Returns the case's run on an engine, before its first decision."""
        return ENGINES[engine](self.workload, self.cluster, **{**self.options, **overrides})


def random_case(seed: int, n_requests: int | None = None, exact: bool | None = None) -> Case:
    """Draws a case; the same arguments give the same one.

    Args:
        seed: any integer >= 0.
        n_requests: None draws 5 to 60.
        exact: whether all times are multiples of a power of two, which batch ends then often
            share with arrivals; None draws it.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 61)) if n_requests is None else n_requests
    drawn_exact = bool(rng.random() < 0.2)
    exact = drawn_exact if exact is None else exact
    workload = _workload(rng, n, exact)
    kind = "formula" if exact else str(rng.choice(["formula", "table", "profile"]))
    cluster = _cluster(rng, workload, kind, exact)
    return Case(
        workload=workload,
        cluster=cluster,
        assignment=draw_assignment(rng, workload, cluster),
        router=str(rng.choice(available())),
        options=draw_options(rng, n, exact),
        kind=kind,
        exact=exact,
    )


def with_waiting(case: Case, seed: int) -> Case:
    """Returns a case in which many requests wait for the end of an earlier one."""
    rng = np.random.default_rng([seed, 1])
    workload, n = case.workload, len(case.workload)
    earlier = (rng.random(n) * np.arange(n)).astype(np.int64)
    waits = (rng.random(n) < rng.choice([0.3, 0.7, 1.0])) & (np.arange(n) > 0)
    gap_s = rng.exponential(float(rng.choice([0.01, 0.3, 3.0])), n) + 1e-6
    if case.exact:
        gap_s = np.ceil(gap_s / TICK_S) * TICK_S
    changed = replace(workload, after=np.where(waits, earlier, -1), gap_s=gap_s)
    return case._replace(workload=changed)


def cases(max_requests: int = 60, exact: bool | None = None) -> st.SearchStrategy[Case]:
    """Random cases for hypothesis, which shrinks them to few requests."""
    return st.builds(
        random_case,
        st.integers(0, 2**32 - 1),
        st.integers(1, max_requests),
        st.none() if exact is None else st.just(exact),
    )


def _workload(rng: np.random.Generator, n: int, exact: bool) -> Workload:
    prompts = np.minimum(rng.geometric(1 / rng.choice([3, 40, 150]), n), 600)
    outputs = np.minimum(rng.geometric(1 / rng.choice([1.5, 8, 40]), n), 250)
    outputs[rng.random(n) < 0.15] = 1
    gaps = rng.exponential(float(rng.choice([0.002, 0.02, 0.2, 2.0])), n)
    burst = float(rng.choice([0.0, 0.0, 0.5, 0.9, 1.0]))
    gaps[rng.random(n) < burst] = 0.0
    gaps[0] = float(rng.choice([0.0, 3.0]))
    if exact:
        gaps = np.round(gaps / TICK_S) * TICK_S
    return Workload(np.cumsum(gaps), prompts, outputs)


def _cluster(rng: np.random.Generator, workload: Workload, kind: str, exact: bool) -> Cluster:
    n_replicas = int(rng.choice([1, 1, 2, 2, 3, 4, 6]))
    oversize: OversizeMode = "reject" if rng.random() < 0.25 else "raise"
    mixed = rng.random() < 0.3
    may_lack = oversize == "reject" or mixed
    kinds = [draw_limits(rng, workload, kind, exact, may_lack) for _ in range(n_replicas)]
    if not mixed:
        kinds = kinds[:1] * n_replicas
    if oversize == "raise":
        # Somebody must be able to hold the longest request.
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        size, reserve = kinds[0]["block_size"], kinds[0]["watermark_blocks"]
        kinds[0] = {
            **kinds[0],
            "num_blocks": max(kinds[0]["num_blocks"], -(-longest // size) + reserve),
            "max_batched_tokens": max(
                kinds[0]["max_batched_tokens"], int(workload.prompt_tokens.max())
            ),
        }
    return Cluster(
        tuple(
            Replica(**limits, **draw_pace(rng, workload, exact), oversize=oversize)
            for limits in kinds
        )
    )


def draw_limits(
    rng: np.random.Generator, workload: Workload, kind: str, exact: bool, may_lack: bool
) -> dict[str, Any]:
    block_size = int(rng.choice([16, 16, 16, 1, 4, 32]))
    watermark = int(rng.choice([0, 0, 1, 4]))
    total = workload.prompt_tokens + workload.output_tokens
    needed = -(-int(total.max()) // block_size) + watermark
    tight = rng.random() < 0.7  # so tight that requests restart
    spare = int(rng.integers(0, needed // 4 + 1)) if tight else 20 * needed
    lacking = int(rng.integers(0, needed)) if may_lack and rng.random() < 0.5 else 0
    longest_prompt = int(workload.prompt_tokens.max())
    return {
        "batch_time": draw_batch_time(rng, kind, exact),
        "scheduler": str(rng.choice(["chunked", "prefill_first"])),
        "max_batch": int(rng.choice([1, 2, 5, 16, 128])),
        "max_batched_tokens": max(
            longest_prompt + int(rng.choice([0, 50, 4096])) - min(lacking, 1), 1
        ),
        "chunk_size": int(rng.choice([5, 16, 64, 512])),
        "block_size": block_size,
        "num_blocks": max(needed + spare - lacking, watermark + 1),
        "watermark_blocks": watermark,
        "restart": str(rng.choice(["recompute", "vidur"])),
    }


def draw_pace(rng: np.random.Generator, workload: Workload, exact: bool) -> dict[str, Any]:
    """Speed and slowdowns of one replica."""
    speed = 1.0 if rng.random() < 0.4 else float(rng.choice([0.5, 2.0]))
    slowdowns = []
    if rng.random() < 0.4:
        end_s = float(workload.arrived_at_s[-1]) + 1.0
        starts = np.sort(rng.uniform(0.0, end_s, int(rng.integers(1, 5))))
        if exact:
            starts = np.round(starts / TICK_S) * TICK_S
        slowdowns = [(float(s), float(rng.choice([0.5, 1.0, 2.0, 8.0]))) for s in np.unique(starts)]
    if not exact:
        speed *= float(rng.choice([1.0, 1.0, 0.83, 1.21]))
    return {"speed": speed, "slowdowns": tuple(slowdowns)}


def draw_batch_time(rng: np.random.Generator, kind: str, exact: bool) -> BatchTimeModel:
    if exact:
        per_batch, per_token = rng.choice([(1, 0), (1, 1), (2, 4)])
        return FormulaBatchTime(
            c0=per_batch * TICK_S,
            c1=float(rng.integers(0, 3)) * 2.0**-12,
            n0=float(rng.integers(0, 20)),
            c2=float(rng.integers(0, 2)) * 2.0**-18,
            c3=float(rng.integers(0, 2)) * 2.0**-20,
            c4=per_token * 2.0**-10,
        )
    if kind == "formula":
        return FormulaBatchTime(
            c0=rng.uniform(0.001, 0.02),
            c1=rng.choice([0.0, rng.uniform(0, 2e-4)]),
            n0=rng.uniform(0, 100),
            c2=rng.choice([0.0, rng.uniform(0, 2e-6)]),
            c3=rng.choice([0.0, rng.uniform(0, 1e-7)]),
            c4=rng.choice([0.0, rng.uniform(0, 1e-4)]),
        )
    if kind == "table":
        return random_table(rng)
    drawn = rng.random()
    if drawn < 0.3:
        return random_profile(rng)
    if drawn < 0.6:
        return random_piecewise(rng)
    return _shipped(str(rng.choice(available_profiles())))


def random_table(rng: np.random.Generator) -> TableBatchTime:
    """Draws an exact table, at times so small that batches lie outside it."""
    scale = float(rng.choice([0.05, 1.0, 1.0]))

    def rising(*shape: int) -> FloatArray:
        steps: FloatArray = rng.exponential(1.0, shape) * (rng.random(shape) < 0.7)
        for axis in range(len(shape)):
            steps = np.cumsum(steps, axis=axis)
        steps /= steps.max(initial=1e-9)
        return steps

    def size(largest: int) -> int:
        return max(int(largest * scale), 2)

    return TableBatchTime(
        linear_s=0.002 + 0.05 * rising(size(600)),
        kv_save_s=rng.choice([0.0, 0.002]) * rising(size(4800)),
        decode_s=0.02 * rising(size(128), size(80)),
        prefill_s=0.02 * rising(size(80), size(2000)),
        gqa=bool(rng.random() < 0.5),
    )


def random_profile(rng: np.random.Generator) -> ProfileBatchTime:
    """Draws a small profile with a convex, rising time."""

    def knots(first: float, *widths: int) -> FloatArray:
        gaps = [float(rng.integers(1, width)) for width in widths]
        return np.cumsum([first, *gaps])

    def grid(rows: FloatArray, columns: FloatArray) -> FloatArray:
        a, b, c, d = rng.uniform(0, 1, 4) * (1e-3, 1e-4, 5e-6, 1e-7)
        seconds: FloatArray = a + b * rows[:, None] + c * columns + d * rows[:, None] * columns
        return seconds

    tokens = knots(1.0, 8, 8, 50, 200)
    batch, context = knots(1.0, 3, 10, 40), knots(0.0, 30, 100, 300)
    root, buckets = knots(0.0, 60, 300), knots(0.0, 4, 20)
    return ProfileBatchTime(
        linear_tokens=tokens,
        linear_s=0.003 + np.cumsum(rng.uniform(0, 2e-3, len(tokens))),
        linear_slope_s=rng.uniform(0, 1e-4),
        decode_batch=batch,
        decode_context=context,
        decode_s=grid(batch, context),
        prefill_root=root,
        prefill_context=buckets,
        prefill_s=grid(root, buckets),
        gqa=bool(rng.random() < 0.5),
    )


def random_piecewise(rng: np.random.Generator) -> PiecewiseBatchTime:
    """Draws times of a few lines that rise here, fall there, and end early."""

    def knots(first: float, *widths: int) -> FloatArray:
        return np.cumsum([first, *(float(rng.integers(1, width)) for width in widths)])

    def line(n: int, scale: float) -> FloatArray:
        seconds: FloatArray = rng.uniform(0, scale, n) * (rng.random(n) < 0.8)
        seconds[-1] += seconds[-2]
        return seconds

    tokens, root = knots(1.0, 3, 10, 100, 300), knots(0.0, 8, 60, 200)
    batch, context = knots(1.0, 3, 10, 40), knots(0.0, 30, 100, 300)
    decode_s = rng.uniform(0, 3e-3, (len(batch), len(context)))
    decode_s[:, -1] += decode_s[:, -2]
    decode_s[-1] += decode_s[-2]  # its slope at the corner rises too
    return PiecewiseBatchTime(
        linear_tokens=tokens,
        linear_s=0.003 + line(len(tokens), 5e-3),
        decode_batch=batch,
        decode_context=context,
        decode_s=decode_s,
        prefill_root=root,
        prefill_s=line(len(root), 5e-3),
        prefill_pair_s=line(len(root), 1e-7),
        chunk_s=float(rng.choice([0.0, 1e-3])),
        time_factor=float(rng.choice([1.0, 1.05, 0.5])),
    )


@cache
def _shipped(name: str) -> BatchTimeModel:
    return load_profile(name).batch_time


def draw_assignment(rng: np.random.Generator, workload: Workload, cluster: Cluster) -> IntArray:
    skew = rng.dirichlet(np.full(len(cluster), float(rng.choice([0.3, 100.0]))))
    chosen = rng.choice(len(cluster), len(workload), p=skew)
    for i, (prompt, output) in enumerate(
        zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    ):
        while not _accepts(cluster[chosen[i]], prompt, output):
            chosen[i] = (chosen[i] + 1) % len(cluster)
    return chosen.astype(np.int64)


def _accepts(replica: Replica, prompt_tokens: int, output_tokens: int) -> bool:
    fits = replica.why_oversize(prompt_tokens, output_tokens) is None
    return fits or replica.oversize == "reject"


def draw_options(rng: np.random.Generator, n: int, exact: bool) -> dict[str, Any]:
    intervals_s = [0.0, 0.0, 4 * TICK_S, 0.5] if exact else [0.0, 0.0, 0.037, 0.5, 5.3]
    predictions = rng.lognormal(3.0, 1.0, n) if rng.random() < 0.3 else None
    return {
        "observation": ObservationConfig(
            information=str(rng.choice(["engine", "engine", "router", "oracle"])),
            signal_interval_s=float(rng.choice(intervals_s)),
        ),
        "predicted_output_tokens": predictions,
        "late_after_s": float(rng.choice([2 * TICK_S, 0.5, 6.0])),
    }
