"""What a router takes to be in a replica's prefix cache."""

from abc import ABC, abstractmethod
from collections import Counter, deque
from itertools import takewhile

import simpy

from llmroute_gym.config import ObservationConfig
from llmroute_gym.sim.reference.blocks import KVCache
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.replica import Replica
from llmroute_gym.sim.sent_blocks import SentBlocks


class PrefixView(ABC):
    """One replica's prefix cache, as a router sees it at each decision."""

    @abstractmethod
    def cached_tokens(self, request: Request) -> int:
        """Returns how many leading tokens of a new request's prompt it takes to be cached."""

    def known_tokens(self) -> int:
        """Returns the tokens of all blocks that a router keeps itself, 0 where engines tell it."""
        return 0

    def sent(self, request: Request) -> None:  # noqa: B027  (the engine's events tell enough)
        """Notes that a request goes to the replica."""


class CacheNow(PrefixView):
    """The cache as it is, and nothing where there is none.

    Args:
        cache: of the replica.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def cached_tokens(self, request: Request) -> int:
        """Returns its leading tokens that the cache holds."""
        return self._cache.cached_tokens(request)


class LateEvents(PrefixView):
    """The cache as it was a while ago, from a log of what it registered and forgot.

    A change at t shows from the first decision after t + lag on.

    Args:
        cache: of the replica.
        block_size: its tokens per block.
        environment: the clock.
        lag_s: how late the events are, seconds.
    """

    def __init__(
        self, cache: KVCache, block_size: int, environment: simpy.Environment, lag_s: float
    ) -> None:
        self._block_size = block_size
        self._environment = environment
        self._lag_s = lag_s
        self._log: deque[tuple[float, int, int]] = deque()
        """Time, name of a content, change of its number of copies: those not yet applied."""
        self._copies: Counter[int] = Counter()
        cache.watch(self._note)

    def _note(self, name: int, change: int) -> None:
        self._log.append((self._environment.now, name, change))

    def cached_tokens(self, request: Request) -> int:
        """Returns its leading tokens that the events told so far leave in the cache."""
        while self._log and self._log[0][0] + self._lag_s < self._environment.now:
            _, name, change = self._log.popleft()
            self._copies[name] += change
            if not self._copies[name]:
                del self._copies[name]
        most = (request.prompt_tokens - 1) // self._block_size
        names = request.names.in_turn(most, self._block_size)
        blocks = sum(1 for _ in takewhile(self._copies.__contains__, names))
        return blocks * self._block_size


class SentPrefixes(PrefixView):
    """An index of the prompts' blocks that were sent, of what the replica has evicted unaware.

    As routers keep it that hear nothing from the engines: the least recently sent blocks are
    forgotten, of a prompt the last ones first.

    Args:
        block_size: of the replica, in tokens.
        most_blocks: how many are kept.
    """

    def __init__(self, block_size: int, most_blocks: int) -> None:
        self._block_size = block_size
        self._blocks = SentBlocks(1, most_blocks)

    def sent(self, request: Request) -> None:
        """Makes the full blocks of its prompt the youngest, its first block most of all."""
        full = request.prompt_tokens // self._block_size
        self._blocks.send(0, request.names.leading(full, self._block_size)[:full])

    def cached_tokens(self, request: Request) -> int:
        """Returns its leading tokens that the index holds."""
        most = (request.prompt_tokens - 1) // self._block_size
        (blocks,) = self._blocks.leading(request.names.in_turn(most, self._block_size))
        return blocks * self._block_size

    def known_tokens(self) -> int:
        """Returns the tokens of all blocks in the index."""
        return self._blocks.count(0) * self._block_size


def prefix_views(
    told: ObservationConfig, replica: Replica, cache: KVCache, environment: simpy.Environment
) -> list[PrefixView]:
    """Returns each gateway's view of one replica: a tree of its own, or the events told to all.

    Args:
        told: the settings.
        replica: its block size.
        cache: of the replica, still empty.
        environment: the clock.
    """
    if told.prefix_view == "tree" and cache.remembers:
        size, most = replica.block_size, told.tree_blocks
        return [SentPrefixes(size, most) for _ in range(told.gateways)]
    view: PrefixView = CacheNow(cache)
    if told.prefix_view == "events" and told.events_lag_s > 0:
        view = LateEvents(cache, replica.block_size, environment, told.events_lag_s)
    return [view] * told.gateways
