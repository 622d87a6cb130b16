"""Token-length models: how long the prompts and outputs of requests are."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.checks import count, number, positive
from llmroute_gym.sim.content import MAX_TOKENS
from llmroute_gym.sim.registry import build
from llmroute_gym.sim.traces import recorded_workload
from llmroute_gym.sim.workload import Workload

AZURE_CONV_TABLE = Path(__file__).parent / "data" / "azure_conv.npz"
Z_99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, eq=False)
class LengthModel(ABC):
    """Joint distribution of prompt and output tokens; subclasses draw in ``_draw``.

    Attributes:
        max_total_tokens: upper limit of prompt plus output, >= 2, such as a model's context
            length, or None. The prompt is cut first; an output that alone exceeds the limit is
            cut to leave one prompt token.
    """

    max_total_tokens: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            InputError: one is out of range; the message names it.
        """
        if self.max_total_tokens is not None:
            count("max_total_tokens", self.max_total_tokens, at_least=2)

    def sample(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Draws lengths.

        Args:
            n_requests: number of requests, >= 1.
            rng: the only source of randomness.

        Returns:
            Prompt tokens and output tokens, each of shape (n_requests,), int64, >= 1.

        Raises:
            InputError: ``n_requests`` is not an integer >= 1.
        """
        prompt_tokens, output_tokens = self._draw(count("n_requests", n_requests), rng)
        if self.max_total_tokens is not None:
            output_tokens = np.minimum(output_tokens, self.max_total_tokens - 1)
            prompt_tokens = np.minimum(prompt_tokens, self.max_total_tokens - output_tokens)
        return prompt_tokens, output_tokens

    @abstractmethod
    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Draws lengths before ``max_total_tokens`` applies."""


@dataclass(frozen=True, eq=False)
class FixedLengths(LengthModel):
    """Every request has the same lengths.

    Attributes:
        prompt_tokens: >= 1.
        output_tokens: >= 1.
    """

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        count("prompt_tokens", self.prompt_tokens)
        count("output_tokens", self.output_tokens)

    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        return (
            np.full(n_requests, self.prompt_tokens, dtype=np.int64),
            np.full(n_requests, self.output_tokens, dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class UniformLengths(LengthModel):
    """Prompt and output are independent, each uniform over the integers of a closed range.

    Attributes:
        prompt_min: shortest prompt, >= 1 token.
        prompt_max: longest prompt, >= ``prompt_min``.
        output_min: shortest output, >= 1 token.
        output_max: longest output, >= ``output_min``.
    """

    prompt_min: int
    prompt_max: int
    output_min: int
    output_max: int

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        count("prompt_max", self.prompt_max, at_least=count("prompt_min", self.prompt_min))
        count("output_max", self.output_max, at_least=count("output_min", self.output_min))

    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        return (
            rng.integers(self.prompt_min, self.prompt_max, n_requests, endpoint=True),
            rng.integers(self.output_min, self.output_max, n_requests, endpoint=True),
        )


@dataclass(frozen=True, eq=False)
class LognormalLengths(LengthModel):
    """Prompt and output are lognormal, rounded to whole tokens >= 1, and may correlate.

    The width of each is given by its 99th percentile or by sigma, one of the two. Mean and
    percentile hold before rounding. With sigma s and mean m, P99/m = exp(2.326 s - s^2/2), of
    the two solutions the smaller s, so P99 lies between 1 and 14.9 times the mean.

    Attributes:
        prompt_mean: mean prompt tokens, > 0.
        output_mean: mean output tokens, > 0.
        prompt_p99: 99th percentile of the prompt tokens, or None.
        prompt_sigma: standard deviation of ln(prompt tokens), >= 0, or None.
        output_p99: 99th percentile of the output tokens, or None.
        output_sigma: standard deviation of ln(output tokens), >= 0, or None.
        correlation: correlation of the two logarithms, from -1 to 1.
    """

    prompt_mean: float
    output_mean: float
    prompt_p99: float | None = None
    prompt_sigma: float | None = None
    output_p99: float | None = None
    output_sigma: float | None = None
    correlation: float = 0.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        self._log_parameters("prompt")
        self._log_parameters("output")
        if abs(number("correlation", self.correlation)) > 1:
            raise InputError(f"correlation must be from -1 to 1, got {self.correlation!r}")

    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        first, second = rng.standard_normal((2, n_requests))
        second = self.correlation * first + math.sqrt(1 - self.correlation**2) * second
        return self._tokens("prompt", first), self._tokens("output", second)

    def _tokens(self, part: str, normal: FloatArray) -> IntArray:
        mu, sigma = self._log_parameters(part)
        # Clipped before exp, where a wide sigma would overflow.
        logs = np.minimum(mu + sigma * normal, math.log(MAX_TOKENS))
        return np.clip(np.rint(np.exp(logs)), 1, MAX_TOKENS).astype(np.int64)

    def _log_parameters(self, part: str) -> tuple[float, float]:
        """Returns mean and standard deviation of the logarithm of one of the two lengths."""
        mean = positive(f"{part}_mean", getattr(self, f"{part}_mean"))
        p99, sigma = getattr(self, f"{part}_p99"), getattr(self, f"{part}_sigma")
        if (p99 is None) == (sigma is None):
            raise InputError(
                f"give exactly one of {part}_p99 and {part}_sigma, got {part}_p99={p99!r} and "
                f"{part}_sigma={sigma!r}"
            )
        if p99 is not None:
            ratio = positive(f"{part}_p99", p99) / mean
            if not 1 <= ratio <= math.exp(Z_99**2 / 2):
                raise InputError(
                    f"{part}_p99={p99:g} with {part}_mean={mean:g} is not a lognormal; expected "
                    f"{part}_p99 from {mean:g} to {mean * math.exp(Z_99**2 / 2):g}"
                )
            sigma = Z_99 - math.sqrt(max(Z_99**2 - 2 * math.log(ratio), 0.0))
        sigma = number(f"{part}_sigma", sigma, at_least=0)
        return math.log(mean) - sigma**2 / 2, sigma


@dataclass(frozen=True, eq=False)
class EmpiricalLengths(LengthModel):
    """Requests of a recorded workload, drawn with replacement; prompt and output stay together.

    Attributes:
        workload: the recorded requests.
    """

    workload: Workload

    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        chosen = rng.integers(len(self.workload), size=n_requests)
        return self.workload.prompt_tokens[chosen], self.workload.output_tokens[chosen]


@dataclass(frozen=True, eq=False)
class TableLengths(LengthModel):
    """Joint table of counts over bins of prompt × output tokens; uniform within a cell.

    A table keeps the correlation and the tails of recorded requests without the requests.

    Attributes:
        prompt_edges: shape (n_prompt_bins + 1,), rising; bin i is the integers from edge i to
            edge i + 1 exclusive.
        output_edges: shape (n_output_bins + 1,), the same for outputs.
        counts: shape (n_prompt_bins, n_output_bins), relative frequency of each cell, >= 0.
    """

    prompt_edges: IntArray
    output_edges: IntArray
    counts: IntArray

    def __post_init__(self) -> None:
        """Checks the table."""
        super().__post_init__()
        shape = (len(self.prompt_edges) - 1, len(self.output_edges) - 1)
        if self.counts.shape != shape:
            raise InputError(f"counts must have shape {shape}, got {self.counts.shape}")
        if (self.counts < 0).any() or not self.counts.any():
            raise InputError("counts must be >= 0 with at least one cell above 0")
        for name in ("prompt_edges", "output_edges"):
            edges = getattr(self, name)
            if edges[0] < 1 or (np.diff(edges) < 1).any():
                raise InputError(f"{name} must rise from 1 or more, got {edges.tolist()}")

    @classmethod
    def fit(
        cls,
        prompt_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        bins: int = 112,
        *,
        max_total_tokens: int | None = None,
    ) -> "TableLengths":
        """Makes a table of recorded lengths.

        Args:
            prompt_tokens: shape (n_requests,), integers >= 1.
            output_tokens: shape (n_requests,), integers >= 1.
            bins: bins of equal frequency along each axis; the top 1% and values that fill a bin
                by themselves get further ones.
            max_total_tokens: as in LengthModel.

        Raises:
            InputError: the lengths are empty, unequal in number or not integers >= 1.
        """
        size = np.asarray(prompt_tokens).shape[:1]
        pairs = Workload(np.zeros(size), np.asarray(prompt_tokens), np.asarray(output_tokens))
        prompt_edges = _bin_edges(pairs.prompt_tokens, count("bins", bins))
        output_edges = _bin_edges(pairs.output_tokens, bins)
        counts = np.zeros((prompt_edges.size - 1, output_edges.size - 1), dtype=np.int64)
        rows = np.searchsorted(prompt_edges, pairs.prompt_tokens, side="right") - 1
        columns = np.searchsorted(output_edges, pairs.output_tokens, side="right") - 1
        np.add.at(counts, (rows, columns), 1)
        return cls(prompt_edges, output_edges, counts, max_total_tokens=max_total_tokens)

    @classmethod
    def from_npz(
        cls, path: str | os.PathLike[str], *, max_total_tokens: int | None = None
    ) -> "TableLengths":
        """Reads a table that ``to_npz`` wrote.

        Raises:
            InputError: the file is missing or is no such table.
        """
        try:
            with np.load(path) as arrays:
                parts = [
                    arrays[name].astype(np.int64)
                    for name in ("prompt_edges", "output_edges", "counts")
                ]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"cannot read a table of lengths from {path}: {error}") from error
        return cls(*parts, max_total_tokens=max_total_tokens)

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """Writes the table; the same table gives the same bytes."""
        prompt_edges, output_edges, counts = (
            part.astype(np.uint16 if part.max() < 2**16 else np.int64) for part in self._parts()
        )
        # Not compressed: the bytes would then depend on the version of zlib.
        np.savez(path, prompt_edges=prompt_edges, output_edges=output_edges, counts=counts)

    def _parts(self) -> tuple[IntArray, IntArray, IntArray]:
        return self.prompt_edges, self.output_edges, self.counts

    @cached_property
    def _bounds(self) -> IntArray:
        """Of every counted request, in the order of the cells, its cell: shape (n, 4).

        First prompt, end of prompts, first output, end of outputs.
        """
        cells = np.repeat(np.arange(self.counts.size), self.counts.ravel())
        rows, columns = np.divmod(cells, self.counts.shape[1])
        prompts, outputs = self.prompt_edges, self.output_edges
        parts = prompts[rows], prompts[rows + 1], outputs[columns], outputs[columns + 1]
        return np.stack(parts, axis=1)

    def _draw(self, n_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        # A cell's bounds lie together, so that each draw reads one line of the cache.
        cells = self._bounds.take(rng.integers(len(self._bounds), size=n_requests), axis=0)
        first_prompt, end_prompt, first_output, end_output = cells.T
        return rng.integers(first_prompt, end_prompt), rng.integers(first_output, end_output)


def _bin_edges(tokens: IntArray, bins: int) -> IntArray:
    """Returns edges of bins of about equal frequency, finer in the top 1%."""
    ordered = np.sort(tokens)
    size = ordered.size
    ranks = np.arange(bins) * size // bins
    # Halving the number of requests above each edge resolves the tail to its last request.
    from_top = [max(size // 100 >> k, 1) for k in range(int(size // 100).bit_length())]
    lower = ordered[np.concatenate([ranks, size - np.array(from_top, dtype=np.int64)])]
    values, frequency = np.unique(ordered, return_counts=True)
    frequent = values[frequency * bins >= size]
    return np.unique(np.concatenate([lower, frequent, frequent + 1, ordered[-1:] + 1]))


def azure_conv(*, max_total_tokens: int | None = None) -> TableLengths:
    """Lengths of the Azure LLM inference trace 2023, conversation service.

    Means are about 1155 prompt and 211 output tokens, P99 4142 and 601. The table is derived
    from the trace (Microsoft, CC-BY 4.0); see ``sim/data/ATTRIBUTION.md``. Source: Patel et al.,
    "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024.

    Args:
        max_total_tokens: as in LengthModel.
    """
    table = _azure_conv_table()
    return TableLengths(*table._parts(), max_total_tokens=max_total_tokens)


@cache
def _azure_conv_table() -> TableLengths:
    return TableLengths.from_npz(AZURE_CONV_TABLE)


def empirical(
    *,
    path: str | os.PathLike[str] | None = None,
    workload: Workload | None = None,
    max_total_tokens: int | None = None,
) -> EmpiricalLengths:
    """Lengths of a recorded workload, given itself or as a trace file.

    Args:
        path: a file that ``load_trace`` reads, with arrival times or without; excludes
            ``workload``.
        workload: the recorded requests; excludes ``path``.
        max_total_tokens: as in LengthModel.

    Raises:
        InputError: both or none are given, or the file is no trace.
    """
    recorded = recorded_workload(path, workload, need_times=False)
    return EmpiricalLengths(recorded, max_total_tokens=max_total_tokens)


LENGTH_MODELS: dict[str, Callable[..., LengthModel]] = {
    "azure_conv": azure_conv,
    "empirical": empirical,
    "fixed": FixedLengths,
    "lognormal": LognormalLengths,
    "uniform": UniformLengths,
}


def length_model(name: str, **options: Any) -> LengthModel:
    """Builds a length model by name.

    Args:
        name: ``azure_conv``, ``empirical``, ``fixed``, ``lognormal`` or ``uniform``.
        **options: the model's own parameters; all take ``max_total_tokens``.

    Raises:
        InputError: the name or an option is unknown, missing or out of range.
    """
    return build("length model", LENGTH_MODELS, name, options)
