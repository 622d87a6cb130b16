"""The KV cache of a replica: what a scheduler asks of it, and plain blocks."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from llmroute_gym.sim.reference.request import Request


class KVCache(ABC):
    """Who may take how much of a replica's KV memory.

    Attributes:
        holders: requests that hold some.
        remembers: whether blocks are found by their content.
    """

    holders: int
    remembers = False
    block_size: int
    shared_blocks = 0
    """Blocks of all that hold some, added up, less those that are in use."""

    @property
    @abstractmethod
    def usage(self) -> float:
        """Share in use, 0 to 1."""

    def cached_tokens(self, request: Request) -> int:
        """Returns how many of its leading tokens a request would not have to compute."""
        return 0

    def watch(  # noqa: B027  (plain blocks are never found)
        self, on_change: Callable[[int, int], object]
    ) -> None:
        """Has each change of what is found told at once.

        Args:
            on_change: takes the name of a block's content, and 1 where it is registered or -1 where
                it is forgotten, once for each copy.
        """

    @abstractmethod
    def can_admit(self, request: Request, tokens: int | None = None) -> bool:
        """Whether a waiting request may be admitted: so many of its tokens, None for all."""

    @abstractmethod
    def admit(self, request: Request, tokens: int | None = None) -> None:
        """Gives a waiting request what so many of its tokens need, None for all."""

    @abstractmethod
    def can_step(self, request: Request, tokens: int = 1) -> bool:
        """Whether a running request may go on by so many tokens."""

    @abstractmethod
    def step(self, request: Request, tokens: int = 1) -> None:
        """Gives a running request room for so many further tokens."""

    @abstractmethod
    def free(self, request: Request) -> None:
        """Takes back all that a request holds."""


class BlockPool(KVCache):
    """Blocks in use on one replica; which block holds what does not matter here.

    Whole prompts are admitted, so a step is always a decode's.

    Args:
        num_blocks: blocks of the replica.
        block_size: tokens per block.
        watermark_blocks: blocks that an admission must leave free.
    """

    def __init__(self, num_blocks: int, block_size: int, watermark_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.watermark_blocks = watermark_blocks
        self.used = 0
        self.holders = 0
        """Requests that hold blocks."""

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return self.used / self.num_blocks

    def _needed(self, request: Request) -> int:
        return -(-request.prompt_tokens // self.block_size)

    def can_admit(self, request: Request, tokens: int | None = None) -> bool:
        """Whether the whole prompt fits and leaves the watermark free."""
        return self.num_blocks - self.used - self._needed(request) >= self.watermark_blocks

    def admit(self, request: Request, tokens: int | None = None) -> None:
        """Allocates the blocks of the whole prompt."""
        request.blocks = self._needed(request)
        self.used += request.blocks
        self.holders += 1

    def can_step(self, request: Request, tokens: int = 1) -> bool:
        """Whether a decode may go on: one free block, even where no new one is needed."""
        return self.num_blocks - self.used >= 1

    def step(self, request: Request, tokens: int = 1) -> None:
        """Allocates one more block if the request has outgrown its own."""
        if request.done > request.blocks * self.block_size:
            request.blocks += 1
            self.used += 1

    def free(self, request: Request) -> None:
        """Takes back all blocks of the request."""
        if request.blocks > self.used:
            raise RuntimeError(f"request {request.index} frees blocks that are not in use")
        self.used -= request.blocks
        self.holders -= 1
        request.blocks = 0
