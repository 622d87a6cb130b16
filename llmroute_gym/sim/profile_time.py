"""Shipped batch-time profiles: small tables fitted per model and hardware, read from YAML."""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from llmroute_gym.errors import InputError, checked_name, unknown_name
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.batch_time import (
    GQA_BATCHING_PENALTY,
    BatchSums,
    BatchTimeModel,
    FormulaBatchTime,
)
from llmroute_gym.sim.interpolation import bilinear, check_grid, check_knots, keep_arrays
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime

LIMITS = (
    "num_blocks",
    "block_size",
    "watermark_blocks",
    "max_batch",
    "max_batched_tokens",
    "chunk_size",
)
"""What a profile says of its replica besides the batch time; all integers."""

SCHEDULER_LIMITS = ("watermark_blocks", "chunk_size")
"""Those of them that a profile may leave out if it names a scheduler, which may not have them."""


@dataclass(frozen=True, eq=False)
class ProfileBatchTime(BatchTimeModel):
    """A step table in the batch's tokens plus two coarse grids for attention, all in seconds.

    t = linear(N) + decode(b, m) g(b) + prefill(r, c) g(p), with N all tokens in the batch, b its
    decodes, m their mean context, p its prefill chunks, r the square root of the sum of their
    squares and c the sum of their ceil(context / 64). g(x) is 1.1 if `gqa` and x > 1, else 1. A
    part with b = 0 or p = 0 is absent.

    The linear layers run in tiles, so their time is a step table: step i holds up to
    `linear_tokens[i]`; beyond the last, `linear_slope_s` is added per token. The grids are
    interpolated bilinearly and continue their outermost segments. At fixed b the time is
    piecewise linear in m with knots at `decode_context`, which the compiled engine relies on.

    Attributes:
        linear_tokens: (n_steps,) the last N of each step, ascending.
        linear_s: (n_steps,) seconds of each step.
        linear_slope_s: seconds per token beyond the last step.
        decode_batch: (n_b,) decoding requests at the grid's rows, ascending, first 1.
        decode_context: (n_m,) mean context in tokens at the grid's columns, ascending, first 0.
        decode_s: (n_b, n_m) seconds.
        prefill_root: (n_r,) sqrt(sum of squared chunks) at the grid's rows, ascending, first 0.
        prefill_context: (n_c,) sum of ceil(context / 64) at the columns, ascending, first 0.
        prefill_s: (n_r, n_c) seconds.
        gqa: grouped-query attention, where a part with more than one request costs 1.1 times.

    Raises:
        InputError: an array has the wrong shape, is not ascending, holds a negative or
            non-finite number, or would become negative where it is continued.
    """

    linear_tokens: FloatArray
    linear_s: FloatArray
    linear_slope_s: float
    decode_batch: FloatArray
    decode_context: FloatArray
    decode_s: FloatArray
    prefill_root: FloatArray
    prefill_context: FloatArray
    prefill_s: FloatArray
    gqa: bool = False

    def __post_init__(self) -> None:
        keep_arrays(self, _ARRAYS)
        if not (math.isfinite(self.linear_slope_s) and self.linear_slope_s >= 0):
            raise InputError(
                f"linear_slope_s must be a finite number >= 0, got {self.linear_slope_s}"
            )
        if not (self.linear_s > 0).all():
            raise InputError("linear_s must be > 0 everywhere: a batch must take time")
        check_knots("linear_tokens", self.linear_tokens, 1)
        if self.linear_s.shape != self.linear_tokens.shape:
            raise InputError(
                f"linear_s has shape {self.linear_s.shape}, expected {self.linear_tokens.shape} "
                "as linear_tokens"
            )
        check_grid("decode", "batch", self.decode_batch, self.decode_context, self.decode_s, 1.0)
        check_grid("prefill", "root", self.prefill_root, self.prefill_context, self.prefill_s, 0.0)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "ProfileBatchTime":
        """Reads the batch time of a profile file.

        Args:
            path: a YAML file as in `llmroute_gym/sim/profiles`.

        Raises:
            InputError: the file is missing or malformed, or holds a formula.
        """
        batch_time = load_profile(path).batch_time
        if not isinstance(batch_time, ProfileBatchTime):
            raise InputError(
                f"{path} holds a {type(batch_time).__name__}, expected tables; "
                "read it with load_profile"
            )
        return batch_time

    def arrays(self) -> dict[str, FloatArray]:
        """Returns the arrays by field name, contiguous and read-only, for compiled kernels."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @cached_property
    def _rows(self) -> tuple[list[float], ...]:
        """Knots and steps as lists, which scalar code reads several times faster than arrays."""
        return (
            self.linear_tokens.tolist(),
            self.linear_s.tolist(),
            self.decode_batch.tolist(),
            self.decode_context.tolist(),
            self.prefill_root.tolist(),
            self.prefill_context.tolist(),
        )

    @cached_property
    def _grids(self) -> tuple[list[list[float]], list[list[float]]]:
        return self.decode_s.tolist(), self.prefill_s.tolist()

    def seconds(self, batch: BatchSums) -> float:
        """Returns the batch time in seconds."""
        linear_tokens, linear_s, decode_batch, decode_context, root, context = self._rows
        decode_s, prefill_s = self._grids
        tokens = batch.tokens
        step = bisect_left(linear_tokens, tokens)
        if step < len(linear_s):
            total = linear_s[step]
        else:
            total = linear_s[-1] + self.linear_slope_s * (tokens - linear_tokens[-1])
        if batch.decodes:
            mean_context = batch.decode_context / batch.decodes
            part = bilinear(decode_batch, decode_context, decode_s, batch.decodes, mean_context)
            total += part * self._batching(batch.decodes)
        if batch.prefills:
            part = bilinear(
                root, context, prefill_s, math.sqrt(batch.chunk_squares), batch.context_buckets
            )
            total += part * self._batching(batch.prefills)
        return total

    def _batching(self, requests: int) -> float:
        return GQA_BATCHING_PENALTY if self.gqa and requests > 1 else 1.0


_ARRAYS = tuple(field.name for field in fields(ProfileBatchTime) if field.type is FloatArray)


@dataclass(frozen=True, eq=False)
class Profile:
    """A model on hardware: its batch time and the limits of a replica that serves it.

    Attributes:
        name: the profile's name, such as ``"a100-internlm-20b"``.
        batch_time: seconds per batch.
        limits: num_blocks, block_size (tokens), watermark_blocks, max_batch (requests),
            max_batched_tokens, chunk_size (tokens).
        model: the served model.
        hardware: what one replica runs on.
        description: one sentence, for lists.
        source: where the measurements come from.
        licence: the licence of the measurements.
        scheduler: the one that the limits are meant for; None leaves the replica its default.
        shared_reads: share of the repeated reads of KV blocks that takes no time, 0 to 1, as
            measured servers have it; a `Replica` says more.
    """

    name: str
    batch_time: BatchTimeModel
    limits: dict[str, int]
    model: str
    hardware: str
    description: str
    source: str = ""
    licence: str = ""
    scheduler: str | None = None
    shared_reads: float = 0.0

    def settings(self, scheduler: str | None = None) -> dict[str, Any]:
        """Returns the fields of a `Replica` that the profile sets, by name.

        Args:
            scheduler: one to be used in place of the profile's, which may share no reads.
        """
        settings = {"batch_time": self.batch_time, **self.limits}
        if self.scheduler is not None:
            settings["scheduler"] = self.scheduler
        if self.shared_reads and scheduler in (None, self.scheduler):
            settings["shared_reads"] = self.shared_reads
        return settings


def available_profiles() -> tuple[str, ...]:
    """Returns the names of the shipped profiles, sorted."""
    folder = resources.files("llmroute_gym.sim") / "profiles"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_profile(name: str | Path) -> Profile:
    """Reads a shipped profile by name, or any profile file by path.

    Args:
        name: one of `available_profiles`, or the path of a YAML file (a `Path`, or a string with
            a directory separator or the ending .yaml or .yml).

    Raises:
        InputError: there is no such profile or file, or the file is malformed.
    """
    if isinstance(name, Path) or _is_path(name):
        return _read_profile(str(name), _read_text(Path(name)))
    checked_name("profile", name, available_profiles())
    file = resources.files("llmroute_gym.sim") / "profiles" / f"{name}.yaml"
    return _read_profile(f"profile {name}", file.read_text(encoding="utf-8"))


def _is_path(name: object) -> bool:
    return isinstance(name, str) and (
        name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read profile {path}: {reason}; expected a YAML file as written by "
            "python -m llmroute_gym.sim.fit"
        ) from error


def _read_profile(where: str, text: str) -> Profile:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(text, Loader=loader)  # a safe loader: builds plain values only
    except yaml.YAMLError as error:
        first_line = " ".join(str(error).split())
        raise InputError(f"{where} is not valid YAML: {first_line}") from error
    entries = _mapping(where, "the file", content)
    scheduler = entries.get("scheduler")
    try:
        return Profile(
            name=str(_entry(where, entries, "name")),
            batch_time=_read_batch_time(_entry(where, entries, "batch_time")),
            limits=_read_limits(
                _entry(where, entries, "limits"), () if scheduler is None else SCHEDULER_LIMITS
            ),
            model=str(_entry(where, entries, "model")),
            hardware=str(_entry(where, entries, "hardware")),
            description=str(entries.get("description", "")),
            source=str(entries.get("source", "")),
            licence=str(entries.get("licence", "")),
            scheduler=None if scheduler is None else str(scheduler),
            shared_reads=_number("shared_reads", entries.get("shared_reads", 0.0)),
        )
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from error


def _read_limits(content: object, optional: Collection[str]) -> dict[str, int]:
    entries = _mapping("limits", "the entry", content)
    unknown = sorted(set(map(str, entries)) - set(LIMITS))
    if unknown:
        raise unknown_name("limit", unknown[0], LIMITS)
    limits: dict[str, int] = {}
    for name in LIMITS:
        if name in optional and name not in entries:
            continue
        value = _entry("limits", entries, name)
        least = 0 if name == "watermark_blocks" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"limits.{name} must be an integer >= {least}, got {value!r}")
        limits[name] = value
    return limits


def _read_batch_time(content: object) -> BatchTimeModel:
    entries = _mapping("batch_time", "the entry", content)
    kind = _entry("batch_time", entries, "kind")
    if kind == "formula":
        names = [field.name for field in fields(FormulaBatchTime)]
        return FormulaBatchTime(
            **{name: _number(f"batch_time.{name}", entries.get(name, 0.0)) for name in names}
        )
    if kind not in ("tables", "piecewise"):
        raise unknown_name("batch_time.kind", kind, ("formula", "piecewise", "tables"))
    linear, decode, prefill = (
        _mapping("batch_time", name, _entry("batch_time", entries, name))
        for name in ("linear", "decode", "prefill")
    )
    if kind == "piecewise":
        return PiecewiseBatchTime(
            linear_tokens=_numbers(linear, "linear", "tokens"),
            linear_s=_numbers(linear, "linear", "seconds"),
            decode_batch=_numbers(decode, "decode", "batch"),
            decode_context=_numbers(decode, "decode", "mean_context"),
            decode_s=_numbers(decode, "decode", "seconds"),
            prefill_root=_numbers(prefill, "prefill", "root_chunk_squares"),
            prefill_s=_numbers(prefill, "prefill", "seconds"),
            prefill_pair_s=_numbers(prefill, "prefill", "seconds_per_pair"),
            chunk_s=_number("prefill.chunk_s", _entry("prefill", prefill, "chunk_s")),
            time_factor=_number("time_factor", entries.get("time_factor", 1.0)),
        )
    gqa = entries.get("gqa", False)
    if not isinstance(gqa, bool):
        raise InputError(f"batch_time.gqa must be true or false, got {gqa!r}")
    return ProfileBatchTime(
        linear_tokens=_numbers(linear, "linear", "tokens"),
        linear_s=_numbers(linear, "linear", "seconds"),
        linear_slope_s=_number("linear.slope_s", _entry("linear", linear, "slope_s")),
        decode_batch=_numbers(decode, "decode", "batch"),
        decode_context=_numbers(decode, "decode", "mean_context"),
        decode_s=_numbers(decode, "decode", "seconds"),
        prefill_root=_numbers(prefill, "prefill", "root_chunk_squares"),
        prefill_context=_numbers(prefill, "prefill", "context_buckets"),
        prefill_s=_numbers(prefill, "prefill", "seconds"),
        gqa=gqa,
    )


def _mapping(where: str, what: str, content: object) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: {what} must be a mapping, got {type(content).__name__}")
    return content


def _entry(where: str, entries: Mapping[Any, Any], name: str) -> object:
    if name not in entries:
        present = ", ".join(map(str, entries)) or "none"
        raise InputError(f"{where} lacks the entry {name!r}; present: {present}")
    return entries[name]


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} must be a number, got {value!r}")
    return float(value)


def _numbers(entries: Mapping[Any, Any], where: str, name: str) -> FloatArray:
    value = _entry(where, entries, name)
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}.{name} must be a list of numbers, or of equally long lists of them: {error}"
        ) from error
