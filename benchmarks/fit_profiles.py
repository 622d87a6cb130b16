"""Fits the shipped profiles to measured iterations and replays the recorded runs with them.

    python benchmarks/fit_profiles.py            # fit, write the YAML files, replay, write the table
    python benchmarks/fit_profiles.py --no-fit   # replay only, with the YAML files as they are

Reads the directory `data` beside the checkout's parent (`../shared/data`) or `$LLMROUTE_DATA`.
Deterministic: the same measurements give the same files.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from llmroute_gym.sim.batch_time import CONTEXT_BUCKET, GQA_BATCHING_PENALTY, LINEAR_BUCKET
from llmroute_gym.sim.profile_time import ProfileBatchTime

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "llmroute_gym" / "sim" / "profiles"

LINEAR_STEPS = 250
DECODE_ROWS = 20
DECODE_CONTEXTS = (0, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
PREFILL_ROWS = 32
PREFILL_CONTEXTS = (0, 1, 4, 8, 16, 24, 32, 48, 64)
MAX_TOKENS = 4096
HELD_OUT_EVERY = 5  # rows
SMOOTHING = 0.03  # of a data row's weight: decides only cells that hardly any row touches


@dataclass(frozen=True)
class Target:
    """One shipped profile and the measurements that it is fitted to."""

    name: str
    combo: str
    model: str
    hardware: str
    num_blocks: int
    gqa: bool
    max_batch: int = 128


TARGETS = (
    Target("a100-internlm-20b", "a100_internlm-20b_tp1", "InternLM-20B", "1 x A100 80GB", 1792, False),
    Target("a100-llama-2-7b", "a100_llama2-7b_tp1", "Llama-2-7B", "1 x A100 80GB", 7424, False),
    Target("a100x2-llama-2-70b", "a100_llama2-70b_tp2", "Llama-2-70B", "2 x A100 80GB", 3328, True),
    Target(
        "a100x2-codellama-34b", "a100_codellama-34b_tp2", "CodeLlama-34B", "2 x A100 80GB", 27648, True
    ),
    Target("h100-codellama-34b", "h100_codellama-34b_tp1", "CodeLlama-34B", "1 x H100 80GB", 3328, True),
    Target("a30-qwen2-7b", "a30_qwen2-7b_tp1", "Qwen2-7B", "1 x A30 24GB", 11008, True, max_batch=48),
)


@dataclass(frozen=True)
class Iterations:
    """Measured iterations of one model on hardware: arrays of shape (n_rows,), times in seconds."""

    tokens: FloatArray
    decodes: FloatArray
    mean_context: FloatArray
    prefills: FloatArray
    prefill_root: FloatArray
    context_buckets: FloatArray
    seconds: FloatArray
    linear_s: FloatArray  # NaN where the parts were not measured apart
    decode_s: FloatArray
    prefill_s: FloatArray

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Iterations":
        """Returns the chosen rows."""
        return Iterations(**{name: array[rows] for name, array in vars(self).items()})


def read_iterations(data: Path, combo: str) -> Iterations:
    """Reads the designed batches and the batches of real runs of one model on hardware."""
    frames = [
        pd.read_csv(data / "iterations" / f"{combo}_{kind}_batches.csv.gz")
        for kind in ("design", "calib")
    ]
    rows = pd.concat(frames, ignore_index=True)

    def column(name: str) -> FloatArray:
        return rows[name].to_numpy(dtype=np.float64)

    decodes = column("decode_reqs")
    return Iterations(
        tokens=column("prefill_tokens") + decodes,
        decodes=decodes,
        mean_context=column("decode_kv_tokens") / np.maximum(decodes, 1.0),
        prefills=column("num_prefill_reqs"),
        prefill_root=np.sqrt(column("sum_chunk_sq")),
        context_buckets=np.ceil(column("prefill_ctx_tokens") / CONTEXT_BUCKET),
        seconds=column("t"),
        linear_s=column("t_linear") + column("t_kvsave"),
        decode_s=column("t_decode_attn"),
        prefill_s=column("t_prefill_attn"),
    )


def _cheapest_path(cost: FloatArray, edges: int) -> IntArray:
    """Returns the nodes of the cheapest path 0 -> n with that many edges, cost[i, j] for i < j."""
    best, came_from = cost[0].copy(), []
    for _ in range(edges - 1):
        through = best[:, None] + cost
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    path = [len(best) - 1]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return np.array([0, *path[::-1]])


def choose_steps(values: FloatArray, weights: FloatArray, count: int) -> IntArray:
    """Returns the exclusive ends of `count` steps of least weighted squared deviation.

    Args:
        values: (n,) what a step table shall hold.
        weights: (n,) 0 where a value is unknown.
        count: steps, <= n.
    """
    w, s, q = (np.r_[0.0, np.cumsum(weights * values**p)] for p in range(3))
    W, S, Q = (x[None, :] - x[:, None] for x in (w, s, q))
    cost = np.maximum(Q - np.divide(S**2, W, out=np.zeros_like(S), where=W > 0), 0.0)
    cost[np.tril_indices(len(cost))] = np.inf
    return _cheapest_path(cost, count)[1:]


def choose_knots(values: FloatArray, weights: FloatArray, count: int) -> IntArray:
    """Returns `count` of the n rows between which linear interpolation errs least.

    Args:
        values: (n, k) rows at equal distances.
        weights: (n, k) weights of the squared errors.
        count: rows to keep, the first and the last always.
    """
    n = len(values)
    cost = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            share = np.linspace(0.0, 1.0, j - i + 1)[1:-1, None]
            line = values[i] + share * (values[j] - values[i])
            cost[i, j] = (weights[i + 1 : j] * (values[i + 1 : j] - line) ** 2).sum()
    return _cheapest_path(cost, count - 1)


def _spread(knots: FloatArray, x: FloatArray) -> FloatArray:
    """Returns (n, n_knots) weights of linear interpolation, continued at both ends."""
    i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    share = (x - knots[i]) / (knots[i + 1] - knots[i])
    spread = np.zeros((len(x), len(knots)))
    rows = np.arange(len(x))
    spread[rows, i] = 1.0 - share
    spread[rows, i + 1] = share
    return spread


def _cells(rows: FloatArray, columns: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
    spread = _spread(rows, y)[:, :, None] * _spread(columns, x)[:, None, :]
    return spread.reshape(len(y), -1)


def _bends(rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Returns one row per inner cell and direction: its deviation from its neighbours' line."""

    def along(knots: FloatArray) -> FloatArray:
        inner = np.arange(1, len(knots) - 1)
        share = (knots[inner] - knots[inner - 1]) / (knots[inner + 1] - knots[inner - 1])
        bend = np.zeros((len(inner), len(knots)))
        at = np.arange(len(inner))
        bend[at, inner - 1], bend[at, inner], bend[at, inner + 1] = share - 1.0, 1.0, -share
        return bend

    return np.vstack(
        [
            np.kron(along(rows), np.eye(len(columns))),
            np.kron(np.eye(len(rows)), along(columns)),
        ]
    )


