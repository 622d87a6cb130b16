"""Fits a profile's tables to measured iterations."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from profile_targets import Target
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from llmroute_gym.sim.batch_time import CONTEXT_BUCKET, GQA_BATCHING_PENALTY, LINEAR_BUCKET
from llmroute_gym.sim.profile_time import ProfileBatchTime

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LINEAR_STEPS = 250
DECODE_ROWS = 20
DECODE_CONTEXTS = (0, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)  # tokens
PREFILL_ROWS = 32
PREFILL_CONTEXTS = (0, 1, 4, 8, 16, 24, 32, 48, 64)  # buckets of 64 tokens
MAX_TOKENS = 4096
SMOOTHING = 0.03  # of a measured row's weight: decides only cells that hardly any row touches


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


def spread_over(knots: FloatArray, x: FloatArray) -> FloatArray:
    """Returns (n, n_knots) weights of linear interpolation, continued at both ends."""
    i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    share = (x - knots[i]) / (knots[i + 1] - knots[i])
    spread = np.zeros((len(x), len(knots)))
    rows = np.arange(len(x))
    spread[rows, i] = 1.0 - share
    spread[rows, i + 1] = share
    return spread


def cells_of(rows: FloatArray, columns: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
    """Returns (n, n_rows n_columns) weights of bilinear interpolation."""
    spread = spread_over(rows, y)[:, :, None] * spread_over(columns, x)[:, None, :]
    return spread.reshape(len(y), -1)


def bends_of(rows: FloatArray, columns: FloatArray) -> FloatArray:
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


def nonnegative(design: FloatArray, target: FloatArray) -> FloatArray:
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
    cells = cells_of(rows, columns, y, x) / scale[:, None]
    bends = bends_of(rows, columns) * (SMOOTHING / np.median(scale))
    known = np.isfinite(seconds)
    grid = nonnegative(
        np.vstack([cells[known], bends]),
        np.r_[seconds[known] / scale[known], np.zeros(len(bends))],
    )
    shape = len(rows), len(columns)
    return grid.reshape(shape), (cells**2).sum(axis=0).reshape(shape)


def settled(grid: FloatArray) -> FloatArray:
    """Returns the grid with last segments that do not fall, so that it may be continued."""
    grid = grid.copy()
    grid[:, -1] = np.maximum(grid[:, -1], grid[:, -2])
    grid[-1] = np.maximum(grid[-1], grid[-2])
    grid[-1, -1] = max(grid[-1, -1], grid[-1, -2] + grid[-2, -1] - grid[-2, -2])
    return grid


def rounded(values: FloatArray) -> FloatArray:
    """Returns the values with five significant digits, as the YAML file holds them."""
    return np.array([float(f"{value:.5g}") for value in values.ravel()]).reshape(values.shape)


@dataclass(frozen=True)
class Layout:
    """Where the steps end and where the knots lie."""

    step_tokens: FloatArray  # (n_steps,) last N of each step
    decode_batch: FloatArray
    decode_context: FloatArray
    prefill_root: FloatArray
    prefill_context: FloatArray

    def shares(self, batches: Iterations, gqa: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Returns what each step and each grid cell contributes: three (n_rows, n) matrices."""
        decode_factor, prefill_factor = _batching(batches, gqa)
        step = np.searchsorted(self.step_tokens, batches.tokens)
        linear = np.zeros((len(batches), len(self.step_tokens)))
        linear[np.arange(len(batches)), np.minimum(step, len(self.step_tokens) - 1)] = 1.0
        decode = cells_of(
            self.decode_batch, self.decode_context, batches.decodes, batches.mean_context
        )
        prefill = cells_of(
            self.prefill_root, self.prefill_context, batches.prefill_root, batches.context_buckets
        )
        return linear, decode * decode_factor[:, None], prefill * prefill_factor[:, None]


def _batching(batches: Iterations, gqa: bool) -> tuple[FloatArray, FloatArray]:
    """Returns the factors on decode and prefill attention, 0 where the part is absent."""
    penalty = GQA_BATCHING_PENALTY if gqa else 1.0

    def factor(requests: FloatArray) -> FloatArray:
        return np.where(requests > 1, penalty, 1.0).astype(np.float64) * (requests > 0)

    return factor(batches.decodes), factor(batches.prefills)


