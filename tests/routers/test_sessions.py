"""Rules that keep together what belongs together, on rows written by hand."""

from typing import Any

import numpy as np
import pytest

from llmroute_gym import InputError
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers.hashing import RING_POINTS, hashed, ring
from llmroute_gym.routers.sessions import ConditionalHash, SessionHash, StickyLeastLoaded
from tests.routers.hand import ask, fresh, rows


def splitmix64(word: int) -> int:
    """The finalizer in Python's own integers."""
    all_ones = 2**64 - 1
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & all_ones
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & all_ones
    return word ^ (word >> 31)


def plain_hash(first: int, second: int) -> float:
    gamma, all_ones = 0x9E3779B97F4A7C15, 2**64 - 1
    word = splitmix64((first + gamma) & all_ones)
    return (splitmix64(((word ^ second) + gamma) & all_ones) >> 11) / 2**53


def owners(key: int, n_replicas: int) -> list[int]:
    """The replicas in the order in which the ring meets them from a key's place on."""
    points = sorted(
        (plain_hash(r, 1 + p), r) for r in range(n_replicas) for p in range(RING_POINTS)
    )
    place = plain_hash(key, 0)
    around = [r for at, r in points if at >= place] + [r for at, r in points if at < place]
    return list(dict.fromkeys(around))


def test_the_hash_is_splitmix64() -> None:
    for pair in ((0, 0), (1, 0), (0, 1), (2**52 + 1, 159), (7, 2**40)):
        assert hashed(*map(float, pair)) == plain_hash(*pair)


def test_a_ring_gives_each_replica_about_its_share() -> None:
    around = ring(4)
    points, owned_by = np.split(around, 2)
    assert (np.diff(points) > 0).all()
    assert np.bincount(owned_by.astype(int)).tolist() == [RING_POINTS] * 4
    shares = np.bincount(owned_by.astype(int), weights=np.diff(points, prepend=points[-1] - 1))
    assert (abs(shares - 0.25) < 0.06).all()


def test_a_session_keeps_the_replica_that_the_ring_gives_it() -> None:
    rule = fresh(SessionHash(), 4)
    for session in range(20):
        expected = owners(session, 4)
        busy = rows(4, session=session, in_flight=np.eye(4)[expected[0]] * 99)
        assert ask(rule, busy) == expected[0]
        assert ask(rule, busy, without=expected[:1]) == expected[1]
        assert ask(rule, busy, without=expected[:3]) == expected[3]


def test_one_replica_more_moves_only_what_goes_to_it() -> None:
    few, more = fresh(SessionHash(), 4), fresh(SessionHash(), 5)
    moved = 0
    for session in range(60):
        before, after = (ask(one, rows(n, session=session)) for one, n in ((few, 4), (more, 5)))
        assert after in (before, 4)
        moved += after == 4
    assert 3 <= moved <= 25


def test_without_a_session_the_least_loaded_gets_it_the_first_on_a_tie() -> None:
    rule = fresh(SessionHash(), 3)
    assert ask(rule, rows(3, in_flight=[2, 1, 1])) == 1
    assert ask(rule, rows(3, in_flight=[2, 1, 1]), without=[1]) == 2


def test_a_prompts_head_moves_on_from_a_replica_above_the_bound() -> None:
    """Mean load 4: replicas with up to 5 in flight have room."""
    rule = fresh(ConditionalHash(), 3)
    for head in range(12):
        first, second, third = owners(head, 3)
        for load, expected in ((5, first), (6, second)):
            in_flight = np.zeros(3)
            in_flight[[first, second, third]] = load, 4, 8 - load
            assert ask(rule, rows(3, prompt_head=head, in_flight=in_flight)) == expected
    assert (
        ask(fresh(ConditionalHash(factor=2), 3), rows(3, prompt_head=0, in_flight=4))
        == (owners(0, 3)[0])
    )


