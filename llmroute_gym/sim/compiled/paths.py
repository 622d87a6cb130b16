"""The tree of contents of a workload: which blocks of its requests are the same.

A radix tree of segments, as tokens first: one edge per segment, cut where another request turns off
or ends. Edges in a row become one, and tokens become blocks: a block belongs to the edge that holds
its last token. What only one request has is no edge but that request's private tail.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import BoolArray, IntArray
from llmroute_gym.sim.compiled.jit import inlined, kernel
from llmroute_gym.sim.workload import Workload

Slots = npt.NDArray[np.int32]
# Columns of an edge of tokens; edge 0 is the root.
STREAM, START, LENGTH, PARENT, CHILD, CHILDREN, ENDS, DEPTH = range(8)
# Columns of the same once the tree stands: the edge above of those in a row, its blocks' edge.
ABOVE, BLOCKS, LEVEL = STREAM, START, LENGTH
_UNKNOWN = -2


class Paths(NamedTuple):
    """Where the blocks of requests are in the tree.

    Attributes:
        first: (n_edges,) the first block of each edge.
        last: (n_edges,) one past its last.
        writer: (n_edges,) the request whose output it is, -1 for prompts.
        offsets: (n_requests + 1,) of each request's edges.
        edges: (offsets[-1],) first to last.
        private: (n_requests,) the first block that no other request has.
    """

    first: IntArray
    last: IntArray
    writer: IntArray
    offsets: IntArray
    edges: IntArray
    private: IntArray


_KNOWN: WeakKeyDictionary[Workload, dict[int, Paths]] = WeakKeyDictionary()


def paths_of(workload: Workload, block_size: int) -> Paths:
    """Returns the paths of a workload's requests; remembers them.

    Args:
        workload: the requests.
        block_size: tokens per block.
    """
    known = _KNOWN.setdefault(workload, {})
    if block_size not in known:
        known[block_size] = _paths(workload, block_size)
    return known[block_size]


def _paths(workload: Workload, block_size: int) -> Paths:
    n = len(workload)
    content = workload.content
    if content is None:
        nothing = np.zeros(0, dtype=np.int64)
        zeros = np.zeros(n + 1, dtype=np.int64)
        return Paths(nothing, nothing, nothing, zeros, nothing, zeros[:n])
    most = 2 * (len(content.streams) + n) + 1
    tree, slots = _scratch(most)
    written = np.zeros(n, dtype=np.bool_)
    written[~content.streams[content.streams < 0]] = True
    prompt_end, end = np.empty((2, n), dtype=np.int64)
    offsets, streams, lengths = (
        np.array(one) for one in (content.offsets, content.streams, content.lengths)
    )
    outputs = np.array(workload.output_tokens)
    n_edges = _grow_tree(offsets, streams, lengths, outputs, written, tree, slots, prompt_end, end)
    first, last, writer = np.empty((3, n_edges), dtype=np.int64)
    path_offsets = np.zeros(n + 1, dtype=np.int64)
    private = np.zeros(n, dtype=np.int64)
    n_blocks = _number_edges(
        block_size,
        written,
        tree[:n_edges],
        prompt_end,
        end,
        first,
        last,
        writer,
        path_offsets,
        private,
    )
    edges = np.empty(path_offsets[-1], dtype=np.int64)
    _list_edges(tree[:n_edges], end, path_offsets, edges)
    return Paths(
        first[:n_blocks].copy(),
        last[:n_blocks].copy(),
        writer[:n_blocks].copy(),
        path_offsets,
        edges,
        private,
    )


_TREES: list[IntArray] = []
"""The last one, if it is small: making an array can take longer than filling it."""
_SMALL = 1 << 16


def _scratch(most: int) -> tuple[IntArray, Slots]:
    """Returns room for a tree of so many edges, filled with anything, and empty slots."""
    slots = np.full(1 << (2 * most - 1).bit_length(), -1, dtype=np.int32)
    if most > _SMALL:
        return np.empty((most, 8), dtype=np.int64), slots
    if not _TREES or len(_TREES[0]) < most:
        _TREES[:] = [np.empty((2 * most, 8), dtype=np.int64)]
    return _TREES[0], slots


@inlined
def _slot(parent: int, stream: int, start: int, mask: int) -> int:
    mixed = parent * 0x9E3779B97F4A7C1 + stream * 0x2545F4914F6CDD1 + start * 0x632BE59BD9B4E1
    mixed ^= mixed >> 29
    return (mixed * 0x9E3779B1 >> 7) & mask


@kernel
def _child(parent: int, stream: int, start: int, tree: IntArray, slots: Slots) -> int:
    """Returns the edge on which a path goes on, -1 if there is none."""
    child = tree[parent, CHILD]
    if child < 0 or (tree[child, STREAM] == stream and tree[child, START] == start):
        return child
    if tree[parent, CHILDREN] == 1:
        return -1
    mask = len(slots) - 1
    slot = _slot(parent, stream, start, mask)
    while slots[slot] >= 0:
        child = slots[slot]
        if (
            tree[child, PARENT] == parent
            and tree[child, STREAM] == stream
            and tree[child, START] == start
        ):
            return child
        slot = (slot + 1) & mask
    return -1


@kernel
def _follow(
    place: int, stream: int, length: int, n_edges: int, tree: IntArray, slots: Slots
) -> tuple[int, int]:
    """Adds a segment below an edge; returns the edge that ends with it, and how many there are."""
    mask = len(slots) - 1
    start = 0
    while start < length:
        child = _child(place, stream, start, tree, slots)
        if child < 0:
            child = n_edges
            n_edges += 1
            tree[child, STREAM] = stream
            tree[child, START] = start
            tree[child, LENGTH] = length - start
            tree[child, PARENT] = place
            tree[child, CHILD] = -1
            tree[child, CHILDREN] = 0
            tree[child, ENDS] = 0
            tree[child, DEPTH] = tree[place, DEPTH] + length - start
            tree[place, CHILDREN] += 1
            if tree[place, CHILD] < 0:
                tree[place, CHILD] = child
            else:
                slot = _slot(place, stream, start, mask)
                while slots[slot] >= 0:
                    slot = (slot + 1) & mask
                slots[slot] = child
            return child, n_edges
        there = tree[child, LENGTH]
        if start + there > length:  # the edge goes on: its first part becomes one of its own
            part = n_edges
            n_edges += 1
            kept = length - start
            tree[part, STREAM] = stream
            tree[part, START] = start
            tree[part, LENGTH] = kept
            tree[part, PARENT] = place
            tree[part, CHILD] = child
            tree[part, CHILDREN] = 1
            tree[part, ENDS] = 0
            tree[part, DEPTH] = tree[place, DEPTH] + kept
            if tree[place, CHILD] == child:
                tree[place, CHILD] = part
            else:
                slot = _slot(place, stream, start, mask)
                while slots[slot] != child:
                    slot = (slot + 1) & mask
                slots[slot] = part
            tree[child, PARENT] = part
            tree[child, START] = length
            tree[child, LENGTH] = there - kept
            return part, n_edges
        start += there
        place = child
    return place, n_edges


@kernel
def _grow_tree(
    offsets: IntArray,
    streams: IntArray,
    lengths: IntArray,
    outputs: IntArray,
    written: BoolArray,
    tree: IntArray,
    slots: Slots,
    prompt_end: IntArray,
    end: IntArray,
) -> int:
    """Builds the tree of tokens; returns its number of edges, the root included."""
    tree[0, DEPTH] = tree[0, LENGTH] = tree[0, CHILDREN] = tree[0, ENDS] = 0
    tree[0, CHILD] = tree[0, PARENT] = -1
    n_edges = 1
    for i in range(len(end)):
        place = 0
        for j in range(offsets[i], offsets[i + 1]):
            place, n_edges = _follow(place, streams[j], lengths[j], n_edges, tree, slots)
        prompt_end[i] = place
        if place > 0:
            tree[place, ENDS] += 1
            if written[i]:
                place, n_edges = _follow(place, -i - 1, outputs[i], n_edges, tree, slots)
                tree[place, ENDS] += 1
        end[i] = place
    return n_edges


@inlined
def _is_bottom(edge: int, tree: IntArray) -> bool:
    """Whether paths part or end where this edge does."""
    return tree[edge, CHILDREN] != 1 or tree[edge, ENDS] > 0


@kernel
def _number_edges(
    block_size: int,
    written: BoolArray,
    tree: IntArray,
    prompt_end: IntArray,
    end: IntArray,
    first: IntArray,
    last: IntArray,
    writer: IntArray,
    path_offsets: IntArray,
    private: IntArray,
) -> int:
    """Turns edges of tokens into edges of blocks; returns how many there are."""
    n_blocks = 0
    for edge in range(1, len(tree)):
        tree[edge, ABOVE] = _UNKNOWN
    tree[0, ABOVE] = tree[0, BLOCKS] = -1
    tree[0, LEVEL] = 0
    for i in range(len(end)):
        edge = end[i]
        # Up to what is known, then down again, with CHILD as the way back.
        below = -1
        in_output = written[i]
        while edge > 0 and tree[edge, ABOVE] == _UNKNOWN:
            in_output = in_output and edge != prompt_end[i]
            above = tree[edge, PARENT]
            while above > 0 and not _is_bottom(above, tree):
                above = tree[above, PARENT]
            tree[edge, ABOVE] = above
            tree[edge, BLOCKS] = i if in_output else -1
            tree[edge, LEVEL] = below
            below = edge
            edge = above
        while below > 0:
            edge = below
            below = tree[edge, LEVEL]
            above = tree[edge, ABOVE]
            low, high = tree[above, DEPTH] // block_size, tree[edge, DEPTH] // block_size
            alone = tree[edge, CHILDREN] == 0 and tree[edge, ENDS] == 1
            author = tree[edge, BLOCKS]
            tree[edge, BLOCKS] = -1
            tree[edge, LEVEL] = tree[above, LEVEL]
            if high > low and not alone:
                first[n_blocks], last[n_blocks] = low, high
                writer[n_blocks] = author
                tree[edge, BLOCKS] = n_blocks
                tree[edge, LEVEL] += 1
                n_blocks += 1
        edge = end[i]
        path_offsets[i + 1] = path_offsets[i] + tree[edge, LEVEL]
        if tree[edge, CHILDREN] == 0 and tree[edge, ENDS] == 1:
            edge = tree[edge, ABOVE]
        private[i] = tree[edge, DEPTH] // block_size if edge > 0 else 0
    return n_blocks


@kernel
def _list_edges(tree: IntArray, end: IntArray, path_offsets: IntArray, edges: IntArray) -> None:
    """Writes down the edges of blocks of every request."""
    for i in range(len(end)):
        place = path_offsets[i + 1]
        edge = end[i]
        while place > path_offsets[i]:
            if tree[edge, BLOCKS] >= 0:
                place -= 1
                edges[place] = tree[edge, BLOCKS]
            edge = tree[edge, ABOVE]
