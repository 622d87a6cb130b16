"""Fits the batch-time formula to measured iterations of one's own model and hardware.

python -m llmroute_gym.sim.fit measurements.csv --out profile.yaml
"""

import argparse
import csv
import gzip
import io
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.batch_time import FormulaBatchTime
from llmroute_gym.sim.profile_time import LIMITS, Profile
from llmroute_gym.sim.profile_writer import write_profile

LEAST_ROWS = 12  # twice the formula's coefficients
HELD_OUT_EVERY = 5  # rows
KNEE_STEP = 8  # tokens; linear layers run in tiles of as many
KNEE_LIMIT = 1024  # tokens; accelerators are busy well before


class Measurements(NamedTuple):
    """Measured iterations, one row each: float64 arrays of shape (n_rows,).

    The field names are the columns of the CSV file.
    """

    prefill_tokens: FloatArray
    """Tokens of the prefill chunks."""
    sum_chunk_sq: FloatArray
    """Sum of chunk squared."""
    sum_chunk_ctx: FloatArray
    """Sum of chunk times the context before it."""
    decode_reqs: FloatArray
    """Requests that decoded one token."""
    decode_kv_tokens: FloatArray
    """Sum of the contexts of the decoding requests."""
    t: FloatArray
    """Seconds that the iteration took."""

    def take(self, rows: npt.NDArray[np.bool_]) -> "Measurements":
        """Returns the chosen rows."""
        return Measurements(*(column[rows] for column in self))

    @property
    def tokens(self) -> FloatArray:
        """All tokens of each iteration."""
        return self.prefill_tokens + self.decode_reqs


@dataclass(frozen=True)
class FitReport:
    """Relative errors of a fitted formula, |predicted / measured - 1|.

    Attributes:
        rows: measured iterations that the errors are taken over.
        held_out: whether the formula was fitted without these rows; files of fewer than
            `5 * LEAST_ROWS` rows are too short to hold any out.
        median, p90, p99, worst: quantiles over the rows.
        bias: mean signed error; above zero means predicted too long.
    """

    rows: int
    held_out: bool
    median: float
    p90: float
    p99: float
    worst: float
    bias: float

    def __str__(self) -> str:
        """Returns the report in one line."""
        which = "held-out" if self.held_out else "fitted"
        return (
            f"error over {self.rows} {which} rows: median {self.median:.2%}, P90 {self.p90:.2%}, "
            f"P99 {self.p99:.2%}, worst {self.worst:.2%}, bias {self.bias:+.2%}"
        )


def read_measurements(csv_path: str | Path) -> Measurements:
    """Reads measured iterations; further columns are ignored.

    Args:
        csv_path: a CSV file, also gzipped (.gz), whose header has the fields of `Measurements`.

    Raises:
        InputError: the file cannot be read, lacks a column, has too few rows, or a row holds
            what cannot be an iteration; the message names the line and the column.
    """
    rows = list(_rows(Path(csv_path)))
    if len(rows) < LEAST_ROWS:
        raise InputError(
            f"{csv_path} has {len(rows)} rows, expected at least {LEAST_ROWS} measured iterations"
        )
    return Measurements(*np.array(rows, dtype=np.float64).T)


def fit_formula(csv_path: str | Path) -> FormulaBatchTime:
    """Fits the formula to a CSV file of measured iterations.

    Non-negative least squares on the relative error, for knees n0 in steps of 8 tokens and then
    around the best in steps of 1.

    Args:
        csv_path: see `read_measurements`.

    Raises:
        InputError: as `read_measurements`, or no formula fits that takes time for every batch.
    """
    return fit_measurements(read_measurements(csv_path))


def fit_measurements(measured: Measurements) -> FormulaBatchTime:
    """Fits the formula to measured iterations; see `fit_formula`."""
    last = min(float(measured.tokens.max()), KNEE_LIMIT)
    coarse = np.arange(KNEE_STEP, last, KNEE_STEP) if last > KNEE_STEP else np.zeros(1)
    _, _, near = min(_solve(measured, float(knee)) for knee in coarse)
    fine = np.arange(max(near - KNEE_STEP + 1, 0.0), near + KNEE_STEP)
    _, (c0, c1, c4, c2, c3), n0 = min(_solve(measured, float(knee)) for knee in fine)
    return FormulaBatchTime(c0=c0, c1=c1, n0=n0 if c1 else 0.0, c2=c2, c3=c3, c4=c4)


def _solve(measured: Measurements, knee: float) -> tuple[float, tuple[float, ...], float]:
    """Returns the residual, the coefficients (c0, c1, c4, c2, c3) and the knee."""
    from scipy.optimize import nnls

    terms = _terms(measured, knee) / measured.t[:, None]
    # Columns differ by ten orders of magnitude: scaled, the solver's tolerance suits them all.
    norms = np.sqrt((terms**2).sum(axis=0))
    norms[norms == 0] = 1.0
    scaled, residual = nnls(terms / norms, np.ones(len(terms)))
    return float(residual), tuple(map(float, scaled / norms)), knee


def predict(formula: FormulaBatchTime, measured: Measurements) -> FloatArray:
    """Returns (n_rows,) seconds that the formula gives for measured iterations."""
    weights = np.array([formula.c0, formula.c1, formula.c4, formula.c2, formula.c3])
    return np.asarray(_terms(measured, formula.n0) @ weights)


