"""Fits a profile that is piecewise linear throughout to modelled iterations."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from profile_tables import bends_of, cells_of, nonnegative, rounded, settled, spread_over

from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime

FloatArray = npt.NDArray[np.float64]

DECODE_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384, 512)
DECODE_CONTEXTS = (
    *(0, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144),
    *(8192, 12288, 16384, 24576, 32768),
)  # tokens
PREFILL_ROOTS = (
    *(0, 8, 16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 896, 1024, 1280, 1536),
    *(1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192),
)
MAX_TOKENS = 8192
LINEAR_ERROR = 0.001  # of the linear part; a knot more wherever lines are farther off
MOST_LINEAR_KNOTS = 400
PART_WEIGHT = 0.02  # of a row's parts beside its whole time
SMOOTHING = 0.01  # of a row's weight: decides only cells that hardly any row touches


@dataclass(frozen=True)
class Composed:
    """Composed iterations of one model on hardware: arrays of shape (n_rows,), times in seconds."""

    sums: list[BatchSums]
    seconds: FloatArray
    linear_s: FloatArray
    decode_s: FloatArray
    prefill_s: FloatArray

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Composed":
        """Returns the chosen rows."""
        chosen = [one for one, kept in zip(self.sums, rows, strict=True) if kept]
        arrays = {name: array[rows] for name, array in vars(self).items() if name != "sums"}
        return Composed(sums=chosen, **arrays)

    def sum_of(self, name: str) -> FloatArray:
        """Returns one of the rows' `BatchSums`, or their tokens."""
        return np.array([getattr(one, name) for one in self.sums], dtype=np.float64)


def read_composed(data: Path, name: str) -> Composed:
    """Reads the designed batches of one model on hardware."""
    rows = pd.read_csv(data / "modern" / f"{name}_design_batches.csv.gz")
    columns = (
        *("decode_reqs", "decode_kv_tokens", "num_prefill_reqs"),
        *("prefill_tokens", "sum_chunk_sq", "sum_chunk_ctx"),
    )
    sums = [BatchSums(*map(int, row), 0) for row in rows[list(columns)].to_numpy()]
    return Composed(
        sums=sums,
        seconds=rows["t"].to_numpy(dtype=np.float64),
        linear_s=(rows["t_linear"] + rows["t_kvsave"]).to_numpy(dtype=np.float64),
        decode_s=rows["t_decode_attn"].to_numpy(dtype=np.float64),
        prefill_s=rows["t_prefill_attn"].to_numpy(dtype=np.float64),
    )


def choose_linear_knots(tokens: FloatArray, seconds: FloatArray) -> FloatArray:
    """Returns numbers of tokens between which lines meet the mean of the measured times.

    Starts with the ends and adds the worst number of all, until none is off by `LINEAR_ERROR`.

    Args:
        tokens: (n_rows,).
        seconds: (n_rows,).
    """
    seen, row = np.unique(tokens, return_inverse=True)
    mean = np.bincount(row, seconds) / np.bincount(row)
    knots = [0, len(seen) - 1]
    while len(knots) < min(MOST_LINEAR_KNOTS, len(seen)):
        off = np.abs(np.interp(seen, seen[knots], mean[knots]) / mean - 1.0)
        worst = int(off.argmax())
        if off[worst] < LINEAR_ERROR:
            break
        knots = sorted([*knots, worst])
    assert seen[0] == 1.0, "a batch of one token must be among the rows"
    return seen[knots]


def _prefill_shares(roots: FloatArray, batches: Composed) -> FloatArray:
    """Returns (n_rows, 1 + 2 n_roots): per chunk, at each root, and there per pair of tokens."""
    at = spread_over(roots, np.sqrt(batches.sum_of("chunk_squares")))
    chunks = batches.sum_of("prefills")[:, None]
    return np.hstack([chunks, at * (chunks > 0), at * batches.sum_of("chunk_context")[:, None]])


def fit_pieces(batches: Composed, max_batch: int) -> PiecewiseBatchTime:
    """Fits all lines together, by non-negative least squares on relative error.

    Args:
        batches: what to fit.
        max_batch: most decodes among them.
    """
    tokens = batches.sum_of("tokens")
    decodes = batches.sum_of("decodes")
    linear_tokens = choose_linear_knots(tokens, batches.linear_s)
    decode_batch = np.array([b for b in DECODE_BATCH if b <= max_batch], dtype=np.float64)
    decode_context = np.array(DECODE_CONTEXTS, dtype=np.float64)
    roots = np.array(PREFILL_ROOTS, dtype=np.float64)
    mean_context = batches.sum_of("decode_context") / np.maximum(decodes, 1.0)
    decode = cells_of(decode_batch, decode_context, np.maximum(decodes, 1.0), mean_context)
    shares = (
        spread_over(linear_tokens, tokens),
        decode * (decodes > 0)[:, None],
        _prefill_shares(roots, batches),
    )
    parts = (batches.linear_s, batches.decode_s, batches.prefill_s)
    starts = np.cumsum([0, *(share.shape[1] for share in shares)])
    scale = batches.seconds
    design, goals = [np.hstack(shares) / scale[:, None]], [np.ones(len(batches))]
    for start, share, seconds in zip(starts, shares, parts, strict=False):
        design.append(np.zeros((len(batches), starts[-1])))
        design[-1][:, start : start + share.shape[1]] = share * (PART_WEIGHT / scale)[:, None]
        goals.append(seconds * PART_WEIGHT / scale)
    smooth = bends_of(decode_batch, decode_context) * (SMOOTHING / np.median(scale))
    design.append(np.zeros((len(smooth), starts[-1])))
    design[-1][:, starts[1] : starts[2]] = smooth
    goals.append(np.zeros(len(smooth)))
    matrix = np.vstack(design)
    size = np.maximum(np.sqrt((matrix**2).sum(axis=0)), 1e-300)  # pairs count by millions
    solution = nonnegative(matrix / size, np.concatenate(goals)) / size
    linear_s, decode_s, prefill = np.split(solution, starts[1:-1])
    lines = rounded(prefill[1:].reshape(2, len(roots)))
    lines[:, -1] = np.maximum(lines[:, -1], lines[:, -2])
    linear_s = rounded(linear_s)
    linear_s[-1] = max(linear_s[-1], linear_s[-2])
    return PiecewiseBatchTime(
        linear_tokens=linear_tokens,
        linear_s=linear_s,
        decode_batch=decode_batch,
        decode_context=decode_context,
        decode_s=settled(rounded(decode_s.reshape(len(decode_batch), -1))),
        prefill_root=roots,
        prefill_s=lines[0],
        prefill_pair_s=lines[1],
        chunk_s=float(rounded(prefill[:1])[0]),
    )


def composed_errors(model: PiecewiseBatchTime, batches: Composed) -> dict[str, float | int]:
    """Returns quantiles of |predicted / composed - 1| without the time factor, and its mean."""
    plain = replace(model, time_factor=1.0)
    seconds = np.array([plain.seconds(one) for one in batches.sums])
    errors = seconds / batches.seconds - 1.0
    median, p95, p99 = np.quantile(np.abs(errors), (0.5, 0.95, 0.99))
    shares = {"median": median, "p95": p95, "p99": p99, "bias": errors.mean()}
    return {"rows": len(errors)} | {name: round(float(x), 5) for name, x in shares.items()}
