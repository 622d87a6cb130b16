"""Random cases of `vllm_v1`: prompts that are made of each other, on little memory."""

from dataclasses import replace
from typing import Any

import numpy as np

from llmroute_gym.routers import available
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.replica import Cluster, OversizeMode, Replica
from llmroute_gym.sim.workload import Workload
from tests.sim.strategies import (
    TICK_S,
    Case,
    draw_assignment,
    draw_batch_time,
    draw_limits,
    draw_options,
    draw_pace,
)

Row = list[tuple[int, int]]
"""The segments of a prompt: stream, tokens."""


def random_vllm_case(seed: int, n_requests: int | None = None, exact: bool | None = None) -> Case:
    """Draws a case; the same arguments give the same one.

    Args:
        seed: any integer >= 0.
        n_requests: None draws 5 to 60.
        exact: as for `random_case`.
    """
    rng = np.random.default_rng([seed, 8])
    n = int(rng.integers(5, 61)) if n_requests is None else n_requests
    drawn_exact = bool(rng.random() < 0.2)
    exact = drawn_exact if exact is None else exact
    block_size = int(rng.choice([1, 4, 16, 16, 64]))
    workload = _workload(rng, n, block_size, exact)
    kind = "formula" if exact else str(rng.choice(["formula", "table", "profile"]))
    cluster = _cluster(rng, workload, block_size, kind, exact)
    case = Case(
        workload=workload,
        cluster=cluster,
        assignment=draw_assignment(rng, workload, cluster),
        router=str(rng.choice(available())),
        options=draw_options(rng, n, exact),
        kind=kind,
        exact=exact,
    )
    told = replace(case.options["observation"], **_prefix_view(rng, exact))
    return case._replace(options={**case.options, "observation": told})


def _prefix_view(rng: np.random.Generator, exact: bool) -> dict[str, Any]:
    """Draws what the cached prefixes are looked up in."""
    lags_s = [0.0, TICK_S, 4 * TICK_S, 1.0, 8.0] if exact else [0.0, 1e-3, 0.05, 0.5, 8.0]
    return {
        "prefix_view": str(rng.choice(["events", "tree"])),
        "events_lag_s": float(rng.choice(lags_s)),
        "tree_blocks": int(rng.choice([1, 2, 5, 20, 60, 200, 32768])),
    }


def _workload(rng: np.random.Generator, n: int, block_size: int, exact: bool) -> Workload:
    gaps = rng.exponential(float(rng.choice([0.002, 0.02, 0.2, 2.0])), n)
    gaps[rng.random(n) < float(rng.choice([0.0, 0.3, 0.6, 0.9, 1.0]))] = 0.0
    gaps[0] = float(rng.choice([0.0, 3.0]))
    if exact:
        gaps = np.round(gaps / TICK_S) * TICK_S
    outputs = np.minimum(rng.geometric(1 / rng.choice([1.5, 8, 30, 60]), n), 250)
    outputs[rng.random(n) < 0.15] = 1
    rows = _rows(rng, outputs.tolist(), block_size)
    drawn = np.minimum(rng.geometric(1 / rng.choice([3, 40, 150]), n), 400)
    prompts = [
        sum(tokens for _, tokens in row) or int(own) for row, own in zip(rows, drawn, strict=True)
    ]
    content = Content.of(rows) if rng.random() < 0.95 else None
    return Workload(np.cumsum(gaps), prompts, outputs, content=content)