def test_the_bound_counts_the_replicas_that_may_be_chosen() -> None:
    """Without the third, the mean is 2 and the bound 2.5."""
    first, second, third = owners(5, 3)
    in_flight = np.zeros(3)
    in_flight[[first, second, third]] = 3, 1, 90
    table = rows(3, prompt_head=5, in_flight=in_flight)
    assert ask(fresh(ConditionalHash(), 3), table) == first
    assert ask(fresh(ConditionalHash(), 3), table, without=[third]) == second


def test_an_idle_cluster_serves_every_head_where_it_belongs() -> None:
    rule = fresh(ConditionalHash(), 4)
    assert [ask(rule, rows(4, prompt_head=h)) for h in range(9)] == [
        owners(h, 4)[0] for h in range(9)
    ]


def test_prompts_that_no_one_knows_are_spread_by_the_seed() -> None:
    chosen = [
        [ask(rule, rows(4)) for _ in range(80)]
        for rule in (fresh(ConditionalHash(), 4, seed=seed) for seed in (1, 1, 2))
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert min(np.bincount(chosen[0], minlength=4)) > 5


def rendezvous(session: int, among: list[int]) -> int:
    return max(among, key=lambda r: plain_hash(session, r))


def at(now_s: float, session: int, **columns: Any) -> FloatArray:
    return rows(3, now_s=now_s, session=session, **columns)


def test_new_sessions_go_to_the_fewest_sessions_and_stay_there() -> None:
    rule = fresh(StickyLeastLoaded(), 3)
    free = [0, 1, 2]
    chosen = {}
    for session in (11, 12, 13):
        chosen[session] = ask(rule, at(1.0, session))
        assert chosen[session] == rendezvous(session, free)
        free.remove(chosen[session])
    for session in (13, 11, 12, 13):
        loads = 50.0 * np.eye(3)[chosen[session]]
        assert ask(rule, at(2.0, session, in_flight=loads)) == chosen[session]


def test_a_session_is_forgotten_after_two_hours_without_use() -> None:
    rule = fresh(StickyLeastLoaded(), 3)
    kept, idle = ask(rule, at(0.0, 1)), ask(rule, at(0.0, 2))
    third = 3 - kept - idle
    assert ask(rule, at(10.0, 3)) == third
    assert ask(rule, at(7000.0, 1)) == kept
    # Used at 0 and exactly 7200 s old: session 2 still counts, all replicas have one.
    assert ask(rule, at(7200.0, 4)) == rendezvous(4, [0, 1, 2])
    # A moment later it does not.
    free = [idle] if rendezvous(4, [0, 1, 2]) != idle else [idle, kept, third]
    assert ask(rule, at(7200.5, 5)) == rendezvous(5, free)
    assert ask(rule, at(7200.5, 1)) == kept


def test_the_counts_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(3)
    n, ttl = 4, 50.0
    rule = fresh(StickyLeastLoaded(forget_after_s=ttl), n, 2000)
    known: dict[int, tuple[int, float]] = {}
    now_s = 0.0
    for _ in range(2000):
        now_s += float(rng.exponential(0.5))
        session = int(rng.integers(300)) * 1_000_003
        known = {key: one for key, one in known.items() if one[1] >= now_s - ttl}
        without = [int(rng.integers(n))] if rng.random() < 0.1 else []
        home = known[session][0] if session in known else -1
        if home < 0 or home in without:
            known.pop(session, None)
            counts = [sum(one[0] == r for one in known.values()) for r in range(n)]
            allowed = [r for r in range(n) if r not in without]
            fewest = min(counts[r] for r in allowed)
            home = rendezvous(session, [r for r in allowed if counts[r] == fewest])
        known[session] = home, now_s
        assert ask(rule, rows(n, now_s=now_s, session=session), without) == home


def test_a_request_without_a_session_counts_as_none() -> None:
    rule = fresh(StickyLeastLoaded(), 3)
    assert [ask(rule, at(0.0, -1, in_flight=[3, 2, 2])) for _ in range(3)] == [1, 1, 1]
    assert ask(rule, at(0.0, 9)) == rendezvous(9, [0, 1, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConditionalHash(factor=0.5), "factor of conditional_hash must be a number from 1"),
        (lambda: StickyLeastLoaded(forget_after_s=0), "forget_after_s of sticky_least_loaded"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
