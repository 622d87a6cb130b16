"""What prompts are made of: which of their tokens are equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import IntArray

MAX_TOKENS = 2**31 - 1  # so that sums over a million requests stay within int64
ROOM_FOR_MORE = 2**62


@dataclass(frozen=True, eq=False)
class Content:
    """The prompts of a workload as pieces of streams of tokens.

    The prompt of request i is, in order, the first ``lengths[j]`` tokens of stream ``streams[j]``
    for j from ``offsets[i]`` to ``offsets[i + 1] - 1``. Two tokens are equal if and only if their
    stream and their position in it are. Stream -(i + 1) is the output of request i; all others
    are numbered from 0, in any way. A request without pieces shares its prompt with nobody.

    Sequences are converted to int64 arrays and made read-only.

    Attributes:
        offsets: shape (n_requests + 1,), from 0 to n_segments, not falling.
        streams: shape (n_segments,).
        lengths: shape (n_segments,), tokens, >= 1.

    Raises:
        InputError: an array is of another shape or type, or holds a value out of range.
    """

    offsets: IntArray
    streams: IntArray
    lengths: IntArray

    def __post_init__(self) -> None:
        """Converts, checks and freezes the arrays."""
        for name in ("offsets", "streams", "lengths"):
            object.__setattr__(self, name, _frozen(f"content.{name}", getattr(self, name)))
        offsets, segments = self.offsets, self.lengths.size
        if self.streams.size != segments:
            raise InputError(
                f"content has {self.streams.size} streams and {segments} lengths; give one length "
                "per stream"
            )
        if not offsets.size or offsets[0] != 0 or offsets[-1] != segments:
            raise InputError(
                f"content.offsets must go from 0 to the number of segments ({segments}), got "
                f"{shown(offsets.tolist())}"
            )
        if (offsets[1:] < offsets[:-1]).any():
            raise InputError(f"content.offsets must not fall, got {shown(offsets.tolist())}")
        if segments and not (self.lengths.min() >= 1 and self.lengths.max() <= MAX_TOKENS):
            index = int(((self.lengths < 1) | (self.lengths > MAX_TOKENS)).argmax())
            raise InputError(
                f"segment {self._place(index)} of the content has {self.lengths[index]} tokens; "
                f"expected an integer from 1 to {MAX_TOKENS}"
            )

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[int, int]]]) -> "Content":
        """Returns the content of prompts that are lists of pairs.

        Args:
            rows: per request its (stream, tokens) pairs, in the prompt's order; may be empty.

        Raises:
            InputError: a row holds anything but pairs of integers.
        """
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        pairs = list(chain.from_iterable(rows))
        try:
            flat = np.array(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
        except (ValueError, OverflowError):
            flat = np.empty(0)
        if flat.ndim != 2 or flat.shape[1] != 2 or flat.dtype.kind not in "iu":
            wrong = next((pair for pair in pairs if not _is_pair(pair)), pairs[:1])
            raise InputError(
                f"a request's content is a list of (stream, tokens) pairs of 64-bit integers, got "
                f"{shown(wrong)} in it"
            )
        return cls(offsets, flat[:, 0], flat[:, 1])

    def __len__(self) -> int:
        """Returns the number of requests."""
        return self.offsets.size - 1

    def __repr__(self) -> str:
        """Returns a line with the numbers of requests and segments."""
        return f"Content({len(self)} requests, {self.lengths.size} segments)"

    def rows(self) -> list[list[tuple[int, int]]]:
        """Returns what ``of`` takes: per request its (stream, tokens) pairs."""
        pairs = list(zip(self.streams.tolist(), self.lengths.tolist(), strict=True))
        ends = self.offsets.tolist()
        return [pairs[start:end] for start, end in pairwise(ends)]

    def slice(self, start: int, stop: int) -> "Content":
        """Returns the content of requests ``start`` to ``stop - 1``.

        The output of a request that is cut off becomes a stream like any other, so that the
        requests that are left share it with each other as before.
        """
        first, end = self.offsets[start], self.offsets[stop]
        streams = self.streams[first:end]
        outputs = np.flatnonzero(streams < 0)
        if outputs.size:
            request = ~streams[outputs]
            streams = _redirected(streams, outputs, np.maximum(request - start, -1))
        offsets = self.offsets[start : stop + 1] - first
        return _made(offsets, streams, self.lengths[first:end])

    def ordered(self, order: IntArray) -> "Content":
        """Returns the content of the same requests in another order.

        Args:
            order: shape (n_requests,), the index here of each request there.
        """
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        taken = np.repeat(self.offsets[:-1][order] - offsets[:-1], counts)
        taken += np.arange(offsets[-1])
        streams = self.streams[taken]
        outputs = np.flatnonzero(streams < 0)
        if outputs.size:
            streams = _redirected(streams, outputs, np.argsort(order)[~streams[outputs]])
        return _made(offsets, streams, self.lengths[taken])

    def without_later_outputs(self) -> "Content":
        """Returns the same, but outputs of requests that do not come earlier are other streams.

        Whoever waits for another one may arrive after a request that was to repeat its output.
        """
        outputs = np.flatnonzero(self.streams < 0)
        read = ~self.streams[outputs]
        late = read >= self._request_of(outputs)
        if not late.any():
            return self
        streams = _redirected(self.streams, outputs, np.where(late, -1, read))
        return _made(self.offsets, streams, self.lengths)

    def cut(self, max_tokens: int) -> "Content":
        """Returns the content of the same prompts, the longer ones cut to ``max_tokens``."""
        counts = np.diff(self.offsets)
        before = self._tokens_before()
        within = before[:-1] - np.repeat(before[self.offsets[:-1]], counts)
        lengths = np.minimum(self.lengths, max_tokens - within)
        left = np.concatenate([[0], np.cumsum(lengths > 0)])
        return _made(left[self.offsets], self.streams[lengths > 0], lengths[lengths > 0])

    def check(
        self, prompt_tokens: IntArray, output_tokens: IntArray, place: IntArray | None = None
    ) -> None:
        """Checks that this can be the content of such requests.

        Args:
            prompt_tokens: shape (n_requests,).
            output_tokens: shape (n_requests,).
            place: shape (n_requests,), each request's place in order of arrival; None where the
                requests are in that order.

        Raises:
            InputError: it is of another number of requests, a prompt's segments do not add up to
                it, or one is of an output that is not there, comes too late or is too short.
        """
        if len(self) != prompt_tokens.size:
            raise InputError(
                f"content has {len(self)} prompts for {prompt_tokens.size} requests; give one per "
                "request, an empty one where nothing is shared"
            )
        if not self.lengths.size:
            return
        before = self._tokens_before()
        total = before[self.offsets[1:]] - before[self.offsets[:-1]]
        wrong = (total != prompt_tokens) & (self.offsets[1:] > self.offsets[:-1])
        if wrong.any():
            request = int(wrong.argmax())
            raise InputError(
                f"the content of request {request} has {total[request]} tokens, but its prompt "
                f"has {prompt_tokens[request]}; make its segments add up to the prompt"
            )
        if self.streams.min() < 0:
            self._check_outputs(output_tokens, place)

    def _check_outputs(self, output_tokens: IntArray, place: IntArray | None) -> None:
        """Checks the segments that are outputs of other requests."""
        outputs = np.flatnonzero(self.streams < 0)
        reader, read = self._request_of(outputs), ~self.streams[outputs]
        absent = read >= output_tokens.size
        inside = np.where(absent, 0, read)
        late = inside >= reader if place is None else place[inside] >= place[reader]
        longer = self.lengths[outputs] > output_tokens[inside]
        wrong = absent | late | longer
        if not wrong.any():
            return
        first = int(wrong.argmax())
        stream, index = self.streams[outputs[first]], read[first]
        found = f"a segment of request {reader[first]} is of stream {stream}, the output of request"
        if absent[first]:
            raise InputError(
                f"{found} {index}, which is not among the {output_tokens.size} requests; number "
                "streams that are no outputs from 0"
            )
        if late[first]:
            raise InputError(
                f"{found} {index}, which does not arrive earlier; expected an earlier request"
            )
        raise InputError(
            f"{found} {index}, and has {self.lengths[outputs[first]]} tokens; expected at most "
            f"that request's {output_tokens[index]} output tokens"
        )

    def _tokens_before(self) -> IntArray:
        """Returns the tokens of all segments before each, and of all: shape (n_segments + 1,)."""
        before = np.zeros(self.lengths.size + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=before[1:])
        return before

    def _request_of(self, segments: IntArray) -> IntArray:
        return np.searchsorted(self.offsets, segments, side="right") - 1

    def _place(self, segment: int) -> str:
        """Names a segment by its place in its request."""
        request = int(self._request_of(np.array([segment]))[0])
        return f"{segment - self.offsets[request]} of request {request}"


def block_content(
    hashes: IntArray, blocks: IntArray, prompt_tokens: IntArray, block_tokens: int
) -> Content:
    """Returns the content of prompts that are given as hashes of their blocks.

    A hash stands for a block and all before it, as in published traces, so each is a stream.

    Args:
        hashes: shape (sum of blocks,), of all requests in a row; negative ones are renumbered.
        blocks: shape (n_requests,), how many of them each request has.
        prompt_tokens: shape (n_requests,).
        block_tokens: tokens of a block; the last one of a prompt may be cut.
    """
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    lengths = np.full(hashes.size, block_tokens, dtype=np.int64)
    some = blocks > 0
    lengths[offsets[1:][some] - 1] = (prompt_tokens - (blocks - 1) * block_tokens)[some]
    negative = np.flatnonzero(hashes < 0)
    if negative.size:
        hashes = _redirected(hashes, negative, np.full(negative.size, -1))
    return _made(offsets, hashes, lengths)


def recorded_content(
    pieces: IntArray, streams: IntArray, lengths: IntArray, numbers: IntArray
) -> Content:
    """Returns the content of some rows of a file, which name outputs by rows of the file.

    Args:
        pieces: shape (n_requests,), the segments of each request.
        streams: shape (sum of pieces,); -(i + 1) is the output of row i of the file.
        lengths: shape (sum of pieces,), tokens.
        numbers: shape (n_requests,), each request's row in the file, rising; the outputs of rows
            that are not among them become streams like any other.
    """
    outputs = np.flatnonzero(streams < 0)
    if outputs.size:
        rows = ~streams[outputs]
        request = np.minimum(np.searchsorted(numbers, rows), numbers.size - 1)
        streams = _redirected(streams, outputs, np.where(numbers[request] == rows, request, -1))
    return _made(np.concatenate([[0], np.cumsum(pieces)]), streams, lengths)


def _made(offsets: IntArray, streams: IntArray, lengths: IntArray) -> Content:
    """Returns content of arrays that are nobody else's, without another copy of them."""
    for part in (offsets, streams, lengths):
        part.flags.writeable = False
    return Content(offsets, streams, lengths)