def _rows(rng: np.random.Generator, outputs: list[int], block_size: int) -> list[Row]:
    """Draws what each prompt is made of: streams in common, earlier prompts, their outputs."""
    kinds = ("alone", "common", "copy", "child", "branch")
    weights = rng.dirichlet(np.full(len(kinds), 0.6))
    most = max(2, int(rng.choice([40, 150, 400])))
    rows: list[Row] = []
    for request in range(len(outputs)):
        kind = str(rng.choice(kinds, p=weights))
        # Mostly one of the latest, which is often still there.
        back = int(rng.geometric(0.4)) if rng.random() < 0.7 else int(rng.integers(1, 60))
        earlier = max(request - back, 0)
        row: Row = []
        if kind != "alone" and request and rows[earlier] and kind != "common":
            row = list(rows[earlier])
            if kind == "branch":
                row = _cut(row, _tokens(rng, sum(tokens for _, tokens in row), block_size))
            elif kind == "child":
                heard = outputs[earlier] if rng.random() < 0.7 else 1
                row.append((-(earlier + 1), heard))
        elif kind != "alone":
            row = [(int(rng.integers(0, 3)), _tokens(rng, most, block_size))]
        if row and kind != "copy" and rng.random() < 0.7:
            own = 1000 + request if rng.random() < 0.7 else int(rng.integers(3, 6))
            row.append((own, _tokens(rng, max(most // 4, 1), block_size)))
        rows.append(_cut(row, 600))
    return rows


def _tokens(rng: np.random.Generator, most: int, block_size: int) -> int:
    """Draws a length of at most so many tokens, often of whole blocks or one more or less."""
    tokens = int(rng.integers(1, most + 1))
    if rng.random() < 0.6:
        tokens = round(tokens / block_size) * block_size + int(rng.choice([0, 0, 1, -1]))
    return min(max(tokens, 1), most)


def _cut(row: Row, most: int) -> Row:
    """Returns the first tokens of a prompt."""
    kept: Row = []
    for stream, tokens in row:
        if most > 0:
            kept.append((stream, min(tokens, most)))
            most -= tokens
    return kept


def _cluster(
    rng: np.random.Generator, workload: Workload, block_size: int, kind: str, exact: bool
) -> Cluster:
    n_replicas = int(rng.choice([1, 1, 1, 2, 2, 3, 4]))
    oversize: OversizeMode = "reject" if rng.random() < 0.25 else "raise"
    mixed = rng.random() < 0.5
    settings = [_settings(rng, workload, block_size, kind, exact, may_lack=oversize == "reject")]
    for _ in range(n_replicas - 1):
        if not mixed:
            settings.append(settings[0])
        elif rng.random() < 0.4:
            settings.append(draw_limits(rng, workload, kind, exact, True))
        else:
            size = int(rng.choice([1, 4, 16, 64]))
            settings.append(_settings(rng, workload, size, kind, exact, may_lack=True))
    return Cluster(
        tuple(
            Replica(**one, **draw_pace(rng, workload, exact), oversize=oversize) for one in settings
        )
    )


def _settings(
    rng: np.random.Generator,
    workload: Workload,
    block_size: int,
    kind: str,
    exact: bool,
    may_lack: bool,
) -> dict[str, Any]:
    """Draws a replica that can hold every request, unless it may lack what some need."""
    longest = int((workload.prompt_tokens + workload.output_tokens).max()) - 1
    lacks = may_lack and rng.random() < 0.5
    needed = -(-longest // block_size)
    share = float(rng.choice([0.0, 0.0, 0.1, 0.1, 0.3, 0.3, 0.5, 1.0, 3.0, 40.0]))
    spare = int(share * needed) + int(rng.integers(0, 2))  # mostly too little for all
    lacking = int(rng.integers(0, needed)) if lacks else 0
    few = [1, 3, 8] if longest < 150 else [20, 50]
    budget = int(rng.choice([*few, 64, 64, 200, 2048]))
    chunked = rng.random() < 0.8
    if not chunked:
        budget = max(longest + int(rng.choice([0, 1, 50])) - min(lacking, 5), 1)
    max_model_len = None
    if rng.random() < 0.2:
        least = 2 if lacks else int(workload.prompt_tokens.max()) + 1
        max_model_len = least + int(rng.integers(0, longest))
    return {
        "batch_time": draw_batch_time(rng, kind, exact),
        "scheduler": "vllm_v1",
        "max_batch": int(rng.choice([1, 2, 5, 20, 64, 400])),  # the last is more than requests
        "max_batched_tokens": budget,
        "block_size": block_size,
        "num_blocks": max(needed + 1 + spare - lacking, 2),
        "prefix_caching": bool(rng.random() < 0.85),
        "chunked_prefill": bool(chunked),
        "long_prefill_tokens": int(rng.choice([0, 0, 0, 1, 7, block_size, 50])),
        "admission": str(rng.choice(["sequence", "sequence", "chunk"])),
        "watermark": float(rng.choice([0.0, 0.0, 0.02, 0.1, 0.3])),
        "max_model_len": max_model_len,
    }