def report(measured: Measurements) -> FitReport:
    """Returns the errors that a fit to four fifths of the rows makes on the other fifth."""
    n_rows = len(measured.t)
    held_out = n_rows >= HELD_OUT_EVERY * LEAST_ROWS
    chosen = np.arange(n_rows) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if held_out:
        formula, rows = fit_measurements(measured.take(~chosen)), measured.take(chosen)
    else:
        formula, rows = fit_measurements(measured), measured
    errors = predict(formula, rows) / rows.t - 1.0
    median, p90, p99, worst = map(float, np.quantile(np.abs(errors), (0.5, 0.9, 0.99, 1.0)))
    return FitReport(len(errors), held_out, median, p90, p99, worst, float(errors.mean()))


def _terms(measured: Measurements, knee: float) -> FloatArray:
    """Returns (n_rows, 5) what c0, c1, c4, c2 and c3 multiply."""
    tokens = measured.tokens
    return np.column_stack(
        [
            np.ones_like(tokens),
            np.maximum(tokens - knee, 0.0),
            tokens,
            measured.decode_kv_tokens,
            measured.sum_chunk_ctx + 0.5 * measured.sum_chunk_sq,
        ]
    )


def _rows(path: Path) -> Iterator[list[float]]:
    reader = csv.reader(io.StringIO(_text(path)), strict=True)
    wanted = Measurements._fields
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in wanted if name not in header]
        if missing:
            raise InputError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
                f"expected a header with {', '.join(wanted)}"
            )
        places = [header.index(name) for name in wanted]
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise InputError(
                    f"{where}: {len(cells)} values, expected {len(header)} as in the header"
                )
            row = [
                _value(where, name, cells[place])
                for name, place in zip(wanted, places, strict=True)
            ]
            _check_row(where, *row)
            yield row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from error


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {path}: {reason}; expected a CSV file of measured iterations"
        ) from error


def _value(where: str, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{where}: {name} must be a finite number >= 0, got {cell!r}")
    return value


def _check_row(
    where: str,
    prefill_tokens: float,
    sum_chunk_sq: float,
    sum_chunk_ctx: float,
    decode_reqs: float,
    decode_kv_tokens: float,
    t: float,
) -> None:
    if t == 0:
        raise InputError(f"{where}: t must be > 0 seconds, got 0")
    if prefill_tokens + decode_reqs == 0:
        raise InputError(
            f"{where}: prefill_tokens + decode_reqs must be > 0, got 0: a batch has a token"
        )
    if decode_reqs == 0 < decode_kv_tokens:
        raise InputError(
            f"{where}: decode_kv_tokens must be 0 without decode_reqs, got {decode_kv_tokens:g}"
        )
    if prefill_tokens == 0 < sum_chunk_ctx:
        raise InputError(
            f"{where}: sum_chunk_ctx must be 0 without prefill_tokens, got {sum_chunk_ctx:g}"
        )
    if sum_chunk_sq > prefill_tokens**2 or prefill_tokens > 0 == sum_chunk_sq:
        raise InputError(
            f"{where}: sum_chunk_sq must lie above 0 and up to prefill_tokens squared "
            f"({prefill_tokens**2:g}), got {sum_chunk_sq:g}"
        )


def _unmeasured(measured: Measurements) -> list[str]:
    """Says which parts of the formula the measurements cannot tell."""
    notes = []
    if not measured.prefill_tokens.any():
        notes.append("no row has a prefill: its attention is taken to cost nothing (c3 = 0)")
    if not measured.decode_reqs.any():
        notes.append("no row has a decode: its attention is taken to cost nothing (c2 = 0)")
    return notes


def _parser() -> argparse.ArgumentParser:
    from llmroute_gym.sim.replica import Replica

    parser = argparse.ArgumentParser(
        prog="python -m llmroute_gym.sim.fit",
        description="Fits the batch-time formula to measured iterations.",
        epilog="The profile is used with Cluster.from_profile('profile.yaml').",
    )
    parser.add_argument(
        "measurements", help=f"CSV file with the columns {', '.join(Measurements._fields)}"
    )
    parser.add_argument("--out", metavar="PROFILE.yaml", help="write a profile")
    parser.add_argument("--name", help="the profile's name (default: that of the file)")
    parser.add_argument("--model", default="unknown", help="the served model")
    parser.add_argument("--hardware", default="unknown", help="what one replica runs on")
    usual = Replica(batch_time=FormulaBatchTime(c0=1.0, c1=0, n0=0, c2=0, c3=0))
    for limit in LIMITS:
        parser.add_argument(
            f"--{limit.replace('_', '-')}",
            type=int,
            default=getattr(usual, limit),
            help="default: %(default)s",
        )
    return parser


def _write(options: argparse.Namespace, formula: FormulaBatchTime, errors: FitReport) -> None:
    from llmroute_gym.sim.replica import Replica

    path = Path(options.out)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out must end in .yaml, got {options.out!r}")
    limits = {name: getattr(options, name) for name in LIMITS}
    Replica(batch_time=formula, **limits)  # checks the limits
    profile = Profile(
        name=options.name or path.stem,
        batch_time=formula,
        limits=limits,
        model=options.model,
        hardware=options.hardware,
        description=f"formula fitted to {Path(options.measurements).name}",
        source="own measurements",
    )
    try:
        write_profile(profile, path, errors={"per_iteration": str(errors)})
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; name a file in a folder that exists"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Fits, reports and writes; returns the exit code, 2 on wrong input."""
    options = _parser().parse_args(arguments)
    try:
        measured = read_measurements(options.measurements)
        formula, errors = fit_measurements(measured), report(measured)
        for field in fields(formula):
            print(f"{field.name} = {getattr(formula, field.name):.6g}")
        print(errors)
        for note in _unmeasured(measured):
            print(f"note: {note}", file=sys.stderr)
        if options.out:
            _write(options, formula, errors)
            print(
                f"wrote {options.out} with {options.num_blocks} KV blocks of "
                f"{options.block_size} tokens; set --num-blocks to what your server reports"
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
