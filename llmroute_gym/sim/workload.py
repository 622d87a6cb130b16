"""Requests with their arrival times."""

import gzip
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.sim.content import MAX_TOKENS, Content

Number = TypeVar("Number", bound=np.generic)

CSV_COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival: when each arrives and how many tokens it has.

    Sequences are converted to arrays, sorted by arrival (equal times keep their order) and made
    read-only.

    Attributes:
        arrived_at_s: shape (n_requests,), float64, seconds, finite and >= 0.
        prompt_tokens: shape (n_requests,), int64, >= 1.
        output_tokens: shape (n_requests,), int64, >= 1; the prefill's token is the first of them.
        content: what the prompts are made of, hence which of them begin alike; outputs are named
            by their request's index in the order given here. None where nothing is shared.
        session: shape (n_requests,), int64, the conversation a request belongs to, or None.
        slo_class: shape (n_requests,), int64, the service class of a request, or None.
        after: shape (n_requests,), int64, the earlier request that must have ended before this one
            arrives, -1 for none. Such a request's own time only orders it; it arrives `gap_s` after
            the end. None where no request waits for another.
        gap_s: shape (n_requests,), float64, seconds > 0 from that end to the arrival; it counts
            only where `after` is not -1. Given together with `after`.

    Raises:
        InputError: an array is empty, of another length or type, or holds a value out of range;
            the message names the array, the index and the value.
    """

    arrived_at_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    content: Content | None = None
    session: IntArray | None = None
    slo_class: IntArray | None = None
    after: IntArray | None = None
    gap_s: FloatArray | None = None

    def __post_init__(self) -> None:
        """Converts, checks, sorts and freezes the arrays."""
        arrived_at_s, in_order = _times(self.arrived_at_s)
        columns: dict[str, IntArray] = {}
        for name in ("prompt_tokens", "output_tokens"):
            columns[name] = _integers(name, getattr(self, name), arrived_at_s.size, low=1)
        for name in ("session", "slo_class"):
            if getattr(self, name) is not None:
                columns[name] = _integers(name, getattr(self, name), arrived_at_s.size)
        order = None
        if not in_order:
            order = np.argsort(arrived_at_s, kind="stable")
            arrived_at_s = arrived_at_s[order]
        if self.content is not None:
            self._check_content(columns, order)
        if order is not None:
            columns = {name: column[order] for name, column in columns.items()}
        if self.after is not None or self.gap_s is not None:
            order = np.arange(arrived_at_s.size) if order is None else order
            after, gap_s = _dependencies(self.after, self.gap_s, order)
            object.__setattr__(self, "after", _read_only(after))
            object.__setattr__(self, "gap_s", _read_only(gap_s))
        object.__setattr__(self, "arrived_at_s", _read_only(arrived_at_s))
        for name, column in columns.items():
            object.__setattr__(self, name, _read_only(column))

    def _check_content(self, columns: dict[str, IntArray], order: IntArray | None) -> None:
        """Checks the content against the lengths, and brings it in order of arrival."""
        if not isinstance(self.content, Content):
            raise InputError(
                f"content must be a Content, got {shown(self.content)}; build it with "
                "Content.of(rows)"
            )
        place = None if order is None else np.argsort(order)
        self.content.check(columns["prompt_tokens"], columns["output_tokens"], place)
        if order is not None:
            object.__setattr__(self, "content", self.content.ordered(order))

    def __len__(self) -> int:
        """Returns the number of requests."""
        return self.arrived_at_s.size

    def __repr__(self) -> str:
        """Returns a line with the number of requests, the rate and the mean lengths."""
        return (
            f"Workload({len(self)} requests, qps={self.qps:.4g}, "
            f"mean prompt {self.prompt_tokens.mean():.1f} tokens, "
            f"mean output {self.output_tokens.mean():.1f} tokens)"
        )

    @property
    def qps(self) -> float:
        """Mean offered rate in requests/s: (n - 1) gaps over the time they span.

        It is nan for a single request and inf where all arrive at the same instant.
        """
        span_s = float(self.arrived_at_s[-1] - self.arrived_at_s[0])
        if len(self) == 1:
            return math.nan
        return (len(self) - 1) / span_s if span_s > 0 else math.inf

    @cached_property
    def longest_request(self) -> int:
        """Most prompt and output tokens of a request, together."""
        return int((self.prompt_tokens + self.output_tokens).max())

    @cached_property
    def longest_prompt(self) -> int:
        """Most prompt tokens of a request."""
        return int(self.prompt_tokens.max())

    def slice(self, start: int, stop: int | None = None) -> "Workload":
        """Returns requests ``start`` to ``stop - 1`` in order of arrival, at unchanged times.

        Args:
            start: first request kept, from 0.
            stop: one past the last request kept; None keeps all to the end.

        Raises:
            InputError: the range is empty or beyond the workload.
        """
        stop = len(self) if stop is None else count("stop", stop)
        if count("start", start, at_least=0) >= stop or stop > len(self):
            raise InputError(
                f"requests {start} to {stop} are not a range within this workload of "
                f"{len(self)} requests; expected 0 <= start < stop <= {len(self)}"
            )
        part = np.s_[start:stop]
        after = None
        if self.after is not None:
            # Whose predecessor is cut off arrives at its own time.
            after = _read_only(np.where(self.after[part] >= start, self.after[part] - start, -1))
        names = ("arrived_at_s", "prompt_tokens", "output_tokens", "session", "slo_class", "gap_s")
        columns = {name: getattr(self, name) for name in names}
        return _unchecked(
            {name: None if one is None else one[part] for name, one in columns.items()}
            | {"content": self.content and self.content.slice(start, stop), "after": after}
        )

    def with_arrivals(self, arrived_at_s: npt.ArrayLike) -> "Workload":
        """Returns the same requests at other times.

        Args:
            arrived_at_s: shape (n_requests,), seconds, in the order of this workload's requests.

        Raises:
            InputError: the times are of another length, negative or not finite.
        """
        times, in_order = _times(arrived_at_s)
        if in_order and times.size == len(self):
            return _unchecked(vars(self) | {"arrived_at_s": _read_only(times)})
        return replace(self, arrived_at_s=times)

    def rebased(self) -> "Workload":
        """Returns the same requests with the first arrival at time 0."""
        return self.with_arrivals(self.arrived_at_s - self.arrived_at_s[0])

    def with_qps(self, qps: float) -> "Workload":
        """Returns the same requests with time stretched so that the mean rate is ``qps``.

        Args:
            qps: requests/s, > 0.

        Raises:
            InputError: ``qps`` is not a finite number > 0, or the workload has no rate to scale
                (a single request, or all at one instant).
        """
        qps = positive("qps", qps)
        if not math.isfinite(self.qps):
            raise InputError(
                f"cannot rescale {len(self)} request(s) that arrive at the same instant to "
                f"qps={qps:g}; give at least two distinct arrival times"
            )
        return self.with_arrivals(self.arrived_at_s * (self.qps / qps))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrival times and lengths in the columns of Vidur's processed traces.

        The file appears whole or not at all. Floats are written with all their digits, so
        ``load_trace(path, rebase=False)`` gives the same arrays. Content, sessions and
        service classes have no column there and are left out.

        Args:
            path: the file to write; a name that ends in ``.gz`` is compressed.

        Raises:
            InputError: the file cannot be written there.
        """
        target = Path(path)
        lines = [",".join(CSV_COLUMNS)]
        lines += map(
            "{!r},{},{}".format,
            self.arrived_at_s.tolist(),
            self.prompt_tokens.tolist(),
            self.output_tokens.tolist(),
        )
        content = ("\n".join(lines) + "\n").encode()
        if target.suffix == ".gz":
            content = gzip.compress(content, mtime=0)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise InputError(
                f"cannot write {target}: {error.strerror or error}; give a file name in an "
                "existing folder that you may write to"
            ) from error


