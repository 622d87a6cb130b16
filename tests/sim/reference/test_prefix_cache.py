"""Which blocks the prefix cache takes, gives back, finds and forgets."""

from llmroute_gym.sim.reference.block_names import BlockNames, Names
from llmroute_gym.sim.reference.prefix_cache import PrefixCache
from llmroute_gym.sim.reference.request import Request


class Served:
    """A cache of blocks of 4 tokens, and the requests that it knows."""

    def __init__(self, usable: int, watermark_blocks: int = 0) -> None:
        self.cache = PrefixCache(usable + 1, 4, watermark_blocks, remembers=True)
        self._names = Names()
        self._requests = 0

    def request(self, *segments: tuple[int, int]) -> Request:
        self._requests += 1
        prompt = sum(tokens for _, tokens in segments)
        names = BlockNames(self._names, list(segments), output=-self._requests)
        return Request(self._requests, 0.0, prompt, 1, names)

    def admitted(self, *segments: tuple[int, int]) -> Request:
        request = self.request(*segments)
        assert self.cache.can_admit(request)
        self.cache.admit(request)
        return request

    def gone(self, *segments: tuple[int, int]) -> None:
        self.cache.free(self.admitted(*segments))

    def found(self, *segments: tuple[int, int]) -> int:
        """Tokens of a prompt that are found, with another token behind it."""
        return self.cache.cached_tokens(self.request(*segments, (999, 1)))


def test_all_blocks_but_one_can_be_used() -> None:
    served = Served(usable=3)
    assert not served.cache.can_admit(served.request((0, 13)))
    request = served.admitted((0, 12))
    assert served.cache.usage == 1.0
    served.cache.free(request)
    assert served.cache.usage == 0.0


def test_partial_blocks_are_not_found_and_become_blank() -> None:
    served = Served(usable=3)
    served.gone((0, 7))
    assert served.found((0, 7)) == 4
    assert len(served.cache.remembered) == 1


def test_blank_blocks_are_taken_before_remembered_ones() -> None:
    served = Served(usable=4)
    served.gone((0, 8))
    served.gone((1, 8))
    assert served.found((0, 8)) == served.found((1, 8)) == 8


def test_the_block_free_longest_is_forgotten_the_tail_before_the_head() -> None:
    served = Served(usable=4)
    served.gone((0, 8))
    served.gone((1, 8))
    served.gone((2, 4))
    assert [served.found((stream, 8)) for stream in (0, 1)] == [4, 8]
    served.gone((3, 4))
    assert [served.found((stream, 8)) for stream in (0, 1)] == [0, 8]


def test_a_block_that_was_hit_is_young_again() -> None:
    served = Served(usable=4)
    for stream in (0, 1, 2):
        served.gone((stream, 4))
    served.gone((0, 4), (9, 1))  # hits stream 0, and takes the blank block
    for stream in (4, 5, 6):
        served.gone((stream, 4))
    assert [served.found((stream, 4)) for stream in (0, 1, 2)] == [4, 0, 0]


def test_a_lookup_changes_nothing() -> None:
    served = Served(usable=2)
    served.gone((0, 4))
    served.gone((1, 4))
    for _ in range(3):
        assert served.found((0, 4)) == 4
        assert not served.cache.can_admit(served.request((0, 4), (2, 8)))
    served.gone((2, 4))
    assert [served.found((stream, 4)) for stream in (0, 1)] == [0, 4]


def test_copies_are_not_merged_and_the_first_one_is_hit() -> None:
    served = Served(usable=2)
    served.admitted((0, 4))  # its only block holds its last token, so nobody computes it for him
    second = served.admitted((0, 4))
    assert served.cache.usage == 1.0
    served.cache.free(second)
    # The first copy is in use and needs no room; the second one leaves it for the new block.
    hitting = served.admitted((0, 4), (1, 1))
    assert served.cache.cached_tokens(served.request((0, 4), (1, 1))) == 4
    assert served.cache.usage == 1.0
    served.cache.free(hitting)
    assert served.cache.free_blocks == 1


def test_hits_without_users_need_room_and_others_do_not() -> None:
    served = Served(usable=3)
    served.gone((0, 8))
    other = served.admitted((1, 4))
    assert not served.cache.can_admit(served.request((0, 8), (2, 4)))
    served.cache.free(other)
    user = served.admitted((0, 8), (2, 1))
    assert not served.cache.can_admit(served.request((0, 8), (3, 1)))
    served.cache.free(user)
    bigger = Served(usable=4)
    bigger.admitted((0, 8), (2, 1))
    assert bigger.cache.can_admit(bigger.request((0, 8), (3, 1)))


def test_the_watermark_counts_only_while_others_hold_blocks() -> None:
    served = Served(usable=4, watermark_blocks=2)
    whole = served.admitted((0, 16))
    served.cache.free(whole)
    served.admitted((1, 4))
    assert served.cache.can_admit(served.request((2, 4)))
    assert not served.cache.can_admit(served.request((2, 5)))
