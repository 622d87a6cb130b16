"""Names of a request's blocks of tokens: equal names are equal tokens after equal tokens."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from llmroute_gym.sim.workload import Workload

Names = dict[tuple[int, ...], int]
"""(name of the block before, stream and place of each run of tokens) to name; all block sizes."""


class BlockNames:
    """The names of one request's blocks, found out as far as they are asked for.

    Args:
        names: of the whole workload; new ones are added.
        segments: (stream, tokens) of the prompt; each is the beginning of its stream.
        output: stream of the output, which follows the prompt.
    """

    def __init__(self, names: Names, segments: list[tuple[int, int]], output: int) -> None:
        self._names = names
        self._streams = [*(stream for stream, _ in segments), output]
        self._starts = [0, *accumulate(tokens for _, tokens in segments)]
        self._known: dict[int, list[int]] = {}

    def leading(self, blocks: int, block_size: int) -> list[int]:
        """Returns the names of the leading blocks: of so many at least, and of any more known.

        Args:
            blocks: how many are needed; all of them full.
            block_size: tokens per block.
        """
        known = self._known.setdefault(block_size, [])
        for block in range(len(known), blocks):
            before = known[-1] if known else -block_size
            runs = self._runs(block * block_size, block_size)
            known.append(self._names.setdefault((before, *runs), len(self._names)))
        return known

    def in_turn(self, blocks: int, block_size: int) -> Iterator[int]:
        """Yields the names of so many leading blocks, each found out when its turn comes."""
        for block in range(blocks):
            yield self.leading(block + 1, block_size)[block]

    def _runs(self, start: int, tokens: int) -> Iterator[int]:
        """Yields stream and place of the first token of each run within a block, from `start`."""
        segment = bisect_right(self._starts, start) - 1
        yield self._streams[segment]
        yield start - self._starts[segment]
        for later in range(segment + 1, bisect_right(self._starts, start + tokens - 1)):
            yield self._streams[later]
            yield self._starts[later] - start


def block_names(workload: Workload) -> list[BlockNames]:
    """Returns the names of the blocks of each request, to be found out.

    A prompt of which nothing is said is a stream of its own.
    """
    n, names = len(workload), Names()
    rows = [[] for _ in range(n)] if workload.content is None else workload.content.rows()
    return [
        BlockNames(names, row or [(-(n + index + 1), prompt)], output=-(index + 1))
        for index, (row, prompt) in enumerate(
            zip(rows, workload.prompt_tokens.tolist(), strict=True)
        )
    ]