def _unchecked(attributes: dict[str, Any]) -> Workload:
    """Returns a workload of parts of one that was checked, in their order: a window is quick."""
    workload = object.__new__(Workload)
    vars(workload).update(attributes)
    return workload


def _times(values: npt.ArrayLike) -> tuple[FloatArray, bool]:
    """Returns a checked, non-empty copy of arrival times in seconds, and whether they rise."""
    times = _numeric("arrived_at_s", values).astype(np.float64)
    if times.size == 0:
        raise InputError("a workload needs at least one request, got none")
    # Of times that rise, with no nan between them, the first and the last tell.
    in_order = bool((times[1:] >= times[:-1]).all())
    if not (in_order and times[0] >= 0 and times[-1] < math.inf):
        wrong = ~(np.isfinite(times) & (times >= 0))
        if wrong.any():
            index = int(wrong.argmax())
            raise InputError(
                f"arrived_at_s[{index}] must be finite and >= 0 seconds, got {times[index]:g}"
            )
    return times, in_order


def _integers(
    name: str, values: npt.ArrayLike, size: int | None = None, low: int | None = None
) -> IntArray:
    """Returns a checked copy of integers, of ``size`` entries and at least ``low`` if given."""
    given = _numeric(name, values)
    if size is not None and given.size != size:
        raise InputError(
            f"{name} has {given.size} entries, but arrived_at_s has {size}; give one per request"
        )
    high = np.iinfo(np.int64).max if low is None else MAX_TOKENS
    least = np.iinfo(np.int64).min if low is None else low
    if given.dtype == np.int64 and given.min() >= least and given.max() <= high:
        return given.copy()
    wrong = ~np.isfinite(given) | (given > high)
    if given.dtype.kind == "f":
        wrong |= given != np.trunc(given)
    if low is not None:
        wrong |= given < low
    if wrong.any():
        index = int(wrong.argmax())
        bounds = "" if low is None else f" from {low} to {MAX_TOKENS}"
        raise InputError(f"{name}[{index}] must be an integer{bounds}, got {given[index]!s}")
    return given.astype(np.int64)


