"""Constants as points of a cube, and back."""

import numpy as np
import pytest

from llmroute_gym.compare.search.space import Space, tuned_ranges
from llmroute_gym.errors import InputError
from llmroute_gym.routers import available, make
from tests.compare.search.rules import InSpells


def test_the_corners_are_the_ends_of_the_ranges() -> None:
    space = Space.of("in_spells", InSpells())
    assert space.constants(np.zeros(2)) == {"spell": 1, "exceptions": 0.0}
    assert space.constants(np.ones(2)) == {"spell": 200, "exceptions": 1.0}
    # A logarithmic one has its geometric mean in the middle: sqrt(200) = 14.1.
    assert space.constants(np.full(2, 0.5)) == {"spell": 14, "exceptions": 0.5}
    assert isinstance(space.constants(np.ones(2))["spell"], int)


def test_points_and_constants_are_each_other_s_inverse() -> None:
    space = Space.of("in_spells", InSpells())
    for spell in (1, 7, 20, 200):
        constants = {"spell": spell, "exceptions": 0.1234}
        assert space.constants(space.point(constants)) == constants


def test_what_is_not_tuned_stays() -> None:
    space = Space.of("in_spells", InSpells(spell=5, delay=3.0))
    assert list(space.ranges) == ["spell", "exceptions"]
    assert space.start == {"spell": 5, "exceptions": 0.2}
    changed = space.with_constants({"spell": 2, "exceptions": 0.0})
    assert changed == InSpells(spell=2, exceptions=0.0, delay=3.0)


def test_a_router_without_constants_is_refused() -> None:
    assert tuned_ranges(make("lor")) == {}
    with pytest.raises(InputError, match=r"router=lor has no constants to search.*in_spells"):
        Space.of("lor", make("lor"))


def test_every_rule_with_constants_can_be_searched() -> None:
    names = [name for name in available() if tuned_ranges(make(name))]
    assert {"llmd_default", "lor_hybrid", "smg_least_load"} <= set(names)
    for name in names:
        space = Space.of(name, make(name))
        point = space.point(space.start)
        assert ((point >= 0) & (point <= 1)).all(), name
        for share in (0.0, 0.3, 1.0):
            # A constant out of its range would be refused.
            space.with_constants(space.constants(np.full(len(point), share)))


def test_some_constants_may_be_left_as_they_are() -> None:
    rule = make("llmd_default:queue=3")
    space = Space.of("llmd_default", rule, ["kv"])
    assert list(space.start) == ["kv"]
    changed = space.with_constants({"kv": 5.0})
    assert changed == make("llmd_default:queue=3,kv=5")
    with pytest.raises(InputError, match=r"unknown search.constants of llmd_default: 'kw'"):
        Space.of("llmd_default", rule, ["kw"])