def choose_layout(batches: Iterations, target: Target) -> Layout:
    """Places steps and knots where they lower the error of the measured batches most."""
    decode_factor, prefill_factor = _batching(batches, target.gqa)
    every_batch = np.arange(1.0, target.max_batch + 1)
    some = batches.decodes > 0
    grid, weight = _fit_grid(
        every_batch,
        np.array([0.0, 256.0, 1024.0, 2048.0, 4096.0]),
        batches.decodes[some],
        batches.mean_context[some],
        batches.decode_s[some] / decode_factor[some],
        batches.seconds[some],
    )
    decode_batch = every_batch[choose_knots(grid, weight, DECODE_ROWS)]

    every_root = np.arange(0.0, MAX_TOKENS + 1, 16)
    some = batches.prefills > 0
    grid, weight = _fit_grid(
        every_root,
        np.array([0.0, 16.0, 64.0]),
        batches.prefill_root[some],
        batches.context_buckets[some],
        batches.prefill_s[some] / prefill_factor[some],
        batches.seconds[some],
    )
    return Layout(
        step_tokens=_choose_step_tokens(batches),
        decode_batch=decode_batch,
        decode_context=np.array(DECODE_CONTEXTS, dtype=np.float64),
        prefill_root=every_root[choose_knots(grid, weight, PREFILL_ROWS)],
        prefill_context=np.array(PREFILL_CONTEXTS, dtype=np.float64),
    )


def _choose_step_tokens(batches: Iterations) -> FloatArray:
    n_buckets = MAX_TOKENS // LINEAR_BUCKET
    bucket = np.minimum(np.ceil(batches.tokens / LINEAR_BUCKET).astype(np.int64), n_buckets) - 1
    known = np.isfinite(batches.linear_s)
    count = np.bincount(bucket[known], minlength=n_buckets)
    total = np.bincount(bucket[known], batches.linear_s[known], minlength=n_buckets)
    mean = np.divide(total, count, out=np.ones(n_buckets), where=count > 0)
    # The square root lets rare buckets count too: other workloads visit other ones.
    visits = np.sqrt(np.bincount(bucket, minlength=n_buckets))
    ends = choose_steps(np.log(mean), np.where(count > 0, visits, 0.0), LINEAR_STEPS)
    return ends.astype(np.float64) * LINEAR_BUCKET


def fit_tables(batches: Iterations, target: Target) -> ProfileBatchTime:
    """Fits step table and grids together, by non-negative least squares on relative error.

    A row counts with its whole time and, where its parts were measured apart, with each part.
    """
    layout = choose_layout(batches, target)
    shares = layout.shares(batches, target.gqa)
    parts = (batches.linear_s, batches.decode_s, batches.prefill_s)
    grids = (
        None,
        (layout.decode_batch, layout.decode_context),
        (layout.prefill_root, layout.prefill_context),
    )
    sizes = [share.shape[1] for share in shares]
    starts = np.cumsum([0, *sizes])
    known = np.isfinite(batches.linear_s)
    scale = batches.seconds
    design, goals = [np.hstack(shares) / scale[:, None]], [np.ones(len(batches))]
    for start, share, seconds, knots in zip(starts, shares, parts, grids, strict=False):
        columns = slice(start, start + share.shape[1])
        design.append(np.zeros((int(known.sum()), starts[-1])))
        design[-1][:, columns] = share[known] / scale[known, None]
        goals.append(seconds[known] / scale[known])
        if knots:
            bends = bends_of(*knots) * (SMOOTHING / np.median(scale))
            design.append(np.zeros((len(bends), starts[-1])))
            design[-1][:, columns] = bends
            goals.append(np.zeros(len(bends)))
    solution = nonnegative(np.vstack(design), np.concatenate(goals))
    linear_s, decode_s, prefill_s = np.split(solution, starts[1:-1])
    upper = layout.step_tokens >= MAX_TOKENS / 2
    slope_s = np.polyfit(layout.step_tokens[upper], linear_s[upper], 1)[0]
    return ProfileBatchTime(
        linear_tokens=layout.step_tokens,
        linear_s=rounded(linear_s),
        linear_slope_s=float(rounded(np.array([slope_s]))[0]),
        decode_batch=layout.decode_batch,
        decode_context=layout.decode_context,
        decode_s=settled(rounded(decode_s.reshape(len(layout.decode_batch), -1))),
        prefill_root=layout.prefill_root,
        prefill_context=layout.prefill_context,
        prefill_s=settled(rounded(prefill_s.reshape(len(layout.prefill_root), -1))),
        gqa=target.gqa,
    )


def iteration_errors(model: ProfileBatchTime, batches: Iterations) -> dict[str, float | int]:
    """Returns quantiles of |predicted / measured - 1| and the mean signed error."""
    layout = Layout(
        model.linear_tokens,
        model.decode_batch,
        model.decode_context,
        model.prefill_root,
        model.prefill_context,
    )
    linear, decode, prefill = layout.shares(batches, model.gqa)
    seconds: FloatArray = (
        linear @ model.linear_s
        + decode @ model.decode_s.ravel()
        + prefill @ model.prefill_s.ravel()
    )
    errors = seconds / batches.seconds - 1.0
    median, p90, p99 = np.quantile(np.abs(errors), (0.5, 0.9, 0.99))
    shares = {"median": median, "p90": p90, "p99": p99, "bias": errors.mean()}
    return {"rows": len(errors)} | {name: round(float(x), 5) for name, x in shares.items()}
