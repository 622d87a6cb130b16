"""How long one batch takes: exact tables, a formula with few coefficients, shipped profiles."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.checks import array, number

CONTEXT_BUCKET = 64  # tokens; granularity of the attention tables
LINEAR_BUCKET = 8  # tokens; granularity of the linear-layer tables
GQA_BATCHING_PENALTY = 1.1  # grouped-query attention, more than one request in the part


class BatchSums(NamedTuple):
    """What a batch's time depends on: sums over its members, never the members themselves.

    Both engines reduce a batch to these numbers, so a model sees the same input from each.
    """

    decodes: int
    """Requests that decode one token."""
    decode_context: int
    """Sum of the contexts (tokens in KV) of the decoding requests."""
    prefills: int
    """Requests with a prefill chunk."""
    prefill_tokens: int
    """Sum of the chunks, in tokens."""
    chunk_squares: int
    """Sum of chunk squared."""
    chunk_context: int
    """Sum of chunk times the context before it."""
    context_buckets: int
    """Sum of ceil(context / 64) over the prefill chunks."""

    @property
    def tokens(self) -> int:
        """All tokens in the batch."""
        return self.prefill_tokens + self.decodes

    @classmethod
    def of(
        cls, chunks: Sequence[int], contexts: Sequence[int], decode_contexts: Sequence[int]
    ) -> "BatchSums":
        """Sums up a batch given by its members.

        Args:
            chunks: tokens of each prefill chunk.
            contexts: tokens already in KV before each chunk, same length.
            decode_contexts: tokens in KV of each decoding request.
        """
        return cls(
            decodes=len(decode_contexts),
            decode_context=sum(decode_contexts),
            prefills=len(chunks),
            prefill_tokens=sum(chunks),
            chunk_squares=sum(k * k for k in chunks),
            chunk_context=sum(k * c for k, c in zip(chunks, contexts, strict=True)),
            context_buckets=sum(-(-c // CONTEXT_BUCKET) for c in contexts),
        )


class BatchTimeModel(ABC):
    """Seconds that a replica of speed 1 needs for one batch.

    Subclasses implement `seconds`. A model of one's own works with the reference engine; the
    compiled engine knows the models of this module.
    """

    def __call__(
        self, chunks: Sequence[int], contexts: Sequence[int], decode_contexts: Sequence[int]
    ) -> float:
        """Returns the batch time in seconds.

        Args:
            chunks: tokens of each prefill chunk.
            contexts: tokens already in KV before each chunk, same length.
            decode_contexts: tokens in KV of each decoding request.
        """
        return self.seconds(BatchSums.of(chunks, contexts, decode_contexts))

    @abstractmethod
    def seconds(self, batch: BatchSums) -> float:
        """Returns the batch time in seconds, > 0, of a batch with at least one token."""


@dataclass(frozen=True)
class FormulaBatchTime(BatchTimeModel):
    """A few coefficients for one's own hardware, fitted by `llmroute_gym.sim.fit`.

    t = c0 + c1 max(N - n0, 0) + c4 N + c2 (decode contexts) + c3 sum(chunk (context + chunk / 2)),
    with N all tokens in the batch.

    Attributes:
        c0: seconds per batch.
        c1: seconds per token above the knee.
        n0: the knee, in tokens.
        c2: seconds per token of decode context read.
        c3: seconds per pair of tokens in prefill attention.
        c4: seconds per token.

    Raises:
        InputError: a coefficient is not a finite number >= 0, or a batch of one token, without
            context, would take no time.
    """

    c0: float
    c1: float
    n0: float
    c2: float
    c3: float
    c4: float = 0.0

    def __post_init__(self) -> None:
        for name in ("c0", "c1", "n0", "c2", "c3", "c4"):
            number(f"FormulaBatchTime.{name}", getattr(self, name), at_least=0)
        one_token_s = self.c0 + self.c1 * max(1 - self.n0, 0.0) + self.c4
        if one_token_s <= 0:
            raise InputError(
                f"FormulaBatchTime gives a batch of one token 0 s with c0 = {self.c0:g}, c4 = "
                f"{self.c4:g} and n0 = {self.n0:g}, but a batch must take time; set c0 or c4 > 0"
            )

    def seconds(self, batch: BatchSums) -> float:
        """Returns the batch time in seconds."""
        tokens = batch.tokens
        pairs = batch.chunk_context + 0.5 * batch.chunk_squares
        return (
            self.c0
            + self.c1 * max(tokens - self.n0, 0.0)
            + self.c4 * tokens
            + self.c2 * batch.decode_context
            + self.c3 * pairs
        )


@dataclass(frozen=True, eq=False)
class TableBatchTime(BatchTimeModel):
    """Exact iteration-time tables, as profiled per model and hardware (Microsoft Vidur, MIT).

    All tables hold seconds. Outside its range a table continues its last segment linearly and
    warns once.

    Attributes:
        linear_s: (n_linear,) by ceil(N / 8), N all tokens in the batch.
        kv_save_s: (n_tokens,) by N - 1.
        decode_s: (max_batch, n_contexts) by decodes - 1 and ceil(mean context / 64).
        prefill_s: (n_contexts, n_chunks) by summed ceil(context / 64) and
            round(sqrt(sum of squared chunks)) - 1.
        gqa: grouped-query attention, where a part with more than one request costs 1.1 times.

    Raises:
        InputError: a table has the wrong number of axes or fewer than 2 entries along one, holds
            a negative or non-finite number, or a batch would take no time.
    """

    linear_s: FloatArray
    kv_save_s: FloatArray
    decode_s: FloatArray
    prefill_s: FloatArray
    gqa: bool = False

    def __post_init__(self) -> None:
        for name, ndim in (("linear_s", 1), ("kv_save_s", 1), ("decode_s", 2), ("prefill_s", 2)):
            table = array(f"TableBatchTime.{name}", getattr(self, name), ndim)
            if min(table.shape) < 2:
                raise InputError(
                    f"TableBatchTime.{name} needs at least 2 entries per axis to be continued, "
                    f"got shape {table.shape}"
                )
            object.__setattr__(self, name, table)
        if not (self.linear_s[1:] > 0).all():  # no batch has 0 tokens
            raise InputError(
                "TableBatchTime.linear_s must be > 0 from index 1 on, got "
                f"{self.linear_s[1:].min()}: a batch must take time"
            )

    @classmethod
    def from_npz(cls, path: str | Path) -> "TableBatchTime":
        """Reads a table in milliseconds per layer.

        Args:
            path: an .npz file with the arrays `layers`, `gqa`, `linear_ms_per_layer_by_ceil8N`,
                `kvsave_ms_per_layer_by_N`, `decode_ms_per_layer`, `prefill_ms_per_layer`.

        Raises:
            InputError: the file is missing, not an .npz file, or lacks an array.
        """
        try:
            with np.load(path) as tables:
                scale = float(tables["layers"]) * 1e-3

                def seconds(name: str) -> FloatArray:
                    return np.ascontiguousarray(tables[name], dtype=np.float64) * scale

                return cls(
                    linear_s=seconds("linear_ms_per_layer_by_ceil8N"),
                    kv_save_s=seconds("kvsave_ms_per_layer_by_N"),
                    decode_s=seconds("decode_ms_per_layer"),
                    prefill_s=seconds("prefill_ms_per_layer"),
                    gqa=bool(tables["gqa"]),
                )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read batch-time tables from {path}: {error}; expected an .npz file with "
                "layers, gqa and the four *_ms_per_layer arrays"
            ) from error

    @cached_property
    def _rows(self) -> tuple[list[float], list[float], list[list[float]], list[list[float]]]:
        """The tables as lists, which scalar code reads several times faster than arrays."""
        return (
            self.linear_s.tolist(),
            self.kv_save_s.tolist(),
            self.decode_s.tolist(),
            self.prefill_s.tolist(),
        )

    def seconds(self, batch: BatchSums) -> float:
        """Returns the batch time in seconds."""
        linear, kv_save, decode, prefill = self._rows
        tokens = batch.tokens
        total = self._along(linear, -(-tokens // LINEAR_BUCKET)) + self._along(kv_save, tokens - 1)
        if batch.decodes:
            mean_context = batch.decode_context // batch.decodes
            part = self._across(decode, batch.decodes - 1, -(-mean_context // CONTEXT_BUCKET))
            total += part * self._batching(batch.decodes)
        if batch.prefills:
            chunk = round(math.sqrt(batch.chunk_squares)) - 1
            part = self._across(prefill, batch.context_buckets, chunk)
            total += part * self._batching(batch.prefills)
        return total

    def _batching(self, requests: int) -> float:
        return GQA_BATCHING_PENALTY if self.gqa and requests > 1 else 1.0

    def _along(self, row: list[float], index: int) -> float:
        if index < len(row):
            return row[index]
        self._warn_once()
        return row[-1] + (row[-1] - row[-2]) * (index - len(row) + 1)

    def _across(self, table: list[list[float]], row: int, column: int) -> float:
        if row < len(table):
            return self._along(table[row], column)
        self._warn_once()
        last = self._along(table[-1], column)
        return last + (last - self._along(table[-2], column)) * (row - len(table) + 1)

    def _warn_once(self) -> None:
        if not self.__dict__.get("_warned"):
            self.__dict__["_warned"] = True
            warnings.warn(
                "a batch lies outside the batch-time table; its last segment is continued linearly",
                stacklevel=4,
            )