def _redirected(streams: IntArray, outputs: IntArray, requests: IntArray) -> IntArray:
    """Returns streams with those at ``outputs`` made outputs of ``requests``; -1: a new stream.

    Equal streams that become new ones stay equal.
    """
    lost = outputs[requests < 0]
    changed = streams.copy()
    changed[outputs] = ~requests
    if lost.size:
        gone = streams[lost]
        top = max(int(streams.max()), -1)
        if top - int(gone.min()) < ROOM_FOR_MORE:
            changed[lost] = top - gone  # beyond the others, each as far as it was below 0
        else:
            given, new = np.unique(gone, return_inverse=True)
            free = np.setdiff1d(np.arange(streams.size + given.size), streams)[: given.size]
            changed[lost] = free[new]
    return changed


def _frozen(name: str, values: npt.ArrayLike) -> IntArray:
    """Returns a read-only copy of integers; a frozen array is shared, as windows are many."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(
            f"{name} must be one-dimensional and hold integers, got shape {given.shape} of "
            f"{given.dtype}"
        )
    if given.dtype == np.int64 and not given.flags.writeable:
        return given
    copy = given.astype(np.int64)
    if given.dtype == np.uint64 and copy.size and copy.min() < 0:
        raise InputError(f"{name} must hold 64-bit integers, got {given.max()}")
    copy.flags.writeable = False
    return copy


def _is_pair(value: Any) -> bool:
    """Returns whether the value is a pair of 64-bit integers."""
    whole = map(isinstance, value, repeat(int)) if isinstance(value, list | tuple) else ()
    return all(whole) and np.shape(value) == (2,) and max(map(abs, value)) < 2**63
