"""Marks of a logarithmic axis."""

import pytest

from llmroute_gym.compare.html.ticks import ENOUGH, log_ticks


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.5, 2000), [1, 10, 100, 1000]),
        ((2, 60), [2, 5, 10, 20, 50]),
        ((24, 46), [25, 30, 35, 40, 45]),
        ((10.0, 10.0), [10.0]),
    ],
)
def test_marks_are_round(ends: tuple[float, float], expected: list[float]) -> None:
    assert log_ticks(*ends) == expected


def test_every_range_has_enough() -> None:
    for low in (1e-4, 0.013, 0.99, 7.0, 123.4):
        for factor in (1.01, 1.3, 2.0, 9.0, 1e4):
            ticks = log_ticks(low, low * factor)
            assert len(ticks) >= ENOUGH
            assert ticks == sorted(set(ticks))
            assert low * 0.99 <= ticks[0]
            assert ticks[-1] <= low * factor * 1.01


@pytest.mark.parametrize("ends", [(0, 1), (2, 1), (1, float("inf"))])
def test_other_ends_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low and high must be"):
        log_ticks(*ends)
