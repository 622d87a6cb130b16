"""What each view of a prefix cache takes to be in it; blocks of 4 tokens."""

from llmroute_gym.config import ObservationConfig
from llmroute_gym.sim import FormulaBatchTime, Replica
from llmroute_gym.sim.reference.block_names import BlockNames, Names
from llmroute_gym.sim.reference.engine import Clock
from llmroute_gym.sim.reference.prefix_cache import PrefixCache
from llmroute_gym.sim.reference.prefix_views import prefix_views
from llmroute_gym.sim.reference.request import Request

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
REPLICA = Replica(ONE_SECOND, scheduler="vllm_v1", block_size=4, num_blocks=99)


class Seen:
    """A cache, a view of it, and the requests that they know."""

    def __init__(self, usable: int = 98, remembers: bool = True, **told: object) -> None:
        self.clock = Clock()
        self.cache = PrefixCache(usable + 1, 4, 0, remembers)
        settings = ObservationConfig(**told)  # type: ignore[arg-type]
        self.view = prefix_views(settings, REPLICA, self.cache, self.clock)[0]
        self._names = Names()
        self._requests = 0

    def request(self, *segments: tuple[int, int]) -> Request:
        self._requests += 1
        names = BlockNames(self._names, list(segments), output=-self._requests)
        prompt = sum(tokens for _, tokens in segments)
        return Request(self._requests, self.clock.now, prompt, 1, names)

    def sent(self, *segments: tuple[int, int]) -> None:
        self.view.sent(self.request(*segments))

    def served_at(self, time_s: float, *segments: tuple[int, int]) -> None:
        self.clock.move_to(time_s)
        request = self.request(*segments)
        self.cache.admit(request)
        self.cache.free(request)

    def found(self, *segments: tuple[int, int], at_s: float = 0.0) -> int:
        """Tokens of a prompt that the view finds, with another token behind it."""
        self.clock.move_to(at_s)
        return self.view.cached_tokens(self.request(*segments, (999, 1)))


def test_an_event_shows_after_its_lag_and_not_at_it() -> None:
    seen = Seen(events_lag_s=2.0)
    seen.served_at(1.0, (0, 8))
    assert [seen.found((0, 8), at_s=at_s) for at_s in (1.5, 3.0, 3.5)] == [0, 0, 8]
    assert seen.cache.cached_tokens(seen.request((0, 9))) == 8


def test_an_eviction_is_late_too() -> None:
    seen = Seen(usable=2, events_lag_s=2.0)
    seen.served_at(0.0, (0, 8))
    seen.served_at(5.0, (1, 4))  # takes the second block of the other
    assert [seen.found((0, 8), at_s=at_s) for at_s in (6.0, 7.0, 7.5)] == [8, 8, 4]
    assert [seen.found((1, 4), at_s=at_s) for at_s in (7.5,)] == [4]


def test_a_content_is_there_until_its_last_copy_is_evicted() -> None:
    seen = Seen(usable=2, events_lag_s=1.0)
    first, second = seen.request((0, 4)), seen.request((0, 4))
    seen.cache.admit(first)
    seen.cache.admit(second)
    seen.cache.free(first)
    seen.cache.free(second)
    seen.served_at(1.0, (1, 4))
    seen.served_at(2.0, (2, 4))
    assert [seen.found((0, 4), at_s=at_s) for at_s in (2.5, 3.0, 3.5)] == [4, 4, 0]


def test_without_a_lag_the_view_is_the_cache() -> None:
    seen = Seen(events_lag_s=0.0, tree_blocks=1)
    seen.served_at(1.0, (0, 8))
    assert seen.found((0, 8), at_s=1.0) == 8


def test_the_tree_holds_full_blocks_of_what_was_sent_but_never_finds_the_last_token() -> None:
    seen = Seen(prefix_view="tree", events_lag_s=9.0)
    seen.sent((0, 11))
    assert seen.found((0, 11)) == 8
    assert seen.view.cached_tokens(seen.request((0, 8))) == 4
    assert seen.found((0, 4), (1, 4)) == 4
    assert seen.found((1, 4)) == 0


def test_the_tree_forgets_the_least_recently_sent_and_tails_before_heads() -> None:
    seen = Seen(prefix_view="tree", tree_blocks=5)
    seen.sent((0, 12))
    seen.sent((1, 8))
    seen.sent((2, 4))
    assert [seen.found((stream, 12)) for stream in (0, 1, 2)] == [8, 8, 4]
    seen.sent((0, 4), (3, 3))  # its only full block is young again
    seen.sent((4, 8))
    assert [seen.found((stream, 12)) for stream in (0, 1, 2, 4)] == [4, 4, 4, 8]


def test_a_prompt_longer_than_the_tree_leaves_its_first_blocks() -> None:
    seen = Seen(prefix_view="tree", tree_blocks=3)
    seen.sent((1, 12))
    seen.sent((0, 40))
    assert [seen.found((stream, 40)) for stream in (0, 1)] == [12, 0]


def test_the_tree_hears_of_nothing_that_the_cache_does() -> None:
    seen = Seen(usable=2, prefix_view="tree")
    seen.served_at(0.0, (0, 8))
    assert seen.found((0, 8)) == 0
    seen.sent((0, 8))
    seen.served_at(1.0, (1, 8))
    assert seen.cache.cached_tokens(seen.request((0, 9))) == 0
    assert seen.found((0, 8)) == 8


def test_without_a_cache_no_view_finds_anything() -> None:
    for told in ({"prefix_view": "tree"}, {"events_lag_s": 1.0}, {}):
        seen = Seen(remembers=False, **told)
        seen.sent((0, 8))
        seen.served_at(0.0, (0, 8))
        assert seen.found((0, 8), at_s=9.0) == 0
