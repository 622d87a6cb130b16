"""The KV cache of vLLM v1: blocks that are shared, and remembered until they are needed."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llmroute_gym.sim.reference.blocks import KVCache
from llmroute_gym.sim.reference.request import Request


@dataclass(slots=True, eq=False)
class Block:
    """One block of KV memory.

    Attributes:
        name: of its content once that is registered; equal names are equal content.
        users: requests that hold it. Without any it is free: remembered if it is registered, else
            blank.
    """

    name: int | None = None
    users: int = 1


class PrefixCache(KVCache):
    """Blocks of one replica; those that are full can be found by their content.

    As vLLM's `KVCacheManager` with one group of layers. A content may be registered in several
    blocks: nothing is merged.

    Args:
        num_blocks: blocks of the replica; one of them stays empty.
        block_size: tokens per block.
        watermark_blocks: blocks that an admission leaves free while others hold some.
        remembers: whether contents are registered at all.

    Attributes:
        remembered: free registered blocks; the one that has been free longest comes first.
    """

    def __init__(
        self, num_blocks: int, block_size: int, watermark_blocks: int, remembers: bool
    ) -> None:
        self.usable = num_blocks - 1
        self.block_size = block_size
        self.watermark_blocks = watermark_blocks
        self.remembers = remembers
        self.holders = 0
        self.remembered: OrderedDict[Block, None] = OrderedDict()
        self._blank = self.usable
        self._held: dict[int, list[Block]] = {}
        self._copies: dict[int, list[Block]] = {}
        """By name the blocks in which a content is registered, the earliest first."""
        self._on_change: Callable[[int, int], object] = lambda name, change: None

    def watch(self, on_change: Callable[[int, int], object]) -> None:
        """Has each registration (1) and eviction (-1) of a block told, with the name of it."""
        self._on_change = on_change

    @property
    def free_blocks(self) -> int:
        """Blocks without users, blank or remembered."""
        return self._blank + len(self.remembered)

    @property
    def usage(self) -> float:
        """Share of the usable blocks that have users, 0 to 1."""
        return 1.0 - self.free_blocks / self.usable

    def cached_tokens(self, request: Request) -> int:
        """Returns its leading tokens that are registered, never all: the last is computed."""
        return len(self._hits(request)) * self.block_size

    def can_admit(self, request: Request, tokens: int | None = None) -> bool:
        """Whether so many of its tokens fit, and leave the watermark free where others run."""
        hits = self._hits(request)
        waking = sum(not block.users for block in hits)
        watermark = self.watermark_blocks if self.holders else 0
        return self._more(request, tokens, len(hits)) + waking + watermark <= self.free_blocks

    def admit(self, request: Request, tokens: int | None = None) -> None:
        """Gives a waiting request the blocks that it hits, and new ones up to so many tokens."""
        hits = self._hits(request)
        for block in hits:
            if not block.users:
                del self.remembered[block]
            else:
                self.shared_blocks += 1
            block.users += 1
        self._held[request.index] = hits
        self.holders += 1
        request.blocks = len(hits)
        self._extend(request, request.known_tokens if tokens is None else tokens)

    def can_step(self, request: Request, tokens: int = 1) -> bool:
        """Whether so many further tokens of a running request fit."""
        more = self._more(request, request.computed_tokens + tokens, request.blocks)
        return more <= self.free_blocks

    def step(self, request: Request, tokens: int = 1) -> None:
        """Gives a running request room for so many further tokens."""
        self._extend(request, request.computed_tokens + tokens)

    def free(self, request: Request) -> None:
        """Takes back all blocks of the request, the last one first."""
        for block in reversed(self._held.pop(request.index)):
            block.users -= 1
            if block.users:
                self.shared_blocks -= 1
                continue
            if block.name is None:
                self._blank += 1
            else:
                self.remembered[block] = None
        self.holders -= 1
        request.blocks = 0

    def _hits(self, request: Request) -> list[Block]:
        """Finds the leading full blocks of its known tokens, in the copies registered first."""
        most = (request.known_tokens - 1) // self.block_size
        hits: list[Block] = []
        if self.remembers:
            for name in request.names.in_turn(most, self.block_size):
                copies = self._copies.get(name)
                if copies is None:
                    break
                hits.append(copies[0])
        return hits

    def _more(self, request: Request, tokens: int | None, blocks: int) -> int:
        """Returns the blocks that so many tokens need beyond those there are."""
        held = request.known_tokens if tokens is None else tokens
        return -(-held // self.block_size) - blocks

    def _extend(self, request: Request, tokens: int) -> None:
        """Takes blocks for so many tokens in all, and registers those that these fill."""
        blocks = self._held[request.index]
        while len(blocks) * self.block_size < tokens:
            blocks.append(self._take())
        request.blocks = len(blocks)
        full = first = tokens // self.block_size
        while self.remembers and first and blocks[first - 1].name is None:
            first -= 1
        for place in range(first, full):
            name = request.names.leading(full, self.block_size)[place]
            blocks[place].name = name
            self._copies.setdefault(name, []).append(blocks[place])
            self._on_change(name, 1)

    def _take(self) -> Block:
        """Takes a blank block, or else the one remembered longest, whose content is forgotten."""
        if self._blank:
            self._blank -= 1
            return Block()
        block, _ = self.remembered.popitem(last=False)
        assert block.name is not None
        copies = self._copies[block.name]
        copies.remove(block)
        if not copies:
            del self._copies[block.name]
        self._on_change(block.name, -1)
        return Block()