def _nonnegative(design: FloatArray, target: FloatArray) -> FloatArray:
    """Solves non-negative least squares by way of the normal equations."""
    gram = design.T @ design
    gram[np.diag_indices_from(gram)] += 1e-10 * gram.diagonal().max()
    upper = cholesky(gram)
    solution, _ = nnls(upper, solve_triangular(upper, design.T @ target, trans="T"))
    return np.asarray(solution)


def _fit_grid(
    rows: FloatArray,
    columns: FloatArray,
    y: FloatArray,
    x: FloatArray,
    seconds: FloatArray,
    scale: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Fits one part alone; returns the grid and how much the batches weigh on each cell.

    Rows whose `seconds` are NaN only weigh.
    """
    cells = _cells(rows, columns, y, x) / scale[:, None]
    bends = _bends(rows, columns) * (SMOOTHING / np.median(scale))
    known = np.isfinite(seconds)
    grid = _nonnegative(
        np.vstack([cells[known], bends]),
        np.r_[seconds[known] / scale[known], np.zeros(len(bends))],
    )
    shape = len(rows), len(columns)
    return grid.reshape(shape), (cells**2).sum(axis=0).reshape(shape)


def _settled(grid: FloatArray) -> FloatArray:
    """Returns the grid with last segments that do not fall, so that it may be continued."""
    grid = grid.copy()
    grid[:, -1] = np.maximum(grid[:, -1], grid[:, -2])
    grid[-1] = np.maximum(grid[-1], grid[-2])
    grid[-1, -1] = max(grid[-1, -1], grid[-1, -2] + grid[-2, -1] - grid[-2, -2])
    return grid


def _rounded(values: FloatArray) -> FloatArray:
    """Returns the values with five significant digits, as the YAML file holds them."""
    return np.array([float(f"{value:.5g}") for value in values.ravel()]).reshape(values.shape)


def fit_tables(batches: Iterations, target: Target) -> ProfileBatchTime:
    """Fits step table and grids together, by non-negative least squares on relative error."""
    measured = np.isfinite(batches.linear_s)
    bucket = np.ceil(batches.tokens / LINEAR_BUCKET).astype(np.int64) - 1
    n_buckets = MAX_TOKENS // LINEAR_BUCKET

    def per_bucket(weights: FloatArray) -> FloatArray:
        return np.bincount(bucket[measured], weights[measured], minlength=n_buckets)[:n_buckets]

    count = per_bucket(np.ones(len(batches)))
    mean = np.divide(per_bucket(batches.linear_s), count, out=np.ones(n_buckets), where=count > 0)
    visits = np.bincount(np.minimum(bucket, n_buckets - 1), minlength=n_buckets)
    ends = choose_steps(np.log(mean), np.where(count > 0, np.sqrt(visits), 0.0), LINEAR_STEPS)

    batching = GQA_BATCHING_PENALTY if target.gqa else 1.0
    decode_factor = np.where(batches.decodes > 1, batching, 1.0) * (batches.decodes > 0)
    prefill_factor = np.where(batches.prefills > 1, batching, 1.0) * (batches.prefills > 0)

    contexts = np.array(DECODE_CONTEXTS, dtype=np.float64)
    coarse = np.array([0.0, 256.0, 1024.0, 2048.0, 4096.0])
    some = batches.decodes > 0
    every_batch = np.arange(1.0, target.max_batch + 1)
    grid, weight = _fit_grid(
        every_batch,
        coarse,
        batches.decodes[some],
        batches.mean_context[some],
        batches.decode_s[some] / decode_factor[some],
        batches.seconds[some],
    )
    decode_batch = every_batch[choose_knots(grid, weight, DECODE_ROWS)]

    some = batches.prefills > 0
    every_root = np.arange(0.0, MAX_TOKENS + 1, 16)
    grid, weight = _fit_grid(
        every_root,
        np.array([0.0, 16.0, 64.0]),
        batches.prefill_root[some],
        batches.context_buckets[some],
        batches.prefill_s[some] / prefill_factor[some],
        batches.seconds[some],
    )
    root = every_root[choose_knots(grid, weight, PREFILL_ROWS)]
    buckets = np.array(PREFILL_CONTEXTS, dtype=np.float64)

    step = np.searchsorted(ends, np.minimum(bucket, n_buckets - 1), side="right")
    linear = np.zeros((len(batches), LINEAR_STEPS))
    linear[np.arange(len(batches)), step] = 1.0
    decode = _cells(decode_batch, contexts, batches.decodes, batches.mean_context)
    prefill = _cells(root, buckets, batches.prefill_root, batches.context_buckets)
    decode *= decode_factor[:, None]
    prefill *= prefill_factor[:, None]

    scale = batches.seconds[:, None]
    design = [np.hstack([linear, decode, prefill]) / scale]
    targets = [np.ones(len(batches))]
    sizes = LINEAR_STEPS, decode.shape[1], prefill.shape[1]
    parts = ((linear, batches.linear_s), (decode, batches.decode_s), (prefill, batches.prefill_s))
    for place, (columns, seconds) in enumerate(parts):
        row = np.zeros((int(measured.sum()), sum(sizes)))
        start = sum(sizes[:place])
        row[:, start : start + sizes[place]] = columns[measured] / scale[measured]
        design.append(row)
        targets.append(seconds[measured] / batches.seconds[measured])
    for start, bends in (
        (sizes[0], _bends(decode_batch, contexts)),
        (sizes[0] + sizes[1], _bends(root, buckets)),
    ):
        row = np.zeros((len(bends), sum(sizes)))
        row[:, start : start + bends.shape[1]] = bends * SMOOTHING / np.median(batches.seconds)
        design.append(row)
        targets.append(np.zeros(len(bends)))
    solution = _nonnegative(np.vstack(design), np.concatenate(targets))
    linear_s, decode_s, prefill_s = np.split(solution, np.cumsum(sizes)[:-1])

    tokens = ends.astype(np.float64) * LINEAR_BUCKET
    upper = tokens >= MAX_TOKENS / 2
    slope = np.polyfit(tokens[upper], linear_s[upper], 1)[0]
    return ProfileBatchTime(
        linear_tokens=tokens,
        linear_s=_rounded(linear_s),
        linear_slope_s=float(f"{slope:.5g}"),
        decode_batch=decode_batch,
        decode_context=contexts,
        decode_s=_settled(_rounded(decode_s.reshape(len(decode_batch), -1))),
        prefill_root=root,
        prefill_context=buckets,
        prefill_s=_settled(_rounded(prefill_s.reshape(len(root), -1))),
        gqa=target.gqa,
    )