def _dependencies(
    after: npt.ArrayLike | None, gap_s: npt.ArrayLike | None, order: IntArray
) -> tuple[IntArray, FloatArray]:
    """Returns what each request waits for and how long then, checked and in order of arrival."""
    if after is None or gap_s is None:
        raise InputError("after and gap_s belong together; give both or none")
    awaited = _integers("after", after, len(order))
    gaps = _numeric("gap_s", gap_s).astype(np.float64)
    if len(gaps) != len(order):
        raise InputError(f"gap_s has {len(gaps)} entries for {len(order)} requests; give one each")
    place = np.empty(len(order) + 1, dtype=np.int64)
    place[order], place[-1] = np.arange(len(order)), -1
    waits = awaited != -1
    waiting = np.flatnonzero(waits)
    outside = (awaited[waiting] < 0) | (awaited[waiting] >= len(order))
    late = outside | (place[np.where(outside, 0, awaited[waiting])] >= place[waiting])
    endless = ~((gaps[waiting] > 0) & (gaps[waiting] < math.inf))
    if (late | endless).any():
        first = int((late | endless).argmax())
        index = waiting[first]
        if late[first]:
            raise InputError(
                f"after[{index}] must be -1 or a request that comes earlier, got {awaited[index]}"
            )
        raise InputError(f"gap_s[{index}] must be finite and > 0 seconds, got {gaps[index]:g}")
    return place[awaited[order]], np.where(waits, gaps, 0.0)[order]


def _numeric(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns one-dimensional real numbers."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise InputError(f"{name} must be one-dimensional, got nested sequences") from error
    if array.ndim != 1:
        raise InputError(f"{name} must be one-dimensional, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} must hold numbers, got {array.dtype} values")
    return array


def _read_only(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    array.flags.writeable = False
    return array
